"""`python -m fewbit`: the command line."""

from fewbit.cli import start

start()

"""The command line: a thin skin, one file a verb."""

import sys


def start() -> None:
    """What the installed command calls: Ctrl-C while packages are imported ends it as quietly as later."""
    try:
        from fewbit.cli.main import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()

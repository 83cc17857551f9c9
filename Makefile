# make demo: quantize and measure the shipped policy.  make test: all checks and tests.  Both set up .venv first.
PY := .venv/bin/python

.PHONY: setup demo test check
setup: .venv/.done
.venv/.done: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)
	python3 -m venv .venv
	$(PY) -m pip install -q -c constraints.txt torch==2.13.0
	$(PY) -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	.venv/bin/fewbit quantize demo/halfcheetah.zip -o halfcheetah.int8.onnx --env HalfCheetah-v5 --keep 0.99
	.venv/bin/fewbit inspect halfcheetah.int8.onnx

check: setup
	.venv/bin/ruff check src tests demo
	.venv/bin/mypy

test: check
	$(PY) -m pytest -n 2

# make demo: quantize and measure the shipped policy.  make test: all checks and tests.  Both set up .venv first.
PY := .venv/bin/python
# Of the tests of C, of the native engine and of the report; where they cannot be had those tests skip by name.
TOOLS := g++ clang aarch64-linux-gnu-g++ qemu-aarch64 qemu-x86_64 qemu-system-arm arm-none-eabi-gcc s390x-linux-gnu-gcc \
  chromium wasm-ld
PACKAGES := g++ clang g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user gcc-arm-none-eabi qemu-system-arm gcc-s390x-linux-gnu \
  libc6-dev-s390x-cross
REPORT := chromium fonts-dejavu-core lld libosmesa6

.PHONY: setup tools demo test check
setup: .venv/.done
.venv/.done: pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*)
	python3 -m venv .venv
	$(PY) -m pip install -q -c constraints.txt torch==2.13.0
	$(PY) -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

tools:
	@for t in $(TOOLS); do command -v $$t >/dev/null || missing=1; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null || true; \
	  apt-get install -y -qq --no-install-recommends $(REPORT) >/dev/null || true; fi

demo: setup
	.venv/bin/fewbit quantize demo/halfcheetah.zip -o halfcheetah.int8.onnx --env HalfCheetah-v5 --keep 0.95
	.venv/bin/fewbit inspect halfcheetah.int8.onnx

check: setup
	.venv/bin/ruff check src tests demo
	.venv/bin/mypy

test: check tools
	$(PY) -m pytest -n 2

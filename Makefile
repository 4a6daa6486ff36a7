# `make demo` and `make test` need nothing but Python 3.11: both install what they use into .venv first, once.
#
#   PYTHON=python3.12        another interpreter
#   TORCH_INDEX=URL          a further package index for torch, for example one with builds for CPUs only
#   TEST_JOBS=4             processes that run tests side by side
#   PIP_ARGS="--no-index"    anything else that pip should be told

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
TORCH_INDEX ?=
PYTEST_ARGS ?=
TEST_JOBS ?= 2

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test browser-test network-test containers-test compose-secrets fuzz check docs bench clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m grid demo

# Files go out in the order of tests/conftest.py, longest first. What is compiled stays, for the many processes that tests start.
test: export PYTHONDONTWRITEBYTECODE =
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

browser-test: $(STAMP)
	$(BIN)/python -m pytest tests/browser --browser-tests $(PYTEST_ARGS)

# Needs root, for network namespaces of its own.
network-test: $(STAMP)
	$(BIN)/python -m pytest tests/faults --network-tests $(PYTEST_ARGS)

# Builds nothing: the images that compose.yaml names must be there (docs/how-to/deploy-with-compose.md).
containers-test: $(STAMP)
	$(BIN)/python -m pytest tests/containers --containers $(PYTEST_ARGS)

# Secret files for compose.yaml's profile `enrolled`, under the root key that `grid root init` made before.
ROOT ?= root.key
HOST ?= localhost
compose-secrets: $(STAMP)
	deploy/compose-secrets.sh $(ROOT) secrets $(HOST)

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

docs: $(STAMP)
	$(BIN)/python docs/generate.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.grid

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find grid tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# `make demo` and `make test` need nothing but Python 3.11: both install what they use into .venv first, once.
#
#   PYTHON=python3.12        another interpreter
#   TORCH_INDEX=URL          a further package index for torch, for example one with builds for CPUs only
#   PIP_ARGS="--no-index"    anything else that pip should be told

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_ARGS ?=
TORCH_INDEX ?=
PYTEST_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test browser-test fuzz check docs bench clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m grid demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

browser-test: $(STAMP)
	$(BIN)/python -m pytest tests/browser --browser-tests $(PYTEST_ARGS)

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest --quiet tests/test_layers.py

docs: $(STAMP)
	$(BIN)/python docs/generate.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find grid tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The two commands of the README, and what developers add to them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled where they are imported, and most of torch's never are.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	-c constraints.txt

# What jaxtyping's shapes say is checked at every call of the library.
SHAPES := tests/formats tests/arithmetic tests/recurrences

.PHONY: check test test-slow test-shapes benchmark lint clean

check: $(VENV)/.check
	$(BIN)/lyapunov-check

test: $(VENV)/.tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not cuda"

test-slow: $(VENV)/.tests test-shapes
	$(BIN)/python -m pytest -m "slow and not cuda"

test-shapes: $(VENV)/.tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(SHAPES) \
		--jaxtyping-packages=lyapunov,beartype.beartype \
		-m "not slow and not cuda and not wrong_types"

benchmark: $(VENV)/.tests
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -s

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .benchmarks .cache/jax

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.check: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[report]'
	touch $@

# torch first and pinned: any other version pulls gigabytes of CUDA packages
$(VENV)/.tests: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[tests]'
	touch $@ $(VENV)/.check

$(VENV)/.dev: $(VENV)/.tests
	$(PIP) -e '.[dev]'
	touch $@

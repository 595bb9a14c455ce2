# The two commands of the README, and what developers add to them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled where they are imported, and most of torch's never are.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
	-c constraints.txt

# Fast tests run each program once or twice: half of their time was LLVM's optimiser. Slow
# ones run programs as users have them. Of torch's threads each process has one: those of
# two wait for each other in loops.
QUICKLY := OMP_NUM_THREADS=1 XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0"

# The newest Python that is here, and the newest of all else: nothing is constrained.
NEWEST ?= $(lastword $(sort $(wildcard $(HOME)/.pyenv/versions/3.1?.*/bin/python3)))
NEWER := .venv-newest
OLDER := .venv-oldest
TAKEN_BY_VERSIONS := tests/formats tests/arithmetic tests/test_xla.py

# What jaxtyping's shapes say is checked at every call of the library.
SHAPES := tests/formats tests/arithmetic tests/recurrences

# One file without anything that it would fetch later, unlike MathJax 4's.
MATHJAX := node_modules/mathjax/es5/tex-svg.js

.PHONY: check test test-slow test-shapes test-newest test-oldest package benchmark lint docs clean

check: $(VENV)/.check
	$(BIN)/lyapunov-check

test: $(VENV)/.dev
	$(QUICKLY) $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not cuda"

test-slow: $(VENV)/.dev test-shapes
	$(BIN)/python -m pytest -m "slow and not cuda"

test-shapes: $(VENV)/.dev
	$(QUICKLY) $(BIN)/python -m pytest -n 2 --dist loadfile $(SHAPES) \
		--jaxtyping-packages=lyapunov,beartype.beartype \
		-m "not slow and not cuda and not wrong_types"

test-newest: $(NEWER)/.made
	$(NEWER)/bin/python -c 'import sys, jax; print("Python", sys.version, "jax", jax.__version__)'
	$(NEWER)/bin/lyapunov-check -q --no-compile-cache
	$(QUICKLY) $(NEWER)/bin/python -m pytest -m "not slow and not cuda" $(TAKEN_BY_VERSIONS)

# Old libraries warn of what later ones mended.
test-oldest: $(OLDER)/.made
	$(OLDER)/bin/lyapunov-check -q --no-compile-cache
	$(QUICKLY) $(OLDER)/bin/python -m pytest -W ignore::DeprecationWarning \
		-m "not slow and not cuda" $(TAKEN_BY_VERSIONS)

# Wheel and sdist, each installed and asked in an environment that has nothing else.
package: $(VENV)/.dev
	rm -rf build/package && $(BIN)/hatchling build -d build/package
	for made in build/package/*.whl build/package/*.tar.gz; do \
		$(PYTHON) -m venv --clear build/bare && \
		build/bare/bin/python -m pip install --quiet --disable-pip-version-check $$made && \
		(cd build && bare/bin/lyapunov-check --version && bare/bin/lyapunov-check -q \
			--no-compile-cache --effort quick) || exit 1; \
	done

benchmark: $(VENV)/.dev
	$(BIN)/python -m pytest tests/benchmarks --benchmark-only -s

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Strict: a link that leads nowhere, a page that nobody finds, an unknown name fail it.
docs: $(VENV)/.dev $(VENV)/$(MATHJAX)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

# Where npm or its registry is not to be had, pages are built all the same, and say so.
$(VENV)/$(MATHJAX): | $(VENV)/bin/python
	-npm install --silent --no-save --prefix $(VENV) mathjax@3.2.2

$(NEWER)/.made: pyproject.toml
	$(if $(NEWEST),,$(error no newer Python here: make test-newest NEWEST=python3.14))
	$(NEWEST) -m venv $(NEWER)
	$(NEWER)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		-e '.[newest]'
	touch $@

$(OLDER)/.made: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		-c constraints-oldest.txt -e '.[newest]'
	touch $@

clean:
	rm -rf $(VENV) $(NEWER) $(OLDER) build dist .pytest_cache .ruff_cache .hypothesis .benchmarks .cache/jax

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.check: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[report]'
	touch $@

# One resolution for tests and linters. Constraints pin torch: every other version pulls
# gigabytes of CUDA packages.
$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.check

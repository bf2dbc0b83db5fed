# Everything works from a bare clone that has make, git and Python 3.10 or newer:
# the first target that needs it builds the environment in $(VENV).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# One file marks a finished install; it is redone when what it was made from changes.
DEMO_READY := $(VENV)/.frostline-demo
DEV_READY := $(VENV)/.frostline-dev
SOURCES_OF_ENVIRONMENT := pyproject.toml constraints.txt

# A worker a core, each with one thread: workers with several stall each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean

help: ## say what there is to do
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: $(DEMO_READY) ## fine-tune a small network on real digits, backbone frozen and proven so
	$(BIN)/frostline finetune

test: lint ## lint, types, import floors, then the tests that are quick
	$(PYTEST) -m 'not slow and not gpu'

test-all: lint ## the same with the slow tests and many more random cases
	$(PYTEST) --hypothesis-profile=thorough

lint: $(DEV_READY) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(DEV_READY) ## print what benchmarks/ measures on this machine
	@for script in benchmarks/[a-z]*.py; do echo; echo "== $$script"; $(BIN)/python "$$script"; done

clean: ## remove caches and builds; the environment and the runs stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO_READY): EXTRAS := demo
$(DEMO_READY): $(SOURCES_OF_ENVIRONMENT)
	$(install)
	@touch $@

$(DEV_READY): EXTRAS := demo,dev
$(DEV_READY): $(SOURCES_OF_ENVIRONMENT)
	$(install)
	@touch $@ $(DEMO_READY)

# An environment that has a working pip is kept as it is.
define install
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(new_environment)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[$(EXTRAS)]'
endef

define new_environment
{ \
	command -v $(PYTHON) > /dev/null || { \
	  echo "Frostline needs Python 3.10 or newer, and '$(PYTHON)' was not found." >&2; \
	  echo "Name one that is there: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Frostline needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name a newer one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }; \
	echo "Creating $(VENV) and installing the pinned environment: a few minutes, once."; \
	$(PYTHON) -m venv $(VENV) || { \
	  echo "Python's venv module is missing or broken; on Debian and Ubuntu:" >&2; \
	  echo "apt install python3-venv" >&2; exit 1; }; \
	}
endef

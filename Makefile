# Every target makes .venv by itself where it is missing, and again when pyproject.toml changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test check fix bench
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -E '^[a-z]+: .*##' Makefile | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## fine-tune, evaluate, merge and look: two minutes, no network
	$(BIN)/gist demo recipes/quickstart.yaml -o runs/demo

test: $(STAMP)  ## the test suite
	$(BIN)/pytest -q -n 2 --dist worksteal

check: $(STAMP)  ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(STAMP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## step time and memory against the floor and PEFT, prefixes, into tests/benchmarks
	$(BIN)/python -m tests.benchmarks.run
	$(BIN)/python -m tests.benchmarks.language
	$(BIN)/python -m tests.benchmarks.prefixes
	$(BIN)/python tests/benchmarks/help_time.py

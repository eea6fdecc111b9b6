# Everything runs from .venv, which is made on first use and made again when its inputs change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CODE := kit tests build_single_file.py
PYTEST := $(BIN)/python -m pytest
# Whole files side by side, a core each; what races against the clock runs alone.
RACES := tests/behaviour/test_deadline.py
ABREAST := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses auto --dist loadfile --ignore $(RACES)
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint bundle docs-check torture bench esc10 recipes pools birdclef study clean

help:
	@echo "make demo     the whole job on toy data, in about a minute"
	@echo "make test     lint, types, bundle, the README, and every test on kit/ and on the bundle"
	@echo "make bundle   kit/ -> audiotag_kit.py"
	@echo "make docs-check   the commands and code of the README, run in an empty room"
	@echo "make torture  damaged files, kills, deadlines, hostile checkpoints, full disks: an hour; \`make test\` has the short form"
	@echo "make bench    the README's figures, measured here"
	@echo "make esc10    ESC-10's own five folds from scratch, three systems and their ensemble"
	@echo "make recipes  every recipe in its small form, on the task it was made for"
	@echo "make pools    pools over windows of two lengths, out of fold, on two of these runs"
	@echo "make birdclef BirdCLEF from its folder to its CSV: clips alone, soundscapes, pseudo-labels, steps after the models"
	@echo "make study    what the write-ups claim, measured: 45 minutes, and the same command goes on"
	@echo "make clean    remove what these targets made"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[plots]"
	@touch $@

$(VENV)/test.stamp: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp
	$(BIN)/python build_single_file.py
	$(BIN)/python audiotag_kit.py demo

lint: $(VENV)/test.stamp
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

bundle:
	$(PYTHON) build_single_file.py

docs-check: $(VENV)/test.stamp
	$(BIN)/python -m tests.house.docs_check

test: lint bundle
	$(PYTHON) build_single_file.py --check
	$(ABREAST) tests/behaviour tests/house
	KIT_UNDER_TEST=bundle $(ABREAST) tests/behaviour
	$(PYTEST) $(RACES)
	KIT_UNDER_TEST=bundle $(PYTEST) $(RACES)
	$(BIN)/python -m tests.torture --short
	$(MAKE) --no-print-directory docs-check

torture: $(VENV)/test.stamp
	$(BIN)/python -m tests.torture

bench: $(VENV)/test.stamp
	$(BIN)/python -m tests.benchmarks

esc10 recipes pools birdclef study: $(VENV)/test.stamp
	$(BIN)/python -m tests.benchmarks.$@

clean:
	rm -rf $(VENV) audiotag_kit.py kaggle_dataset demo build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find kit tests -name __pycache__ -type d -prune -exec rm -rf {} +

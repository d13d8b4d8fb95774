# make demo   train RIM and LSTM to copy, test them at longer delays, write runs/demo/report.html (about six minutes on two cores)
# make test   the whole test suite, but what trains for minutes: make test-training
# make check  linter, formatter and type checker
# Each makes .venv first, with the exact versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast test-training check wheel clean

demo: .venv/installed
	$(BIN)/rims demo

test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not training"

test-training: .venv/installed
	$(BIN)/python -m pytest -n auto --dist worksteal -m training

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: .venv/installed
	$(BIN)/python -m build --wheel

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info

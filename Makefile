# `make demo` and `make test` need only Python 3.11 or newer, with pip; both make or refresh .venv first.
PYTHON ?= python3
EXTRAS ?= train,cpu,starter,dev
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check fix clean

demo: $(VENV)/installed
	$(BIN)/python examples/emoji/demo.py --out demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 $(TESTS)

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fix: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build dist *.egg-info

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

# `make demo` and `make test` need only Python 3.11 or newer, with pip; both make or refresh .venv first.
PYTHON ?= python3
EXTRAS ?= train,cpu,starter,dev
VENV := .venv
BIN := $(VENV)/bin
BUILD := .venv-build
# Ray is large, and autofaiss wants numpy 1, with a pyarrow that still takes it.
RAY := .venv-ray
AUTOFAISS := .venv-autofaiss
$(VENV)/installed: PACKAGES = --editable '.[$(EXTRAS)]'
$(RAY)/installed: PACKAGES = --editable '.[train,cpu,serve,ray]' pytest httpx
$(BUILD)/installed: PACKAGES = build twine
$(AUTOFAISS)/installed: PACKAGES = autofaiss 'pyarrow<26' pillow pytest

.PHONY: demo test test-all check docs dist fix clean

demo: $(VENV)/for-demo
	$(BIN)/python examples/emoji/demo.py --out demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 3 $(TESTS)

# Also what needs more than the development environment; a test that is skipped there fails.
test-all: test $(RAY)/installed $(AUTOFAISS)/installed
	$(BIN)/python -m pytest --no-skips tests/wheel.py tests/readme.py
	$(AUTOFAISS)/bin/python -m pytest --no-skips tests/embed/jobs/test_readers.py
	$(RAY)/bin/python -m pytest --no-skips tests/embed/jobs/test_ray.py tests/runtime/service/test_ray.py

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Into build/docs; a link that leads nowhere is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Into dist/: what is published.
dist: $(BUILD)/installed
	rm -rf dist build/lib
	$(BUILD)/bin/python -m build
	$(BUILD)/bin/python -m twine check --strict dist/*

fix: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(RAY) $(AUTOFAISS) $(BUILD) demo build dist *.egg-info

# What the demo needs, without the tools of developers.
$(VENV)/for-demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --editable '.[train,cpu,starter]'
	touch $@

%/installed: pyproject.toml
	test -x $*/bin/python || $(PYTHON) -m venv $*
	$*/bin/python -m pip install -qq $(PACKAGES)
	touch $@

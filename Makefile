# make demo: the whole pipeline on the embedded mini world.   make test: lint, types and tests.   make test-slow: minutes-long checks.
PYTHON ?= python3.11
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin

.PHONY: demo test test-slow install clean

demo: install
	$(BIN)/python -m gift_mini.demo --out $(DEMO)

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not slow and not gpu"

test-slow: install
	$(BIN)/pytest -m slow

install: $(VENV)/.installed

# Installed once, and again when the requirements change. The marker is written last: an interrupted install is repeated.
$(VENV)/.installed: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(DEMO)

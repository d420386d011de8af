# `make demo` and `make test` each set up what they need in .venv; only Python and make have to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CLIP ?=
OUT ?= out/demo

.PHONY: demo test lint types clean

demo: $(VENV)/.installed
	$(BIN)/python -m avsal.demo --out $(OUT) $(if $(CLIP),--clip "$(CLIP)")

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) out .pytest_cache .mypy_cache .ruff_cache

# Two commands from a bare clone: `make demo` and `make test`. Both build .venv first; PYTHON names another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/.headspan
	$(BIN)/headspan demo --out demo

test: .venv/.tests
	$(BIN)/python tools/check.py

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("headspan needs Python 3.11 or newer; set PYTHON=python3.11, say" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/.headspan: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[explore]'
	touch $@

# What the demo needs, too. Modules are compiled when they are imported: most of the packages' never are.
.venv/.tests: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[test]'
	touch .venv/.headspan $@

clean:
	rm -rf .venv demo

# Two commands from a bare clone: `make demo` and `make test`. Both build .venv first; PYTHON names another interpreter.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/.headspan
	$(BIN)/headspan demo --out demo

test: .venv/.tests
	$(BIN)/python tools/check.py

.venv/.headspan: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("headspan needs Python 3.11 or newer; set PYTHON=python3.11, say" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[explore]'
	touch $@

.venv/.tests: .venv/.headspan
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf .venv demo

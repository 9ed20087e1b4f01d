# Everything here needs root: it makes network namespaces and installs what is missing.
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=CI,)
PYTHON := .venv/bin/python

.PHONY: demo test lint bench

demo:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) $(PYTHON) -m tests.lab.demo

test: lint
	$(SUDO) tests/lab/prepare .venv .venv-oldest
	$(SUDO) $(PYTHON) -m pytest
	$(SUDO) .venv-oldest/bin/python -m pytest

lint:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) .venv/bin/ruff check .
	$(SUDO) .venv/bin/ruff format --check .
	$(SUDO) .venv/bin/mypy

bench:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) $(PYTHON) -m tests.lab.bench

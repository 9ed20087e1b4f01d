# Everything here needs root: it makes network namespaces and installs what is missing.
comma := ,
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=CI$(comma)FTFW_TRANSITION_MACHINES,)
PYTHON := .venv/bin/python
# The tests wait more than they work, but a machine that is too busy tells of itself alone.
PARALLEL := --numprocesses=2

.PHONY: demo test machines deb lint bench

demo:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) $(PYTHON) -m tests.lab.demo

test: lint
	$(SUDO) tests/lab/prepare .venv .venv-oldest
	$(SUDO) $(PYTHON) -m pytest $(PARALLEL)
	$(SUDO) .venv-oldest/bin/python -m pytest $(PARALLEL)

machines:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) tests/machines/prepare
	$(SUDO) $(PYTHON) -m pytest tests/machines

deb:
	$(SUDO) packaging/make-deb

lint:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) .venv/bin/ruff check .
	$(SUDO) .venv/bin/ruff format --check .
	$(SUDO) .venv/bin/mypy

bench:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) $(PYTHON) -m tests.lab.bench

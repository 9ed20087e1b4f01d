# All but `make unit` needs root: it makes network namespaces and installs what is missing.
comma := ,
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=CI$(comma)FTFW_TRANSITION_MACHINES,)
PYTHON := .venv/bin/python
# The tests wait more than they work, but a machine that is too busy tells of itself alone.
PARALLEL := --numprocesses=2
# Five minutes that depend on no library's version: on the newest ones alone.
SEQUENCES := tests/integration/test_sequences_real.py
# A lock has the hashes of all files of a release, so that it serves every Python and processor.
COMPILE := CUSTOM_COMPILE_COMMAND="make lock" .venv-lock/bin/pip-compile --quiet --upgrade \
    --generate-hashes --allow-unsafe --no-build-isolation \
    --strip-extras --annotation-style=line --no-emit-options

.PHONY: demo unit test machines deb lint bench lock release

demo:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) $(PYTHON) -m tests.lab.demo

unit:
	tests/lab/environment .venv
	$(PYTHON) -m coverage run -m pytest tests/test_*.py --values --quiet -rfE -p no:cacheprovider
	$(PYTHON) -m coverage report

test: lint unit
	$(SUDO) tests/lab/prepare .venv .venv-oldest
	$(SUDO) $(PYTHON) -m pytest $(PARALLEL)
	$(SUDO) .venv-oldest/bin/python -m pytest $(PARALLEL) --ignore=$(SEQUENCES)

machines:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) tests/machines/prepare
	$(SUDO) $(PYTHON) -m pytest tests/machines

deb:
	$(SUDO) packaging/make-deb

release:
	$(SUDO) tests/lab/prepare .venv
	SUDO="$(SUDO)" packaging/make-release "$(VERSION)"

lint:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) .venv/bin/ruff check .
	$(SUDO) .venv/bin/ruff format --check .
	$(SUDO) .venv/bin/mypy

bench:
	$(SUDO) tests/lab/prepare .venv
	$(SUDO) $(PYTHON) -m tests.lab.bench

# Run on Debian 12: what its Python needs and newer ones do not would be missing from the lock.
lock:
	$(SUDO) tests/lab/prepare
	python3 -m venv --clear .venv-lock
	.venv-lock/bin/pip install --quiet --require-hashes --requirement tests/pip-tools.lock
	$(COMPILE) --extra=test --extra=lint --output-file=tests/venv.lock pyproject.toml
	$(COMPILE) --extra=test --constraint=tests/oldest.txt \
	    --output-file=tests/venv-oldest.lock pyproject.toml
	echo pip-tools | $(COMPILE) --output-file=tests/pip-tools.lock -

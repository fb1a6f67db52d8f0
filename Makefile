PYTHON ?= python3
VENV ?= .venv
# A Celery series to test with, such as 5.5; the newest that we support when empty.
CELERY ?=
# 1: redis-py reads answers by hiredis, in C, as on many machines.
HIREDIS ?=
# Five processes a core: a test waits for something most of the time.
PYTEST_ARGS ?= -n 10 --dist worksteal

BIN := $(VENV)/bin
USE := $(VENV)/.installed
DEV := $(VENV)/.installed-dev$(CELERY)$(if $(HIREDIS),-hiredis)
DOCS := $(VENV)/.installed-docs
DIST := $(VENV)/.installed-dist
TYPED := $(VENV)-typed
# What the distributions are installed on.
DIST_PYTHONS ?= $(PYTHON)

# Without bytecode, each of some thousand processes would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# For a network that is away for a moment.
export PIP_RETRIES ?= 10
export PIP_DEFAULT_TIMEOUT ?= 60

.PHONY: help demo recordings test lint typing docs links dist-check chaos soak suites bench bench-check clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(USE)  ## watch a deploy (python -m celery_graceful.demo --plain: the same without)
	@scripts/ensure-servers redis-server || true
	$(BIN)/python -m celery_graceful.demo

test: $(DEV)  ## run the tests; PYTEST_ARGS="-n 0 tests/unit" replaces pytest's arguments
	@scripts/ensure-servers || test "$$CI" != true
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(DEV)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

typing: $(TYPED)/.installed  ## a user's module, by mypy and pyright, with and without stubs for Celery
	rm -rf $(TYPED)/user && mkdir $(TYPED)/user && cp tests/typed/[!_]* $(TYPED)/user
	$(TYPED)/bin/python -m pip uninstall --quiet --yes celery-types
	cd $(TYPED)/user && ../bin/mypy --cache-dir ../mypy-plain shop.py && ../bin/basedpyright --pythonpath ../bin/python -p plain.json
	$(TYPED)/bin/python -m pip install --quiet --disable-pip-version-check 'celery-types<0.27'
	cd $(TYPED)/user && ../bin/mypy --cache-dir ../mypy-stubs . && ../bin/basedpyright --pythonpath ../bin/python -p stubs.json

recordings: $(DEV)  ## record make demo and status --watch anew, as the pictures that README and docs have
	@scripts/ensure-servers redis-server
	$(pip_install) pyte
	$(BIN)/python scripts/record.py

docs: $(DOCS)  ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

links: $(DOCS)  ## ask each address that the documentation links to; needs the network
	$(BIN)/python -m sphinx -E -q -b linkcheck docs docs/_build/links

dist-check: $(DIST)  ## build sdist and wheel, install them elsewhere, run the quick start from there
	@scripts/ensure-servers redis-server || test "$$CI" != true
	$(BIN)/python scripts/dist_check.py $(DIST_PYTHONS)

chaos: $(DEV)  ## kill -9 at random, with and without celery_graceful; CHAOS_KILLS=50 takes 3 minutes
	@scripts/ensure-servers || test "$$CI" != true
	$(BIN)/python -m tests.chaos

soak: $(DEV)  ## replace workers by SIGTERM without end, under load; 8 minutes (SOAK_SECONDS=10: 2 minutes)
	@scripts/ensure-servers || test "$$CI" != true
	$(BIN)/python -m tests.soak

suites: $(DEV)  ## Celery's own tests, plain and with celery_graceful; SUITES=quick takes 4 minutes
	@scripts/ensure-servers || test "$$CI" != true
	@# Celery says of some tests that they are flaky, and how often they are to be run again: so they are.
	$(pip_install) cryptography freezegun pytest-click pytest-rerunfailures pytest-subtests tblib
	$(BIN)/python -m tests.suites

bench: $(DEV)  ## run the benchmarks, side by side with plain Celery; docs/benchmarks.md gets what has a place there
	@scripts/ensure-servers || true
	$(pip_install) --editable '.[bench]'
	$(BIN)/python -m benchmarks --write

bench-check: $(DEV)  ## compare with the commit before: fails under 0.95 of its speed; BASE=v1.0 another one; COUNTS=1 is quick
	@scripts/ensure-servers redis-server || test "$$CI" != true
	$(BIN)/python -m benchmarks.check $(if $(COUNTS),--counts) $(or $(BASE),HEAD~1)

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(TYPED) .venv-oldest .suites .tox build dist docs/_build *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing a new venv gets: without it, the venv is not whole.
make_venv = test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
pip_install = $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(USE): setup.cfg pyproject.toml
	$(make_venv)
	$(pip_install) --editable .
	@touch $@

$(DEV): setup.cfg pyproject.toml
	$(make_venv)
	$(pip_install) --editable '.[test,lint]' $(if $(CELERY),'celery[redis]==$(CELERY).*') $(if $(HIREDIS),hiredis)
	$(pip_install) --no-deps celery-batches  # it would bring Celery 5.6 along, and works with 5.7
	@touch $@ $(USE)

$(DOCS): setup.cfg pyproject.toml
	$(make_venv)
	$(pip_install) --editable '.[docs]'
	@touch $@ $(USE)

$(DIST): setup.cfg pyproject.toml $(DEV)
	$(pip_install) --editable '.[test,lint,dist]' $(if $(CELERY),'celery[redis]==$(CELERY).*')
	@touch $@

# As users have it: the package in site-packages, where no checker looks for errors. The source as it is
# now, from a copy: setuptools leaves a build folder behind where it builds.
$(TYPED)/.installed: setup.cfg pyproject.toml $(shell git ls-files celery_graceful 2> /dev/null)
	test -x $(TYPED)/bin/pip || $(PYTHON) -m venv --clear $(TYPED)
	rm -rf $(TYPED)/source && mkdir $(TYPED)/source
	cp -R celery_graceful celery_graceful_*.py setup.cfg pyproject.toml README.md LICENSE $(TYPED)/source
	$(TYPED)/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps $(TYPED)/source
	$(TYPED)/bin/python -m pip install --quiet --disable-pip-version-check '$(TYPED)/source[lint]' 'basedpyright<1.41'
	@touch $@

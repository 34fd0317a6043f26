# The README's two commands are `make quickstart` and `make test`; both create what they need.
# VENV=DIR shares one environment between clones: PYTHONPATH makes each clone run its own sources.
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
STAMP := $(VENV)/.mst-installed-$(shell cksum pyproject.toml | cut -d' ' -f1)
OUT ?= runs/quickstart
# Test files run side by side.
JOBS ?= 2
export PYTHONPATH := $(CURDIR)/src
# Never pick up a stray torch wheel from a local wheel folder: torch and torchvision must come from one index.
export PIP_FIND_LINKS :=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install quickstart test test-slow check lint types layers docs format bench cuda versions clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 14

$(STAMP): pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e '.[detection,tiff,data,export,dev]'
	@rm -f $(VENV)/.mst-installed-* && touch $@

install: $(STAMP)  ## create the environment in $(VENV)

quickstart: install  ## pre-train on embedded data, evaluate, write report.html (minutes on 2 cores)
	$(PY) -m mst quickstart --out $(OUT) --overwrite

test: check  ## lint, types, layering, docs, then every test that is not marked slow
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-slow: install  ## the long tests
	$(PY) -m pytest -m slow

check: lint types layers docs  ## what CI checks besides the tests

lint: install
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: install
	$(PY) -m mypy

layers: install
	$(VENV)/bin/lint-imports --no-logo

docs: install
	$(PY) -m pytest -q tests/architecture

format: install  ## let ruff rewrite the sources
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: install  ## measured comparisons, each printing a ratio
	$(PY) benchmarks/train_step.py
	$(PY) benchmarks/views.py
	$(PY) benchmarks/attention.py

cuda: install  ## for whoever has a CUDA card: tests, speed, all cards, a short training; 25 minutes, docs/cuda.md
	$(PY) benchmarks/cuda.py

versions: install  ## a part of the tests with the lowest and the newest supported versions; downloads 6 GB (docs/install.md)
	PYTHONPATH=$(CURDIR)/src:$(CURDIR)/tests $(PY) -m package.versions lowest newest --work $(VENV)/versions

clean:  ## remove caches (not the environment, not runs)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build src/*.egg-info

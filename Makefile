# The few commands. `make demo` and `make test` work on a fresh machine: both set up .venv first.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# pip would compile every module of every package, half of the set-up's time. Python does it at the first import, of what
# is imported, unless it is told not to.
PIP := $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE
# A worker a core, at most four. One of them runs all tests with clusters; they start first.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

help:            ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/:/'

setup: .venv/.ready  ## .venv with the exact versions of constraints.txt

.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[platform,serving,demo,dev,docs]'
	touch $@

demo: setup      ## corpus, a local Ray cluster, both trainings on it, what was learned, portraits that speak: in demo/
	$(BIN)/python jobs/demo.py

model: setup     ## the model in the box, in hours: in demo/box/. STILLS=DIR also trains on puppets of still faces
	$(BIN)/python jobs/demo.py --size box $(if $(STILLS),--stills $(STILLS))
	rm -rf xactor/box && cp -r demo/box/model xactor/box

serve: setup     ## the page at http://127.0.0.1:8000/, with the model in the box
	$(BIN)/xactor-serve

test: setup check ## style, types, rooms and all tests
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: setup ## the tests that start no cluster and take no long: minutes, for every change
	$(BIN)/python -m pytest $(PARALLEL) -m 'not cluster and not slow and not soak'

soak: setup      ## long trials of what the tests try once: hours
	$(BIN)/python -m pytest -m soak --timeout 7200

fmt: setup       ## format and fix
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

check: setup     ## style, types and import rules, without the tests
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/lint-imports && $(BIN)/pyright

docs: setup      ## the documentation as a site in site/; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

commands: setup  ## docs/commands.md, from the commands' own help
	$(BIN)/python docs/generate_commands.py

.PHONY: docs commands help setup demo model serve test test-fast soak fmt check

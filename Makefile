# The same few commands here and in CI; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-unit test-matrix bench-one chaos chaos-odoo model mutants odoo demo demo-engine postgres postgres-stop lock clean
.SILENT:
MAKEFLAGS += --no-print-directory

# Our own servers are on this host: no proxy between.
comma := ,
export no_proxy := $(if $(no_proxy),$(no_proxy)$(comma))127.0.0.1,localhost
export NO_PROXY := $(no_proxy)

BIN := .venv/bin
ARGS ?=
ODOO_PYTHON = $(firstword $(ODOO_COMMAND) .sidestream-dev/odoo-venv/bin/python)
CODE := src tests benchmarks scripts addons

help: ## show this list
	sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: ## install what the other commands need (skipped when done)
	scripts/setup.sh

lint: setup ## style, types, import rules, file sizes, Lua, pre-commit's own file
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check --quiet $(CODE) || { echo "lint: some files are not formatted; run: make format" >&2; exit 1; }
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports --no-cache
	$(BIN)/loq check
	$(BIN)/pylint --rcfile=addons/.pylintrc addons/sidestream addons/sidestream_demo addons/test_sidestream
	$(BIN)/python scripts/lint_lua.py
	$(BIN)/pre-commit validate-config .pre-commit-config.yaml

format: setup ## format the code and mend what can be mended
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

test: setup odoo ## every test (ARGS="-k name", or a path, for some)
	scripts/test.sh $(ARGS)

test-unit: ## the unit tests, in under a minute: no server, no Odoo, only Python 3.11 or newer (ARGS="-k name")
	scripts/setup.sh python
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 tests/unit $(ARGS)

test-matrix: ## the engine's tests on Debian 12 and 13; writes docs/reference/platforms.md (as root)
	scripts/matrix.sh $(ARGS)

bench-one: setup ## one benchmark: make bench-one SCRIPT=benchmarks/latency.py
	test -n "$(SCRIPT)" -a -f "$(SCRIPT)" || { echo "bench-one: name a script, for example SCRIPT=benchmarks/latency.py" >&2; exit 2; }
	$(BIN)/python $(SCRIPT) $(ARGS)

chaos: setup odoo ## kill everything at every named point, then over Odoo's jobs, and count (under 60 minutes)
	$(BIN)/python -m tests.chaos.run $(ARGS)
	$(BIN)/python -m tests.odoo.kills $(ODOO_ARGS)

chaos-odoo: setup odoo ## 200 random kills over 2,000 jobs of a real Odoo (ARGS="--kills N --jobs N --seed N")
	$(BIN)/python -m tests.odoo.kills $(ARGS)

model: setup ## compare the Redis broker with the memory broker for 200,000 steps, 25 minutes (ARGS="--steps N --seed N --server redis7")
	$(BIN)/python -m tests.model.run --steps 200000 $(ARGS)

mutants: setup odoo ## plant known bugs and show that the tests see each
	$(BIN)/python -m tests.mutants.run $(ARGS)

odoo: setup ## unpack a real Odoo 19 here, with what it needs (ODOO_COMMAND names yours instead)
	scripts/odoo.sh

demo: export DEMO_BEGAN := $(shell date +%s.%N)
demo: setup odoo ## real Odoo orders, shipped and invoiced in the background (HOLD=no ends it by itself)
	$(ODOO_PYTHON) scripts/demo/run.py $(ARGS)

demo-engine: setup ## the engine alone: jobs survive kill -9 and an emptied Redis
	$(BIN)/python scripts/demo_engine.py $(ARGS)

postgres: setup ## start a private PostgreSQL for development and print its URL
	$(BIN)/python scripts/postgres.py start

postgres-stop: ## stop it
	test ! -x $(BIN)/python || $(BIN)/python scripts/postgres.py stop

lock: setup ## upgrade the pins and test them (ARGS="NAME..." for some, --each one by one, --outdated only shows)
	$(BIN)/python scripts/lock.py $(ARGS)

clean: postgres-stop ## remove everything that was made here, the private PostgreSQL included
	rm -rf .venv .sidestream-dev .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -prune -exec rm -rf {} + ; rm -rf src/*.egg-info

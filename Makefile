# The two commands that matter: `make up` and `make test`. `make help` lists the rest.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MINUTES ?= 10
# Tests mostly wait, so that three processes fit two cores. Each has its own servers and takes whole files of tests.
WHOLE := -n 3 --dist loadfile --no-loadscope-reorder
PEERS := .venv-peers

.DEFAULT_GOAL := help
.PHONY: help install up test proof soak fuzz matrix mutants check format demo bench bench-quick bench-real bench-scale peers sql model lock image clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F '\t' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## make .venv and install everything, pinned by hash

$(VENV)/.installed: requirements-dev.txt pyproject.toml
	@echo "install: making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "install: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "install: installing the pinned packages (half a minute to some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: install ## start everything on this machine; Ctrl-C stops it
	@exec $(BIN)/deprovisioner up

test: install ## the tests, on embedded servers (ARGS="tests/outbox -k claim": a part, in one process)
	@$(BIN)/python -m pytest $(or $(ARGS),$(WHOLE) -m "not proof")

proof: install ## what proves the promise at length: the crash matrix, a minute of soak, the long run of the model
	@$(BIN)/python -m pytest $(WHOLE) -m proof $(ARGS)

soak: install ## storms and faults for MINUTES=10, and a verdict from the servers' own records
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

fuzz: install ## schemathesis with a tenant's and an operator's token, MINUTES=10 together
	@$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(ARGS)

matrix: install ## live the crash matrix through, and write docs/guarantees.md
	@$(BIN)/python -m tests.support.crash_matrix

mutants: install ## take one guard at a time out of the product: a test must notice each
	@$(BIN)/python -m tests.support.mutants $(ARGS)

check: install ## format, lint, types, imports, migrations
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m tests.support.alembic_check

format: install ## rewrite the code as `check` wants it
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

sql: install ## every SQL statement of the product, to be pasted into psql behind `PREPARE name AS`
	@DEPROVISIONER_DATABASE_URL=postgresql://x/y DEPROVISIONER_BROKER_URL=redis://x $(BIN)/python -m tests.support.statements $(ARGS)

demo: install ## the main job on real servers, for a person to watch (under a minute)
	@$(BIN)/deprovisioner demo

bench: install ## all figures as ratios, and the peers' after `make peers` (under 10 minutes; ARGS="--write-readme")
	@$(BIN)/python -m bench --json bench/results.json $(ARGS)

bench-quick: install ## one round of less (under 90 seconds; ARGS="--only drain,api": some of it)
	@$(BIN)/python -m bench --quick $(ARGS)

bench-real: install ## 500 databases and 500 namespaces, once
	@$(BIN)/python -m bench --only real --rounds 1 --real 500 --json bench/results-real.json $(ARGS)

bench-scale: install ## what grows with the backlog, into docs/scaling.md (half an hour, 20 GB of disk)
	@$(BIN)/python -m bench.scale --json bench/scale.json $(ARGS)
	@$(BIN)/python -m bench.plots

peers: $(PEERS)/.installed ## make .venv-peers: the queues that `bench` compares with, pinned by hash

$(PEERS)/.installed: bench/peers/requirements.txt
	@echo "peers: making $(PEERS) with $$($(PYTHON) --version) (half a minute to some minutes the first time)"
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r bench/peers/requirements.txt
	@touch $@

model: ## check the protocol's model, and that it falls without each guard (needs spin and gcc)
	@docs/model/run

lock: ## pin the dependencies anew (needs uv)
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --extra mysql --extra rabbitmq --extra s3 --extra webhook pyproject.toml -o requirements.txt
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --extra dev -c requirements.txt pyproject.toml -o requirements-dev.txt
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --no-header bench/peers/requirements.in -o bench/peers/requirements.txt

image: ## the production image
	@docker build -t deprovisioner .

clean: ## remove .venv, .venv-peers and caches (not .deprovisioner: it holds data)
	@rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache *.egg-info build

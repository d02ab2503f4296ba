# Every target sets up what it needs by itself; a second run needs no network.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: help setup setup-tests protos check fix test test-fast test-sim test-mutants test-etcd test-isolation test-v2 test-node test-cluster test-long hostile chaos bench demo cluster clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

setup: ## Make .venv with everything: Python packages, the C extension, etcd
	@scripts/setup.sh

setup-tests:
	@scripts/setup.sh --witness

protos: setup ## Generate the stubs of protos/ anew
	scripts/protos.sh

check: setup ## Report: lint, format, types, drift of the stubs, layout and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	scripts/protos.sh --check
	$(PYTEST) -q tests/unit/test_imports.py tests/unit/test_layout.py tests/unit/test_packaging.py

fix: setup ## Repair what can be repaired by a program: lint, format, stubs
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	scripts/protos.sh

test: setup-tests ## All tests that this machine can run (ten minutes); REQUIRE=etcd,isolation,witness forbids skips, AGAIN=yes tries failures twice
	scripts/test.sh $(if $(AGAIN),--again)

COMPUTES := not etcd and not isolation and not node and not cluster and not witness
test-fast: setup ## Unit tests, the contract on the fake etcd, 300 simulated worlds (a minute)
	$(PYTEST) -q -n auto -m "$(COMPUTES)" tests/unit tests/contract tests/simulation

test-sim: setup ## SEEDS=20000 simulated worlds: a whole cluster in one process, on virtual time
	$(BIN)/python -m tests.simulation --seeds 1-$(or $(SEEDS),2000)

test-mutants: setup ## Deliberate defects, of which each must be noticed within SEEDS=300 worlds
	$(BIN)/python -m tests.simulation.mutants --seeds $(or $(SEEDS),300)

test-etcd: setup-tests ## What needs etcd: the client, the store, the contract on the real one
	$(PYTEST) tests/contract tests/etcd_live

test-isolation: setup ## What needs root and cgroups: sandboxes, limits, leaks
	$(PYTEST) tests/isolation_live

test-v2: setup ## The same on control groups of version 2, in an emulated guest; ARGS= chooses tests (tests/guest/README.md)
	REQUIRE=$${REQUIRE-isolation,v2,guest} $(BIN)/python -m tests.guest -- $(PYTEST) -p no:cacheprovider \
		--timeout 1800 -o faulthandler_timeout=1700 $(or $(ARGS),tests/isolation_live tests/hostile)

test-node: setup ## Whole nodes: API, command line, restart, kill -9
	$(PYTEST) tests/node_live

test-cluster: setup ## Clusters of nodes in network namespaces: faults by pid, signal and link (5 minutes)
	$(PYTEST) tests/cluster_live

test-long: setup-tests ## What takes hours: more rounds of cluster tests, each second line of the model in each scenario
	$(PYTEST) -m long tests

hostile: setup ## COUNT=10000 tasks, a third of them hostile: what becomes of each, and of the machine (10 minutes)
	$(BIN)/python -m tests.hostile.ten_thousand --count $(or $(COUNT),10000) $(if $(SEED),--seed $(SEED))

chaos: setup ## Faults at random on a cluster under load; MINUTES=10, SEED=17 repeats one (tests/chaos/README.md)
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

bench: setup ## Measure, beside xargs on the same machine, into docs/benchmarks.md
	$(BIN)/python -m bench

demo: setup ## Start a node and hash and compress several hundred files with it
	@$(BIN)/python -m examples.demo

cluster: setup ## Three nodes on this machine, each with a network of its own, and a live view; needs root
	@$(BIN)/python -m examples.cluster $(ARGS)

clean: ## Remove everything that was made here, .venv too
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f isolation/_sandbox*.so

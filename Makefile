# Two commands are enough for a newcomer: `make demo` and `make test`.
# Everything is installed into .venv from requirements with hashes; uv is used where it is on PATH.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
PYTEST := $(RUN) pytest

.DEFAULT_GOAL := help
.PHONY: help demo up test check bench bench-gateway bench-routing chaos soak-payments recipes docs lock test-browser test-ray test-anvil test-postgres openai-suite test-clients test-x402-npm setup setup-test clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 15

setup: $(VENV)/.runtime
setup-test: $(VENV)/.test

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml
	@sh scripts/setup.sh "$(PYTHON)" "$(VENV)" requirements/runtime.txt
	@touch $@

$(VENV)/.test: requirements/test.txt pyproject.toml
	@sh scripts/setup.sh "$(PYTHON)" "$(VENV)" requirements/test.txt
	@touch $@ $(VENV)/.runtime

demo: setup ## set up and show one paid inference, end to end
	@$(BIN)/inferpool demo

up: setup ## set up and leave a pool running on this machine
	@$(BIN)/inferpool up

test: setup-test ## set up and run every test that needs no special machine
	@$(PYTEST) -n 2 --dist loadscope
	@sh scripts/groups.sh

check: setup-test ## what CI checks besides the tests: style, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

recipes: setup ## run every recipe in its small form through one pool, with reports
	@$(BIN)/inferpool recipe run --small --out recipe-reports

bench: setup-test ## measure: the network tax of chat and tensors, paid
	@$(RUN) bench.tax

bench-gateway: setup-test ## measure the gateway beside its upstream and peers: PEERS="--peer vllm-router=PYTHON"
	@$(RUN) bench.gateway $(PEERS)

.PHONY: bench-serving
bench-serving: setup-test ## measure the node as a server, beside peers: PEERS="--peer mosec=PYTHON"
	@$(RUN) bench.serving $(PEERS)

soak-payments: setup-test ## 10,000 paid requests, 32 in flight on one channel: none may fail
	@$(RUN) bench.soak_payments

chaos: setup-test ## 200 streams by real processes while nodes are killed every few seconds
	@$(RUN) tests.faults.chaos 200

bench-routing: setup-test ## measure routing: choices, a simulated fleet, gaps after faults
	@$(RUN) bench.routing
	@$(RUN) bench.fleet
	@$(RUN) bench.faults

docs: setup-test ## refresh the generated pages and check every link
	@$(BIN)/python docs/generate.py
	@$(PYTEST) -q tests/docs

.PHONY: test-whisper
test-whisper: setup-test ## the tests that need the extras whisper and video
	@sh scripts/whisper.sh

.PHONY: test-nat
test-nat: setup-test ## a node behind NAT, in network namespaces (needs root, iproute2, nftables)
	@INFERPOOL_TEST_NAT=1 $(PYTEST) -q tests/nat

test-browser: setup-test ## tests in a real browser (group test-browser)
	@sh scripts/group.sh test-browser playwright browser

test-ray: setup-test ## tests against Ray Serve (group test-ray)
	@sh scripts/group.sh test-ray ray ray

test-anvil: setup-test ## the chain's tests against anvil (group test-anvil)
	@sh scripts/anvil.sh

test-postgres: setup-test ## the gateway's book in a real PostgreSQL (needs initdb and postgres)
	@sh scripts/postgres.sh

openai-suite: setup ## openai-python's own tests against a pool, with models that invent answers
	@sh scripts/openai_suite.sh

test-x402-npm: setup-test ## the npm client of x402 pays a node (group test-x402-npm)
	@sh scripts/x402_npm.sh

test-clients: setup ## openai-node, litellm, llm and Schemathesis against a pool
	@sh scripts/clients.sh

lock: ## resolve the requirements again (needs uv)
	@sh scripts/lock.sh

clean: ## forget the environment and every cache
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

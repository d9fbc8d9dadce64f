# Farebox. `make` or `make help` lists the targets. Everything is set up by the targets themselves.
SHELL := /bin/bash
# Set, as some images have it, every start of every process would compile the sources again.
unexport PYTHONDONTWRITEBYTECODE
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.runtime-installed
DEV_STAMP := $(VENV)/.dev-installed
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input
# pip's own bars need a terminal and fill a screen; one counting line does for both people and logs.
COUNT := awk '/^(Collecting|Requirement already)/ { n++; if (tty) printf "\r  %d packages looked at", n; fflush() } \
  /^Installing collected/ { printf "%s  installing\n", tty ? "\r" : ""; fflush() } END { if (tty) print "" }'
TTY := $(shell test -t 1 && echo 1 || echo 0)
ARGS ?=
# Most tests wait most of the time, so more workers than cores. WORKERS=0 runs all in one process (for a debugger).
WORKERS ?= 4
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev compile run up test test-long test-fast check fmt sim bench lock clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) compile ## Install the platform into .venv (afterwards .venv/bin/farebox)

setup-dev: $(DEV_STAMP) ## setup, and what the tests and checks need

compile: $(STAMP) ## Compile the gateway's hot modules (about a minute, once for each change of them)
	@status=0; $(BIN)/python -m functions.gateway.compiling || status=$$?; test $$status = 0 -o $$status = 3

run: $(STAMP) compile ## Catalog to invoice on this machine with a real model; ARGS=--once ends after the preview
	@exec $(BIN)/farebox demo $(ARGS)

up: $(STAMP) compile ## Start the platform in the foreground, nothing else; ARGS="--port 9000"
	@exec $(BIN)/farebox up $(ARGS)

test: $(DEV_STAMP) compile ## The tests, with a real PostgreSQL and a real vLLM
	$(PYTEST) $(or $(ARGS),-m "not long")
	$(if $(ARGS),,test ! -e $(VENV)/lib/farebox-compiled || $(PYTEST) -p tests.compiled_first tests/api/gateway/test_gateway_calls.py \
	  tests/api/gateway/test_http_conformance.py tests/api/gateway/test_gateway_hang_ups.py tests/unit/test_admission_chains.py)

test-long: $(DEV_STAMP) compile ## What takes minutes by itself: docs/online-models.md as printed, with scikit-learn, MLflow and vLLM
	$(PYTEST) -m long $(ARGS)

test-fast: $(DEV_STAMP) ## The tests that start no engine and kill no process
	$(PYTEST) -m "not engine and not crash" $(ARGS)

check: $(DEV_STAMP) ## ruff, mypy strict, import-linter, the repository's own tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/repo
	found=$$($(BIN)/python -m pytest --collect-only --quiet) || { echo "$$found"; exit 1; }  # leaves their bytecode, too

fmt: $(DEV_STAMP) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sim: $(DEV_STAMP) ## Simulate the platform with seeded faults; ARGS="--seeds 1000" or ARGS="--seed 42"
	$(BIN)/python -m tests.sim $(ARGS)

bench: $(DEV_STAMP) compile ## Measure the gateway beside Envoy, nginx and LiteLLM (see docs/performance.md)
	$(BIN)/python -m bench $(ARGS)

lock: ## Resolve the lock files anew (needs uv)
	uv pip compile --universal --python-version 3.11 --quiet --extra compile --extra demo --extra postgres --extra redis --extra stripe --extra tokenizers \
	  --no-emit-package farebox --no-emit-package farebox-platform pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --quiet --extra compile --extra demo --extra postgres --extra redis --extra stripe --extra tokenizers --group dev \
	  --constraint requirements.lock \
	  --no-emit-package farebox --no-emit-package farebox-platform pyproject.toml -o requirements-dev.lock

clean: ## Remove .venv and the caches (not the state in FAREBOX_HOME)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)))' \
	  || { echo "Farebox needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 setup" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "python -m venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# A stamp is touched only after its whole recipe went through, so an interrupted set-up is simply repeated.
$(STAMP): requirements.lock pyproject.toml sdk/pyproject.toml | $(BIN)/python
	@echo "Installing the platform (about 20 s)"
	@$(PIP_INSTALL) -r requirements.lock | $(COUNT) tty=$(TTY)
	@$(PIP_INSTALL) --quiet --no-deps -e sdk -e .
	@touch $@

$(DEV_STAMP): requirements-dev.lock $(STAMP)
	@echo "Installing what the tests need"
	@$(PIP_INSTALL) -r requirements-dev.lock | $(COUNT) tty=$(TTY)
	@touch $@

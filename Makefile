# The two commands: `make demo` shows the whole loop, `make test` runs the tests. Both set up .venv first, once.
.DEFAULT_GOAL := help
PY := .venv/bin/python
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv, once; again only when the lock changes
	@sh deploy/setup.sh

demo: setup  ## the whole loop on this machine: chat, feedback, training, gates, canary, promotion, rollback
	@$(PY) -m examples.demo --backend $(or $(BACKEND),local)

# Three at once on two cores: half of a test's time is waiting for servers.
test: setup  ## all tests, fast ones first
	@$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests/unit tests/contract tests/integration tests/e2e

check: setup  ## format, lint, types, layers
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

seldon: setup  ## make the environments of Seldon's own servers, once; then `make demo BACKEND=seldon` works
	@sh deploy/seldon/setup.sh

up: setup  ## start the stack for real use, with Airflow and its UI
	@.venv/bin/hone up

down:  ## stop whatever `make up` or an interrupted `make demo` left
	@if [ -x .venv/bin/hone ]; then .venv/bin/hone down; fi

bench: setup  ## every benchmark; one JSON object each
	@for name in $$(grep -l __main__ benchmarks/*.py); do $(PY) -m benchmarks.$$(basename $$name .py) --json; done

chaos-ingest: setup  ## break ingest 200 times under a million messages: lost/extra = 0/0 (SEED=n repeats one)
	@$(PY) -m benchmarks.ingest_chaos --json $(if $(SEED),--seed $(SEED))

.PHONY: chaos-ingest help setup demo test check seldon up down bench

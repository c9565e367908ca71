# Every target does its own set-up: a fresh machine with Python 3.11+ and nothing else is enough.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test chaos oracle up check format bench bench-peers clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

# The link lets the type checker see the repository root under its package name, whatever the checkout is called.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Hark needs Python 3.11 or later, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable '.[demo]' --group test --group lint --group bench
	@mkdir -p $(VENV)/types && ln -sfn ../.. $(VENV)/types/hark
	@# pip compiles what it copies, not a tree it links to; where Python may not write bytecode, every start would do it anew.
	@$(BIN)/python -m compileall -q -x '/(\.venv[^/]*|tests|benchmarks|build)/' .
	@touch $(STAMP)

demo: $(STAMP)  ## the main job, end to end, on an embedded broker; exits by itself
	$(BIN)/hark demo

# One process more than processors, since tests wait for what they have started: 416 s instead of 601 with two processors.
test: $(STAMP)  ## the tests
	$(BIN)/python -m pytest -q --numprocesses $$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)') --dist worksteal $(PYTEST_ARGS)

chaos: $(STAMP)  ## kill processes at the worst moment, at length
	CHAOS_ROUNDS=$${CHAOS_ROUNDS:-60} CRASH_RUNS=$${CRASH_RUNS:-200} CHAOS_KILLS=$${CHAOS_KILLS:-1000} CHAOS_ALERT_KILLS=$${CHAOS_ALERT_KILLS:-200} CHAOS_FREEZES=$${CHAOS_FREEZES:-50} $(BIN)/python -m pytest -q -m chaos --timeout 3600

oracle: $(STAMP)  ## play generated histories against a slow evaluator of rules, at length
	ORACLE_HISTORIES=$${ORACLE_HISTORIES:-20000} $(BIN)/python -m pytest -q tests/automations/test_oracle.py --numprocesses auto

up: $(STAMP)  ## serve on 127.0.0.1:4280, with hark.yaml of this folder if there is one
	$(BIN)/hark up

check: $(STAMP)  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/types $(BIN)/mypy -p hark
	MYPYPATH=$(VENV)/types $(BIN)/mypy --explicit-package-bases tests benchmarks examples

format: $(STAMP)  ## put the code in its house form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure, with the broker's raw rate in the same run
	$(BIN)/python -m benchmarks

bench-peers: $(STAMP)  ## measure beside Prefect, which is installed into an environment of its own; some minutes
	$(BIN)/python -m benchmarks.peers

clean:  ## remove everything the targets made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

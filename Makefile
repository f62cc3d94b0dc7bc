# Needs Python 3.11 or newer and make; everything else is installed into .venv.
.DEFAULT_GOAL := help
.PHONY: help demo test serve check lint audit format benchmark quality ablations faults api tables lock clean
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := flattengpt_core jobs api worker cli migrations benchmarks
TORCH := $(shell grep '^torch==' requirements.lock)
GENERATOR := $(shell grep -o 'openapi-python-client==[0-9.]*' pyproject.toml)
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

help:  ## list these commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: $(READY)  ## compress the demo model through the service, from nothing, and show what it did
	$(BIN)/python -m cli.demo

# A thread a test process: more of them wait for each other on few cores.
test: check  ## every check and every test
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

serve: $(READY)  ## the service on http://127.0.0.1:8000, for this machine only
	FLATTENGPT_AUTH=none $(BIN)/flattengpt serve

check: lint audit
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive $(PACKAGES)
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows deploy/github/compress-weekly.yaml
	$(BIN)/kubernetes-validate --strict --quiet deploy/kubernetes/flattengpt.yaml
	$(BIN)/check-jsonschema --schemafile tests/deploy/schemas/keda_scaled_object.yaml deploy/kubernetes/keda.yaml
	$(BIN)/check-jsonschema --schemafile tests/deploy/schemas/prometheus_rules.yaml deploy/prometheus/alerts.yaml

lint: $(READY)  ## style
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# Where the advisory service does not answer, or does not know the packages, that is no reason to fail.
audit: $(READY)  ## known vulnerabilities of the locked packages, where the advisory service can be asked
	@found=$$($(BIN)/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict --timeout 10 \
		--progress-spinner off 2>&1) && echo "$$found" | tail -1 || { \
		grep -q 'known vulnerabilit' <<<"$$found" && echo "$$found" && exit 1; \
		echo "NOT audited: the advisory service could not be asked ($$(tail -1 <<<"$$found" | cut -c1-200))"; }

format: $(READY)  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

benchmark: $(READY)  ## measure the main job's claims; DATA= names the folder of texts (see benchmarks/texts.py)
	$(BIN)/python -m benchmarks.main_job --data "$(DATA)"

quality: $(READY)  ## measure what each method keeps, cell by cell; hours, and goes on where it stopped; DATA= as above
	$(BIN)/python -m benchmarks.quality --data "$(DATA)"

ablations: $(READY)  ## measure the method with one thing changed at a time, for about an hour; DATA= as above
	$(BIN)/python -m benchmarks.ablations --data "$(DATA)"

faults: $(READY)  ## break everything around running jobs, for about an hour, and tally what became of them
	$(BIN)/python -m benchmarks.faults

api: $(READY)  ## measure how fast the API is with 100,000 jobs in its database, for about 15 minutes; needs wrk
	$(BIN)/python -m benchmarks.api

tables: $(READY)  ## put the benchmarks' tables into the pages
	$(BIN)/python -m benchmarks.render

# The lock names no machine: torch without its build's suffix, none of the CUDA packages, which torch pins, and not
# this folder, which the extra `dev` leads to by naming another extra.
lock: $(READY)  ## write requirements.lock anew from pyproject.toml
	$(BIN)/pip-compile --quiet --extra dev --strip-extras --no-header --no-annotate --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --output-file requirements.lock pyproject.toml
	sed -i.old -E '/^(nvidia|cuda|triton|flattengpt @)/d; s/^(torch==[0-9.]+)\+.*/\1/' requirements.lock && rm requirements.lock.old

clean:  ## remove what the commands made, but for .flattengpt, which holds your jobs and models
	rm -rf $(VENV) demo-output build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Made once, and again only when the lock or the project's metadata change. torch comes first, so that the
# build pip finds for this machine satisfies everything after it.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and was not found; set PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Installing the locked dependencies into $(VENV); the first time this takes some minutes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(GENERATOR)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

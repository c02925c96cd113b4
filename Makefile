# Everything a new machine needs: `make demo` runs the main job, `make test` passes the tests. `make` alone explains.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKSPACE ?= workspace

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-s3 test lint up down lock peers clean isolation

help:  ## Explain the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.installed isolation  ## Create .venv, install the locked dependencies, see that strangers' code can be isolated

# torch stands outside the hashed lock: a CPU machine and a GPU machine get different builds of the same version. What torch
# needs on a CPU is in the lock already, so a CPU build adds nothing.
$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, and $(PYTHON) is older: name another one with make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the locked dependencies (some minutes the first time) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --disable-pip-version-check -q torch==2.13.0
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@echo "Compiling (a minute) ..."
	@$(BIN)/python infra/compile_loops.py
	@touch $@

isolation:
	@if command -v bwrap >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing bubblewrap, which isolates submitted code ..."; \
		{ apt-get update -qq && apt-get install -y -qq bubblewrap; } >/dev/null 2>&1 \
		|| echo "bubblewrap could not be installed: submitted code will be refused on this machine."; \
	elif command -v apt-get >/dev/null; then \
		echo "Submitted code will be refused on this machine until bubblewrap is there: sudo apt-get install bubblewrap"; \
	else \
		echo "Submitted code will be refused on this machine until bubblewrap (bwrap) is installed with the system's package manager."; \
	fi

demo: setup  ## Run the main job: simulated recordings of three mice to a published ranking
	@$(BIN)/sensorium demo --root $(WORKSPACE)

demo-s3: setup  ## The same against a real S3 server on this machine
	@$(BIN)/sensorium demo --s3 --root $(WORKSPACE)-s3

test: setup lint  ## Run the linters, the type checker and the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup  ## Run ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

up: setup  ## Keep a Prefect server, its deployments and a Dask cluster running
	@$(BIN)/sensorium up --root $(WORKSPACE)

down:  ## Stop what `make up` started
	@$(BIN)/sensorium down --root $(WORKSPACE)

lock:  ## Resolve the dependencies anew (needs uv)
	@$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); d = p["project"]; \
		print("\n".join([*d["dependencies"], *d["optional-dependencies"]["dev"], *p["build-system"]["requires"]]))' \
		| grep -v '^torch==' > requirements.in
	@printf 'filelock\nnetworkx>=2.5.1\nsympy>=1.13.3\n' >> requirements.in  # torch's own needs on a CPU
	@uv pip compile requirements.in --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --quiet -o requirements.lock $(UV_OPTIONS)
	@rm requirements.in

peers: .peers/.installed  ## Create .peers, an environment with the programs that the benchmarks measure against

.peers/.installed: pyproject.toml
	@test -x .peers/bin/python || $(PYTHON) -m venv .peers
	@$(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print("torch==2.13.0", *p["optional-dependencies"]["peers"])' \
		| xargs .peers/bin/python -m pip install --disable-pip-version-check -q
	@touch $@

clean:  ## Remove the environments and the demo's workspaces
	@rm -rf $(VENV) .peers $(WORKSPACE) $(WORKSPACE)-s3

# Two commands do everything on a fresh machine:
#   make serve            environment, install, server on port 8081 with the demo model
#   make test             environment, install, all tests
# and, when you have more time:
#   make test-clients     a running server, driven by other people's clients (docs/clients.md)
# Options: PORT=9000  MODEL=folder-or-hub-id  CONFIG=configs/cpu.toml  ARGS="--n-ctx 4096"
#          PYTHON=python3.12  CONSTRAINTS=constraints-gpu.txt  TORCH_INDEX=<URL of another PyTorch wheel index>

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3
CONSTRAINTS ?= constraints-cpu.txt
TORCH_INDEX ?=
MODEL ?=
PORT ?=
CONFIG ?=
ARGS ?=

VENV := .venv
CLIENTS := .venv-clients
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(PIP) install -c $(CONSTRAINTS) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: serve test test-page test-clients wheel lint bench clean help

help:
	@sed -n '1,8s/^# \{0,1\}//p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "bitnet-serve needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "The venv module is missing. On Debian: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

# torch goes first and alone: what follows then finds it there and asks for no other build of it.
# The native CPU library is compiled here, so a change of its sources installs again.
$(VENV)/.serve: pyproject.toml $(CONSTRAINTS) $(wildcard cpu_fallback/native/*) | $(BIN)/python
	@echo "Installing bitnet-serve into $(VENV) (the first time takes a minute or two) ..."
	@$(INSTALL) torch
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.serve
	@echo "Installing the test tools into $(VENV) ..."
	@$(INSTALL) -e '.[dev]'
	@touch $@

serve: $(VENV)/.serve
	@exec $(BIN)/bitnet serve $(MODEL) $(if $(PORT),--port $(PORT)) $(if $(CONFIG),--config $(CONFIG)) $(ARGS)

test:
	@PYTHON='$(PYTHON)' MAKE='$(MAKE)' bash tests/run.sh

# The web page in headless Chromium (Debian: apt-get install chromium); skipped, with the reason, where there is none.
# PAGE_SCREENSHOTS=folder keeps pictures of it.
test-page: $(VENV)/.test
	$(BIN)/python -m pytest tests/page -rs

# Other people's clients, each set in an environment of its own beside the server's, at the versions of its lock file.
$(CLIENTS)/%/.ready: tests/clients/envs/%.txt tests/clients/envs/%.lock
	@echo "Installing the clients of $< into $(CLIENTS)/$* (the first time takes a few minutes) ..."
	@$(PYTHON) -m venv $(CLIENTS)/$*
	@$(CLIENTS)/$*/bin/python -m pip --quiet --disable-pip-version-check install -r $< -c $(word 2,$^)
	@touch $@

# node and npm come with the Python environment.
$(CLIENTS)/npm.ready: tests/clients/npm/package-lock.json $(CLIENTS)/newest/.ready
	@echo "Installing the npm clients ..."
	@PATH="$(CURDIR)/$(CLIENTS)/newest/bin:$$PATH" npm --prefix tests/clients/npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

test-clients: $(VENV)/.serve $(CLIENTS)/newest/.ready $(CLIENTS)/openai2/.ready $(CLIENTS)/npm.ready
	@bash tests/clients/run.sh $(CLIENTS)

wheel: $(VENV)/.serve
	@rm -rf dist
	@$(PIP) wheel --no-deps --wheel-dir dist .
	@$(BIN)/python tools/check_wheel.py dist/*.whl

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks.serving

clean:
	rm -rf $(VENV) $(CLIENTS) tests/clients/npm/node_modules build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

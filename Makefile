# Everything a person or CI does here. Needs Python >= 3.11, make and git; the rest comes hash-pinned into .venv.

PYTHON ?= python3
ARGS ?=
# Test files at a time; a debugger wants 0.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MYPY_TARGETS := wavemesh control superhub storehub device edgectl lab bench tools tests

.PHONY: help setup lint format test demo bench kills crashpoints recordings proto baseline reference lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

setup: $(STAMP)  ## a virtualenv in .venv with everything, pinned and hash-checked

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV) || { echo "python -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
		--requirement constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

lint: $(STAMP)  ## style, types, import contracts, wire contract, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(MYPY_TARGETS)
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf breaking --against proto/baseline.binpb
	$(BIN)/python -m tools.stubs --check
	$(BIN)/python -m tools.reference --check

format: $(STAMP)  ## ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP)  ## all tests; ARGS="tests/unit/policy -k windows"; with CI=true a skipped test fails
	$(BIN)/python -m pytest -p tests.ci_skips --numprocesses=$(WORKERS) --dist=loadfile $(ARGS)

demo: $(STAMP)  ## the whole fleet on this machine; ARGS="--seed 7 --fault pos-03:battery"
	$(BIN)/edgectl lab demo $(ARGS)

bench: $(STAMP)  ## the short set, beside floors and peers, as JSON: 300 sessions, transfers of 64 MiB
	$(BIN)/python -m bench sessions --devices 300 --json -
	$(BIN)/python -m bench transfer --size-mib 64 --rounds 3 --json -

kills: $(STAMP)  ## kill -9 of each tier at ten moments of the demo's wave; ARGS="--moments 1"
	$(BIN)/python -m tests.kills $(ARGS)

crashpoints: $(STAMP)  ## the power cut around every durable step of a device, and again in each recovery; ARGS="--component storehub"
	$(BIN)/python -m tests.crashpoints $(ARGS)

recordings: $(STAMP)  ## record what this version says and keeps, for later ones to replay; ARGS="--version 0.1.0"
	$(BIN)/python -m tests.recordings $(ARGS)

proto: $(STAMP)  ## generate wavemesh/v1 from proto
	$(BIN)/python -m tools.stubs

baseline: $(STAMP)  ## take the wire contract as it is for the one not to break; a decision, never a routine
	$(BIN)/buf build --exclude-source-info --output proto/baseline.binpb

reference: $(STAMP)  ## write the generated pages of docs/reference
	$(BIN)/python -m tools.reference

lock: $(STAMP)  ## resolve the dependencies anew into constraints.txt
	$(BIN)/python -m pip install --quiet pip-tools
	$(BIN)/python -m tools.lock

clean:  ## forget .venv and all caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

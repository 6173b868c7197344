# Every target sets up what it needs: a virtual environment with the locked packages, made once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
ONCE   ?=
RUNS   ?= 1000
TARGET ?= lines

.PHONY: demo screenshots test soak faults contract guards wear fuzz fuzz-guided chaos effort bench bench-gossip bench-fairness bench-million bench-store bench-backlog bench-retention bench-peers docs lint lock wheel clean

demo: $(READY)  ## two seeds and two users, for real, on this machine; ONCE=1 ends by itself
	@$(BIN)/mesh demo $(if $(ONCE),--once)

test: $(READY)  ## the whole suite
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

soak: $(READY)  ## random operations on small meshes; RUNS=1000
	$(BIN)/python -m bench.soak --runs $(RUNS)

faults: $(READY)  ## messages under random faults of everything, in a fake world; RUNS=1000
	$(BIN)/python -m bench.faults --runs $(RUNS)

contract: $(READY)  ## whether a node does what its /openapi.json says; ARGS="--examples 20"
	$(BIN)/python -m bench.contract $(ARGS)

guards: $(READY)  ## whether each line of the threat model has a test that can fail
	$(BIN)/python -m bench.guards $(ARGS)

wear: $(READY)  ## what those who are served notice of thousands who only hold connections; ARGS="--seconds 5"
	$(BIN)/python -m bench.wear $(ARGS)

fuzz: $(READY)  ## 2,000,000 lines and 500,000 bodies that nobody should send; ARGS="--lines 100000 --bodies 1000"
	$(BIN)/python -m bench.fuzz $(ARGS)

fuzz-guided: $(READY)  ## the same by coverage; TARGET=lines, deliver or http, RUNS=1000
	$(BIN)/python -m bench.fuzz_guided $(TARGET) -runs=$(RUNS)

effort: $(READY)  ## speed without a clock, against what is on record; ARGS=--write records anew
	$(BIN)/python -m bench.effort $(ARGS)

bench: $(READY)  ## how fast everything is, beside what the machine allows; ARGS=--quick, ARGS="--only lookups,sends"
	$(BIN)/python -m bench.suite $(ARGS)

bench-gossip: $(READY)  ## what docs/benchmarks.md shows of gossip, simulated anew; ARGS=--quick
	$(BIN)/python -m bench.gossip $(ARGS)

bench-million: $(READY)  ## a million names in one seed, for real; ARGS=--quick
	$(BIN)/python -m bench.million $(ARGS)

bench-store: $(READY)  ## how fast messages get onto this machine's disk; ARGS="--directory DIR"
	$(BIN)/python -m bench.store $(ARGS)

bench-backlog: $(READY)  ## 100,000 messages for someone who is away, for real; ARGS="--messages 10000"
	$(BIN)/python -m bench.backlog $(ARGS)

bench-retention: $(READY)  ## an inbox of 300,000 messages is emptied, for real; ARGS="--messages 20000"
	$(BIN)/python -m bench.retention $(ARGS)

bench-directory: $(READY)  ## ten million names in a Redis Cluster, 13 GB of memory; ARGS="--names 1000000"
	$(BIN)/python -m bench.directory $(ARGS)

bench-fairness: $(READY)  ## one quiet client beside many that pipeline, for real
	$(BIN)/python -m bench.fairness $(ARGS)

bench-peers: $(READY)  ## what could be used instead, on the same work, as root; ARGS=--quick, ARGS="--only redis,ours"
	$(BIN)/python -m bench.peers $(ARGS)

screenshots: $(READY)  ## the pictures of docs/page.md, taken anew in a real Chromium
	$(BIN)/python -m bench.screens $(ARGS)

chaos: $(READY)  ## 50,000 messages through nodes that are killed all the time; ARGS="--messages 5000"
	$(BIN)/python -m bench.chaos $(ARGS)

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## the documents as a site, in build/site/html
	$(BIN)/python -m docs.site $(ARGS)

wheel: $(READY)  ## dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

lock: $(READY)  ## take up newer versions within the bounds of setup.py
	$(BIN)/pip install --quiet pip-tools
	CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/pip-compile --quiet --upgrade --extra dev --allow-unsafe --generate-hashes \
	    --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.lock setup.py

$(READY): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "meshproto needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	@echo "setting up $(VENV) (once; a minute or two)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

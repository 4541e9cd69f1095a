# `make quickstart` and `make test` set up everything they need in .venv; both are quick when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/quickstart.yaml
SEED ?= 0
# Of the CPU build of PyTorch; pipeline dependencies come from pyproject.toml.
TORCH := 2.13.0

.PHONY: quickstart test test-cluster chaos toy lint setup clean

quickstart: setup
	$(BIN)/setbacks run $(CONFIG)

test: setup
	$(BIN)/python -m pytest

# Over several machines, made of network namespaces: needs root. A quarter of an hour.
test-cluster: setup
	$(BIN)/python -m pytest tests/cluster

# Kills at random, and a comparison with the undisturbed run: `make chaos SEED=1`. A quarter of an hour.
chaos: setup
	$(BIN)/python -m tests.chaos.chaos --seed $(SEED) --kills 25
	$(BIN)/python -m tests.chaos.chaos --seed $(SEED) --kills 3 --engine toy

# After a change of its recipe: trains the toy model and writes pipeline/toy/weights. Minutes.
toy: setup
	$(BIN)/python -m pipeline.toy.model

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(VENV)/.installed

# The CPU build of torch comes first, since the package index alone would bring the CUDA one with gigabytes of libraries.
# pip takes it where the local index offers it; otherwise uv fetches it from PyTorch's own CPU index.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "setbacks needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -c 'import torch' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend cpu 'torch==$(TORCH)'
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -e '.[cpu,test]'
	touch $@

clean:
	rm -rf $(VENV) runs *.egg-info .pytest_cache .ruff_cache .hypothesis

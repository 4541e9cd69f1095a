# `make quickstart` and `make test` set up everything they need in .venv; both are quick when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/quickstart.yaml
SEED ?= 0
# What is installed first: uv, and the CPU build of PyTorch. Everything else stands in requirements.lock, which `make lock` writes.
UV := 0.13.9
TORCH := 2.13.0
# uv's wheel is kept where the toy model is, so that another clone needs no network.
WHEELS := $(or $(SETBACKS_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/setbacks)/wheels

.PHONY: quickstart test test-cluster chaos lint setup lock clean

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

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(VENV)/.installed

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps
LOCKED := --require-hashes --only-binary :all: -r requirements.lock

# Each step tries uv's cache first: the second time, and in a second clone, nothing needs the network.
# torch is not in the lock, since the package index has only its CUDA build, with gigabytes of libraries: pip takes the CPU build if an
# index that it is configured for offers one; otherwise uv fetches it from PyTorch's own CPU index.
$(VENV)/.installed: pyproject.toml requirements.lock $(BIN)/uv
	$(INSTALL) --offline --torch-backend cpu 'torch==$(TORCH)' 2>/dev/null \
		|| $(PIP) install --retries 1 --no-deps 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(INSTALL) --torch-backend cpu 'torch==$(TORCH)'
	$(INSTALL) --offline $(LOCKED) 2>/dev/null || $(INSTALL) $(LOCKED)
	$(INSTALL) --offline --no-build-isolation -e .
	touch $@

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.platform != "linux")' \
		|| { echo "setbacks needs Linux and Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(PIP) install --no-index --find-links $(WHEELS) --require-hashes -r $(VENV)/uv.txt 2>/dev/null \
		|| { $(PIP) download --no-deps --dest $(WHEELS) --require-hashes -r $(VENV)/uv.txt \
		&& $(PIP) install --no-index --find-links $(WHEELS) --require-hashes -r $(VENV)/uv.txt; }

# Of what is locked, only what pyproject.toml no longer allows changes; `make lock UPGRADE=--upgrade` takes the newest of everything.
# Resolved with the torch of the package index, which then is cut out with what only GPUs need; what its CPU build needs stays.
lock: $(BIN)/uv
	echo 'torch==$(TORCH)' > $(VENV)/torch.txt
	echo 'uv==$(UV)' | $(BIN)/uv pip compile --quiet pyproject.toml - --extra cpu --extra test --overrides $(VENV)/torch.txt $(UPGRADE) \
		--universal --python-version 3.11 --only-binary :all: --generate-hashes --no-annotate --no-header --output-file requirements.lock
	sed -i -E -e '/^(torch|triton|intel-cmplr-lib-ur|cuda-[a-z]+|nvidia-[a-z0-9-]+)==/,/[^\\]$$/d' requirements.lock
	sed -i -e '1i # `make lock` writes this from pyproject.toml: what its dependencies and the extras cpu and test install on Linux, and uv.' \
		-e '1i # Left out are torch, which `make setup` installs first as its CPU build, and what only GPUs need: triton, cuda-*, nvidia-*,' \
		-e '1i # intel-cmplr-lib-ur. So the list is installed with --no-deps.' \
		requirements.lock

clean:
	rm -rf $(VENV) runs *.egg-info .pytest_cache .ruff_cache .hypothesis

# `make quickstart` and `make test` set up everything they need in .venv; both are quick when it is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= configs/quickstart.yaml
SEED ?= 0
JOBS ?= 2
# What is installed first: uv, and the CPU build of PyTorch. Everything else is in requirements.lock.
UV := 0.13.9
TORCH := 2.13.0
# uv's wheel is kept here, so that another clone needs no network.
WHEELS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/setbacks/wheels

# Python writes bytecode when it first imports a module; compiling everything that is installed would take
# four times as long. If the shell forbids bytecode, each process of a run compiles its imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test test-long test-cluster test-gpu test-all chaos toy reference docs tools lint setup
.PHONY: lock clean

quickstart: setup
	$(BIN)/setbacks run $(CONFIG)

# Files run beside each other, JOBS at a time: an engine and a trainer each take 2 to 3 GiB. Most tests wait
# for processes that start on one core, so two files on two cores take little more time than one.
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) $(ONLY)

# Tests that take long and seldom fail alone: the toy model made anew, more kills, rarer faults.
test-long: setup
	$(PYTEST) -m long -o faulthandler_timeout=2400

# Over several machines, made of network namespaces: needs root.
test-cluster: setup
	$(BIN)/python -m pytest tests/cluster

# On a machine with a GPU: `make PYTHON=python test-gpu`, where python has the extras gpu, qlora and test. What
# `make setup` installs is built for CPUs.
test-gpu:
	$(PYTHON) -m pytest tests/gpu

test-all: test test-long test-cluster

# Kills at random, and a comparison with the undisturbed run: `make chaos SEED=1`. A quarter of an hour.
chaos: setup
	$(BIN)/python -m tests.chaos.chaos --seed $(SEED) --kills 25
	$(BIN)/python -m tests.chaos.chaos --seed $(SEED) --kills 3 --engine toy

# After a change of its recipe: trains the toy model and writes pipeline/toy/weights. Minutes.
toy: setup
	$(BIN)/python -m pipeline.toy.model

# After a change of the configuration's fields: writes docs/configuration.md and docs/*.schema.json.
reference: setup
	$(BIN)/python -m pipeline.commands.reference

# The pages of docs/ as a site, in site/.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Two programs of Debian that no package index has, for the tests of alerts and of the batch script.
tools: setup
	cd $(VENV) && apt-get download prometheus shellcheck && for file in *.deb; do dpkg -x $$file debian; done
	cp $(VENV)/debian/usr/bin/promtool $(VENV)/debian/usr/bin/shellcheck $(BIN)
	rm -r $(VENV)/debian $(VENV)/*.deb

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy pipeline

setup: $(VENV)/.installed

PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps
LOCKED := --require-hashes --only-binary :all: -r requirements.lock

# Each step tries uv's cache first: the second time, and in a second clone, nothing needs the network. torch
# is not in the lock, since the package index has only its CUDA build, with gigabytes of libraries: pip
# takes the CPU build if an index that it is configured for offers one; otherwise uv fetches it from
# PyTorch's own index.
$(VENV)/.installed: pyproject.toml requirements.lock $(BIN)/uv
	$(INSTALL) --offline --torch-backend cpu 'torch==$(TORCH)' 2>/dev/null \
		|| $(PIP) install --retries 1 --no-deps 'torch==$(TORCH)+cpu' 2>/dev/null \
		|| $(INSTALL) --torch-backend cpu 'torch==$(TORCH)'
	$(INSTALL) --offline $(LOCKED) 2>/dev/null || $(INSTALL) $(LOCKED)
	$(INSTALL) --offline --no-build-isolation -e .
	touch $@

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) or sys.platform != "linux")' \
		|| { echo "setbacks needs Linux and Python 3.11 to 3.14: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(PIP) install --no-index --find-links $(WHEELS) --require-hashes -r $(VENV)/uv.txt 2>/dev/null \
		|| { $(PIP) download --no-deps --dest $(WHEELS) --require-hashes -r $(VENV)/uv.txt \
		&& $(PIP) install --no-index --find-links $(WHEELS) --require-hashes -r $(VENV)/uv.txt; }

# A locked version changes only if pyproject.toml no longer allows it; `make lock UPGRADE=--upgrade` takes
# the newest. Resolved with the torch of the package index, which then is cut out, with what only GPUs need:
# what the CPU build needs stays. torchvision is for GPUs too: beside a CPU torch, the build that the index
# has breaks `import transformers`.
lock: $(BIN)/uv
	printf '%s\n' 'torch==$(TORCH)' "torchvision; sys_platform == 'never'" > $(VENV)/torch.txt
	echo 'uv==$(UV)' | $(BIN)/uv pip compile --quiet $(UPGRADE) --output-file requirements.lock \
		pyproject.toml - --extra cpu --extra docs --extra test --overrides $(VENV)/torch.txt \
		--universal --python-version 3.11 --only-binary :all: --generate-hashes --no-annotate --no-header
	sed -i -E '/^(torch|triton|intel-cmplr-lib-ur|(cuda|nvidia)-[a-z0-9-]+)==/,/[^\\]$$/d' requirements.lock
	sed -i \
		-e '1i # `make lock` writes this: what pyproject.toml and its extras cpu, docs and test need on Linux, and uv.' \
		-e '1i # torch is left out, whose CPU build `make setup` installs first, and so is what only GPUs need:' \
		-e '1i # triton, cuda-*, nvidia-*, intel-cmplr-lib-ur. So this is to be installed with --no-deps.' \
		requirements.lock

clean:
	rm -rf $(VENV) runs site *.egg-info .pytest_cache .ruff_cache .hypothesis

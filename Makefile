# Every target sets up what it needs: a virtual environment with the tested versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# SAEBench wants older numpy and datasets than we have.
SAEBENCH_VENV := .venv-saebench
SAEBENCH_BIN := $(SAEBENCH_VENV)/bin

.PHONY: quickstart test saebench-test check dist-check benchmark saelens-options clean

quickstart: $(VENV)/installed
	$(BIN)/sae-lens-hierarchical quickstart --force

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope

saebench-test: $(SAEBENCH_VENV)/installed
	$(SAEBENCH_BIN)/python -m pytest --numprocesses auto --dist loadscope \
	    tests/saebench 'tests/test_notebooks.py::test_notebook_runs[saebench]'

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

dist-check: $(VENV)/installed-dev
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python scripts/check_dist.py dist

benchmark: $(VENV)/installed
	$(BIN)/python benchmarks/loss_cpu.py

# The list of SAELens's options that train --help shows, after another SAELens is installed.
saelens-options: $(VENV)/installed
	$(BIN)/python scripts/saelens_options.py

$(VENV)/installed: pyproject.toml constraints.txt constraints-common.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# PyPI's torchvision is built for CUDA: beside a CPU torch transformers cannot import it.
$(SAEBENCH_VENV)/installed: pyproject.toml constraints-saebench.txt constraints-common.txt
	$(PYTHON) -m venv $(SAEBENCH_VENV)
	$(SAEBENCH_BIN)/python -m pip install --quiet --upgrade pip
	$(SAEBENCH_BIN)/python -m pip install --constraint constraints-saebench.txt \
	    --editable '.[saebench,dev]'
	$(SAEBENCH_BIN)/python -m pip uninstall --yes torchvision
	touch $@

clean:
	rm -rf $(VENV) $(SAEBENCH_VENV) dist

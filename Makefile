# `make run` trains a Vietnamese mixture of experts here; `make test` runs the tests. Both make .venv
# first. PYTHON names the interpreter (3.11 or newer), CONFIG another config to run.
PYTHON ?= python3
CONFIG ?= configs/moe_small.py
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Large pages for XLA's buffers: without them every step on a CPU takes thousands of page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: run test test-all cover lint bench clean

run: $(VENV)/.installed
	$(BIN)/python -m vimoe_jax.data.prepare --dataset=viscenes --data_dir=data
	$(BIN)/python -m vimoe_jax.main --config=$(CONFIG)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

cover: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --cov --cov-report=term

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.spine
	$(BIN)/python -m benchmarks.moe_layer --shapes=small --dtype=float32
	$(BIN)/python -m benchmarks.input_pipeline --train
	$(BIN)/python -m benchmarks.questions

clean:
	rm -rf $(VENV) .cache build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PIP) -r requirements-dev.txt
	touch $@

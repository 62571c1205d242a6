# Two commands for a fresh machine with Python 3.11+, make and PyPI:
#   make demo   trains an LSTM and a BN-LSTM on real digits, prints the table, saves runs/demo/curves.png
#   make test   every test but the slow ones
# Both make the same environment, .venv/, once.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help demo test test-slow lint types format peers accelerators notebooks docs clean

help:
	@sed -n 's/^#   //p' Makefile

# The stamp is newer than pyproject.toml exactly when the environment is up to date. An older pip
# than 25.1 cannot install groups.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "normjax needs Python 3.11 or newer and found %d.%d: run make PYTHON=/path/to/python3.11" % v[:2])'
	@test -e $@ || echo "Making $(VENV) (1 to 3 minutes) ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	$(PY) -m pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@

demo: $(STAMP)
	$(PY) -m experiments.demo --workdir=runs/demo

# Compiling is most of the time: XLA's optimizer is left out, but for tests marked `optimized`.
test: $(STAMP)
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PY) -m pytest -n auto -m 'not slow'

# Single tests of a minute stand side by side in their files: a worker that is done takes over
# others' rest.
test-slow: $(STAMP)
	$(PY) -m pytest -n auto --dist worksteal -m slow

# The libraries that some tests and the benchmarks compare with (torch, Haiku, Equinox). A CPU
# needs no CUDA build of torch: make peers TORCH=torch==VERSION, from an index that has one.
TORCH ?= torch
peers: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH)
	$(PY) -m pip install --quiet --disable-pip-version-check --group peers

# The compilers of a TPU (0.7 GB) and of an H100 (0.8 GB), each in an environment of its own on top
# of $(VENV): python -m benchmarks.compilers [tpu|h100] compiles for machines that are not there.
# One of them: make .accelerators/tpu/.installed (or gpu).
accelerators: .accelerators/tpu/.installed .accelerators/gpu/.installed

.accelerators/tpu/.installed: $(STAMP) benchmarks/compilers/install.py
	$(PY) -m benchmarks.compilers.install tpu
	@touch $@

.accelerators/gpu/.installed: $(STAMP) benchmarks/compilers/install.py
	$(PY) -m benchmarks.compilers.install h100
	@touch $@

lint: $(STAMP)
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m codespell_lib

types: $(STAMP)
	$(PY) -m mypy

format: $(STAMP)
	$(PY) -m ruff check --fix . ; $(PY) -m ruff format .

# Bring .py and .ipynb into step (the newer of each pair wins) and run them, outputs kept.
notebooks: $(STAMP)
	$(PY) -m jupytext --sync --execute notebooks/*.py

# The site, into docs/_build/html. Read anew each time (-E), since its pages are made from the
# code; a warning, such as a broken link or a public name on no page, is an error (-W).
docs: $(STAMP)
	$(PY) -m sphinx -E -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) .accelerators .pytest_cache .ruff_cache .mypy_cache docs/_build runs

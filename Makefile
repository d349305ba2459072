# Two commands set everything up: `make demo` and `make test`, each from a bare checkout.

PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n auto

.PHONY: demo lint check test bench chaos fuzz clean

demo: .venv/installed
	$(BIN)/python -m dtl.pipeline demo

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# For daily work: what needs no server, no browser and no patience.
check: lint
	$(PYTEST) -m "not (servers or browser or slow)"

test: lint
	$(PYTEST)

bench: .venv/installed
	$(BIN)/python -m pytest tests/bench -o addopts=-s

# Runs that are killed, suspended and cut off: `make chaos SEEDS=7` is one of them.
SEEDS ?= 0-19
chaos: .venv/installed
	$(BIN)/python -m pytest tests/chaos -s --seed $(SEEDS)

# Damaged files through everything that reads files, for an hour, or `make fuzz MINUTES=5`.
MINUTES ?= 60
fuzz: .venv/installed
	$(BIN)/python tests/fuzz/fuzzing.py $(MINUTES)

clean:
	rm -rf .venv demo

# Installed again whenever what is to be installed changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dtl needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,s3,yarn]'
	touch $@

# make demo: set-up and the main job. make test: set-up and every check. Nothing else is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One pip call installs the package and its extras, so that versions are resolved together.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable

.PHONY: demo test check lint types tests fuzz lock clean

demo: $(VENV)/.demo
	$(BIN)/overheard demo --out demo

test: $(VENV)/.test
	$(MAKE) --no-print-directory check

check: lint types tests

lint:
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

types:
	$(BIN)/pyright --pythonpath $(BIN)/python

# One thread in each process: more threads than cores slow torch a hundredfold. Each takes a stretch of neighbouring
# tests, which share what their module makes, and whoever is done first takes from the others.
tests:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal --quiet

# Spoiled files through every reader of files from outside; FUZZ_INPUTS of them through each.
FUZZ_INPUTS ?= 100000
fuzz: $(VENV)/.test
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/hostile/fuzz.py --inputs $(FUZZ_INPUTS)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "overheard needs Python 3.11.4 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml requirements.lock
	$(INSTALL) '.[synthetic]'
	touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml requirements.lock
	$(INSTALL) '.[synthetic,lm,optimisers,federated,dev]'
	touch $@ $(VENV)/.demo

# Resolve every extra anew and write down what came of it.
lock:
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet '.[synthetic,lm,optimisers,federated,speakers,dev]'
	$(VENV)-lock/bin/python -m pip freeze --exclude overheard | sed 's/+cpu//' > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache .hypothesis

# make demo: the whole story on an embedded problem. make test: lint, types, tests. Each makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow benchmarks clean

demo: $(VENV)/.installed
	$(BIN)/vqlabel demo

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal  # neighbours share fits

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# DUMP: SRe2L's tree to measure on; without one, a random dump is made.
benchmarks: $(VENV)/.baselines
	$(BIN)/python tests/benchmarks/speed.py $(DUMP)

$(VENV)/.baselines: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[baselines]'
	touch $@

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[demo,plot,test]'
	touch $@

clean:
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache

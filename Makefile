# make demo: the whole story on an embedded problem. make test: lint, types, package, tests. make docs: the site, in site/.
# make coverage: the share of lines and branches that TESTS run. Each makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

TESTS ?= tests

.PHONY: demo test test-slow package coverage docs benchmarks clean

demo: $(VENV)/.installed
	$(BIN)/vqlabel demo

test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) package
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal  # neighbours share fits

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

package: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

coverage: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal --cov --cov-report term $(TESTS)

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

# DUMP: SRe2L's tree to measure on; without one, a random dump is made.
benchmarks: $(VENV)/.baselines
	$(BIN)/python tests/benchmarks/speed.py $(DUMP)

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.baselines: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[baselines]'
	touch $@

$(VENV)/.installed: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[demo,plot,test]'
	touch $@

clean:
	rm -rf $(VENV) dist site .coverage .mypy_cache .ruff_cache .pytest_cache

# make test       fresh machine -> environment, the whole test suite
# make benchmark  fresh machine -> environment, data, weights, the small suite, the report
# make format     rewrites the code as ruff formats it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= results/quickstart

.PHONY: test benchmark format clean

$(VENV)/installed-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable $(if $(filter dev,$*),'.[dev]',.)
	touch $@

test: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow"

benchmark: $(VENV)/installed-run
	$(BIN)/instructrec benchmark benchmarks/suites/quickstart.yaml --out $(OUT)

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info

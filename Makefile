# make test       fresh machine -> environment, the whole test suite
# make test-faults  kills, damaged files and hostile input at full counts; prints attempts and survivals (README=README.md
#                   puts the table there)
# make benchmark  fresh machine -> environment, data, weights, the small suite, the report
# make format     rewrites the code as ruff formats it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= results/quickstart
FAULTS := results/faults.jsonl

.PHONY: test test-faults benchmark format clean

$(VENV)/installed-%: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable $(if $(filter dev,$*),'.[dev]',.)
	touch $@

test: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow and not faults"

test-faults: $(VENV)/installed-dev
	mkdir -p results && rm -f $(FAULTS)
	OMP_NUM_THREADS=1 INSTRUCTREC_TALLY=$(FAULTS) nice $(BIN)/pytest -q -m faults tests/faults; \
	status=$$?; $(BIN)/python tests/faults/tally.py $(FAULTS) $(if $(README),--readme $(README)); exit $$status

benchmark: $(VENV)/installed-run
	$(BIN)/instructrec benchmark benchmarks/suites/quickstart.yaml --out $(OUT)

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info

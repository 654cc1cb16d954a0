# make test       fresh machine -> environment, the whole test suite
# make test-faults  kills, damaged files and hostile input at full counts; prints attempts and survivals
#                   (README=tests/faults/README.md puts the table there)
# make test-minimum, make test-newest   the tests at the lowest and at the newest versions of what pyproject.toml allows
# make mutations  changes the core line by line (pyproject.toml says where); some test must notice; takes hours
# make lock       writes locks/*.txt, the sums of every file, from constraints.txt (needs uv)
# make benchmark  fresh machine -> environment, data, weights, the small suite, the report
# make format     rewrites the code as ruff formats it
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUITE ?= quickstart
OUT ?= results/$(SUITE)
FAULTS := $(CURDIR)/results/faults.jsonl

.PHONY: test test-faults test-minimum test-newest mutations lock benchmark format clean

# Every file is checked against the SHA-256 sums of its lock before anything of it runs. torch alone is pinned by version
# only, because its build differs between machines; its own dependencies are in the locks but for the CUDA libraries.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
$(VENV)/installed-%: pyproject.toml constraints.txt locks/%.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes --requirement locks/$*.txt
	$(PIP) --constraint constraints.txt torch
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $@

lock: .ci/lock.py constraints.txt
	$(BIN)/python .ci/lock.py

# The tests at the lowest versions that pyproject.toml allows, and at the newest: each in an environment of its own.
test-minimum test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet uv
	.venv-$*/bin/uv pip compile --quiet --python .venv-$*/bin/python --extra dev --output-file .venv-$*/versions.txt \
	    --resolution $(if $(filter minimum,$*),lowest-direct,highest) pyproject.toml
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --requirement .venv-$*/versions.txt
	.venv-$*/bin/uv pip install --quiet --python .venv-$*/bin/python --no-deps --editable .
	OMP_NUM_THREADS=1 .venv-$*/bin/pytest -q -n 2 -m "not slow and not faults and not integration"

test: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy & typed=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist worksteal -m "not slow and not faults"; tested=$$?; \
	wait $$typed && exit $$tested

test-faults: $(VENV)/installed-dev
	mkdir -p results && rm -f $(FAULTS)
	OMP_NUM_THREADS=1 INSTRUCTREC_TALLY=$(FAULTS) nice $(BIN)/pytest -q -m faults tests/faults; \
	status=$$?; $(BIN)/python tests/faults/tally.py $(FAULTS) $(if $(README),--readme $(README)); exit $$status

mutations: $(VENV)/installed-dev
	$(PIP) mutmut==3.8.1
	OMP_NUM_THREADS=1 nice $(BIN)/mutmut run --max-children 2; $(BIN)/mutmut results

benchmark: $(VENV)/installed-run
	$(BIN)/instructrec benchmark $(SUITE) --out $(OUT)

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .venv-minimum .venv-newest build mutants *.egg-info

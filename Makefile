# make demo: the main experiment on a small real model.   make test: the whole suite.   Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(if $(filter test%,$(MAKECMDGOALS)),1,)
ifeq ($(OMP_NUM_THREADS),)
unexport OMP_NUM_THREADS
endif

.PHONY: demo test test-fast test-newest test-oldest nightly records lock lint lint-page format-page chaos bench bench-gpu clean

demo: .venv/.ready
	@$(BIN)/python run.py

test: .venv/.ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: .venv/.ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# Test the newest and the oldest releases that pyproject.toml allows, without the slow tests.
test-newest:
	@$(PYTHON) tools/environment.py .venv-newest --newest
	@[ ! -x .venv-newest/bin/pytest ] || .venv-newest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-oldest:
	@$(PYTHON) tools/environment.py .venv-oldest --oldest
	@.venv-oldest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# Tests that take too long for CI: 200 kills and damaged files, then the whole suite.
nightly: chaos test

# Run every method on a tiny model and write the results that must not change; make records AGAINST=before.json compares.
records: .venv/.ready
	@mkdir -p outputs
	@OMP_NUM_THREADS=1 $(BIN)/python tests/records.py outputs/records.json $(if $(AGAINST),--against $(AGAINST))

# Resolve every dependency again and write constraints.txt.
lock:
	@$(PYTHON) tools/environment.py .venv --lock

lint: .venv/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports
	@if { command -v node && command -v npm; } >/dev/null; then $(MAKE) --no-print-directory lint-page; \
	else echo "The report's page is not checked: node and npm are not installed."; fi

# Unit tests and format of the report's page.
lint-page:
	@npm run --silent test
	@if $(MAKE) --no-print-directory node_modules/.ready; then npm run --silent lint; \
	else echo "The format of the report's page is not checked: npm cannot install prettier."; fi

format-page: node_modules/.ready
	@npm run --silent format

node_modules/.ready: package.json
	@npm install --silent --fetch-retries=1 --no-package-lock --no-audit --no-fund
	@touch $@

chaos: .venv/.ready
	@DEPTHCUT_KILLS=200 $(BIN)/python -m pytest -x tests/test_chaos.py

bench: .venv/.ready
	@$(BIN)/python bench/scores.py

bench-gpu: .venv/.ready
	@$(BIN)/python bench/healing.py

# The same versions everywhere. An interrupted set-up resumes where it stopped.
.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) tools/environment.py .venv
	@touch $@

clean:
	@rm -rf .venv .venv-newest .venv-oldest node_modules outputs

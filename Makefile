# make demo: the main job on a real small model.   make test: the whole suite.   Both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(if $(filter test test-fast,$(MAKECMDGOALS)),1,)
ifeq ($(OMP_NUM_THREADS),)
unexport OMP_NUM_THREADS
endif

.PHONY: demo test test-fast lint chaos bench bench-gpu clean

demo: .venv/.ready
	@$(BIN)/python run.py

test: .venv/.ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: .venv/.ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

lint: .venv/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright

chaos: .venv/.ready
	@DEPTHCUT_KILLS=200 $(BIN)/python -m pytest -x tests/test_chaos.py

bench: .venv/.ready
	@$(BIN)/python bench/scores.py

bench-gpu: .venv/.ready
	@$(BIN)/python bench/healing.py

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "depthcut needs Python 3.11 to 3.13, $(PYTHON) is $$($(PYTHON) -V); name another: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "this Python cannot make a virtual environment: apt install python3-venv, then the same command again"; exit 2; }
	@echo "setting up .venv (once, some minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	@rm -rf .venv outputs

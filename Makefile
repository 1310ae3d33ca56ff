# make demo   see a model forget, and then not forget (CPU, minutes, offline once set up)
# make check  lint, types and the quick tests: two minutes on two cores
# make test   lint, types and all tests
# make setup  the environment alone; the others make it when it is absent or out of date

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One process of tests a core, a file at a time. A small model is no faster on two threads.
# A process that ends in a test is not begun again: it would end there again.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --max-worker-restart 0 --dist loadfile
QUICK  := not slow and not vllm and not ray and not story and not realdata and not real

.PHONY: setup demo check test lint clean

setup: $(VENV)/.core

demo: $(VENV)/.core
	$(BIN)/replaykit quickstart

check: $(VENV)/.test lint
	$(PYTEST) -m "$(QUICK)"

test: $(VENV)/.test lint
	$(PYTEST) --durations=15

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sh tools/install.sh $(BIN)/python core
	touch $@

$(VENV)/.test: $(VENV)/.core
	sh tools/install.sh $(BIN)/python test
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

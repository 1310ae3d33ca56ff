# make demo   see a model forget, and then not forget (CPU, minutes, offline once set up)
# make test   lint, types and all tests
# make setup  the environment alone; both others make it when it is absent or out of date

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: setup demo test lint clean

setup: $(VENV)/.core

demo: $(VENV)/.core
	$(BIN)/replaykit quickstart

test: $(VENV)/.test lint
	$(BIN)/python -m pytest --durations=15

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

# The two commands of the README. Each makes .venv if it is missing, installs what it needs, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help train test lint bench docs clean

help:
	@echo "make train   train LEWEL on the embedded set (a few minutes, no GPU) and show what it learnt"
	@echo "make test    prove the op and the trainer right"
	@echo "make lint    ruff, mypy, generated documents up to date"
	@echo "make bench   the op against eager PyTorch and torch.compile on this machine"
	@echo "make docs    write the generated documents"

# The stamp is rebuilt when what it installs changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time: PyTorch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

train: $(VENV)/.installed
	$(BIN)/python -m lewel train --preset embedded/lewel_m

test: $(VENV)/.installed
	$(BIN)/python -m pytest tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks run --suite quick

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

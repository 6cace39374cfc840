# The two commands of the README. Each makes .venv if it is missing, installs what it needs, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help train test test-all test-blas quick format lint bench step budgets docs lines \
        gpu-first gpu-check gpu-tune gpu-report clean
# The machine's own Python with what it has, for the four gpu- targets: make gpu-check SYSTEM=1
SYSTEM ?=
GPU_PYTHON := $(if $(SYSTEM),$(PYTHON),$(BIN)/python)
DEVICE ?= cuda

help:
	@echo "make train   train LEWEL on the embedded set (a few minutes, no GPU) and show what it learnt"
	@echo "make test    prove the op and the trainer right, in five minutes"
	@echo "make test-all  every test there is: all cases of the GPU kernels interpreted and emulated, compile reports"
	@echo "make quick K=queue   the tests whose names match, until one fails: for while you write"
	@echo "make format  ruff writes what it can"
	@echo "make lint    ruff, mypy, generated documents up to date"
	@echo "make bench   the op against eager PyTorch and torch.compile on this machine"
	@echo "make step    what a training step of each method costs on this machine"
	@echo "make budgets   what compilers make of the GPU kernels, without a GPU, against the committed budgets"
	@echo "make docs    write the generated documents and pictures"
	@echo "make lines   lines of code by folder"
	@echo "make gpu-first   on a GPU at hand for minutes: the most valuable of the three below (nine minutes)"
	@echo "make gpu-check   on a GPU: the op's tests, and its speed (ten minutes; DEVICE=cpu rehearses, SYSTEM=1 installs nothing)"
	@echo "make gpu-tune    on a GPU: the triton kernels tuned, and their speed again (ten minutes)"
	@echo "make gpu-report  on a GPU: call overhead, the prologue, growth, whole training steps (ten minutes)"

# The stamp is rebuilt when what it installs changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time: PyTorch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@

train: $(VENV)/.installed
	$(BIN)/python -m lewel train --preset embedded/lewel_m

# A worker of one thread for each core; tests of one group go to one worker.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

test: $(VENV)/.installed
	$(PYTEST) tests -m "not thorough"

test-all: $(VENV)/.installed
	$(PYTEST) tests

# What Triton interprets is computed by numpy: it must not depend on the kernels of OpenBLAS that a processor gets.
CORES := $(if $(filter x86_64,$(shell uname -m)),Haswell $(if $(shell grep -m1 -o avx512f /proc/cpuinfo),SkylakeX))
test-blas: $(VENV)/.installed
	for core in $(CORES); do echo "OPENBLAS_CORETYPE=$$core"; \
	OPENBLAS_CORETYPE=$$core $(PYTEST) tests -k triton -m "not thorough" || exit 1; done

K ?=
quick: $(VENV)/.installed
	$(BIN)/python -m pytest tests -x -q -k "$(K)" -m "not thorough"

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m benchmarks plot --check

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks run --suite quick

step: $(VENV)/.installed
	$(BIN)/python -m benchmarks step

budgets: $(VENV)/.installed
	$(BIN)/python -m benchmarks.compiled

# Without blank lines and lines that are comments.
lines:
	@git ls-files -- '*.py' '*.h' '*.cpp' '*.cu' | grep -v '^docs/' | xargs grep -cvE '^[[:space:]]*($$|#|//)' \
	| awk -F: '{ n = split($$1, part, "/"); folder = part[1]; if (n > 2) folder = folder "/" part[2]; \
	lines[folder] += $$2 } END { for (folder in lines) { print lines[folder] "\t" folder; sum += lines[folder] } print sum "\tall" }' | sort -k2

gpu-first: $(if $(SYSTEM),,$(VENV)/.installed)
	$(GPU_PYTHON) -m benchmarks first --device $(DEVICE)

gpu-check: $(if $(SYSTEM),,$(VENV)/.installed)
	$(GPU_PYTHON) -m benchmarks check --device $(DEVICE)

gpu-tune: $(if $(SYSTEM),,$(VENV)/.installed)
	$(GPU_PYTHON) -m benchmarks tune-session --device $(DEVICE)

gpu-report: $(if $(SYSTEM),,$(VENV)/.installed)
	$(GPU_PYTHON) -m benchmarks report --device $(DEVICE)

docs: $(VENV)/.installed
	$(BIN)/python docs/generate.py
	$(BIN)/python -m benchmarks plot

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

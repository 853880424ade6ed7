# make demo    pretrain, GRPO and evaluation of a tiny model, offline, in minutes on two CPU cores (SEED=1: another one)
# make test    all tests, offline
# make lint    ruff: rules and formatting
# Each sets up .venv by itself.

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test lint clean

demo: .venv/demo-ready
	$(BIN)/python -m modeling_pure.demo --seed $(SEED)

test: .venv/dev-ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 8

lint: .venv/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/demo-ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev-ready: requirements-dev.txt .venv/demo-ready
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv runs

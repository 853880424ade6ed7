# make demo    pretrain, GRPO and evaluation of a tiny model, offline, in minutes on two CPU cores (SEED=1: another one)
# make test    the quick tests, offline: ten minutes on two cores
# make test-all  these and the slow ones: every documented command, all benchmarks, the diffs of CONTRIBUTING
# make lint    ruff: rules and formatting; mypy: types
# make floor   the model's tests on the oldest versions that it loads under
# make runtimes  exported models in llama.cpp, transformers serve, torchao and bitsandbytes (downloads them)
# Each sets up .venv by itself.

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
LLAMA_CPP := llama_cpp_python-0.3.36
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-all lint floor runtimes clean

demo: .venv/demo-ready
	$(BIN)/python -m modeling_pure.demo --seed $(SEED)

PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations 8

test: .venv/dev-ready
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

floor:
	PYTHON=$(PYTHON) tests/compat.sh

runtimes: .venv/runtimes-ready
	HF_HUB_OFFLINE=1 RUNTIMES=.venv/runtimes PYTHONPATH=$(CURDIR)/.venv/runtimes $(BIN)/python -m pytest tests/ecosystem

lint: .venv/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/demo-ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev-ready: requirements-dev.txt .venv/demo-ready
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# In a folder of their own: some of these print into every import of transformers where they are installed. Of llama.cpp
# only the converter is taken, which lies in the source of llama-cpp-python; nothing is compiled.
.venv/runtimes-ready: requirements-runtimes.txt .venv/dev-ready
	rm -rf .venv/runtimes
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/runtimes -r $<
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
		--dest .venv/runtimes llama-cpp-python==0.3.36
	mkdir .venv/runtimes/llama.cpp
	tar xzf .venv/runtimes/$(LLAMA_CPP).tar.gz -C .venv/runtimes/llama.cpp --strip-components=3 \
		$(addprefix $(LLAMA_CPP)/vendor/llama.cpp/,convert_hf_to_gguf.py conversion gguf-py)
	rm .venv/runtimes/$(LLAMA_CPP).tar.gz
	touch $@

clean:
	rm -rf .venv runs

# make demo    pretrain, GRPO and evaluation of a tiny model, offline, in minutes on two CPU cores (SEED=1: another seed)
# make test    the quick tests, offline: ten minutes on two cores
# make slow    the slow tests: every documented command, all benchmarks, the diffs of CONTRIBUTING; make test-all: both
# make mutants plants faults one at a time, and shows which the quick tests miss
# make lint    rules, formatting, types, declared imports, spelling, workflows
# make floor   the quick tests on the oldest torch and transformers; make ceiling: on the newest releases
# make wheel   wheel and sdist in dist/, installed and tested in an empty environment
# make docs    the documents as a site in build/site; fails on a broken link
# make runtimes  exported models in llama.cpp, transformers serve, torchao and bitsandbytes (downloads them)
# make space   deploy/space in headless Chromium (downloads Gradio; Chromium and its driver come from the system)
# Each target sets up .venv if needed.

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
LLAMA_CPP := llama_cpp_python-0.3.36
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test slow test-all mutants lint floor ceiling wheel docs runtimes space clean

demo: $(BIN)/pure
	$(BIN)/pure demo --seed $(SEED)

test slow floor ceiling mutants runtimes space: export HF_HUB_OFFLINE := 1
PYTEST := python -m pytest -n 2 --dist loadfile --durations 8

test: .venv/dev-ready
	$(BIN)/$(PYTEST) -m "not slow"

slow: .venv/dev-ready
	$(BIN)/$(PYTEST) -m slow

test-all: test slow

mutants: .venv/dev-ready
	$(BIN)/python -m tests.mutants

# transformers pins its own versions of these two.
FREED := huggingface_hub|tokenizers
VERSIONS_floor := s/^torch==.*/torch==2.11.*/; s/^transformers==.*/transformers==5.17.*/; s/^($(FREED))==.*/\1/
VERSIONS_ceiling := s/^(torch|transformers|trl|datasets|accelerate|peft|$(FREED))==.*/\1/

floor ceiling:
	$(PYTHON) -m venv .venv/$@
	cat requirements.txt requirements-dev.txt | sed -E '/^-r/d; $(VERSIONS_$@)' > .venv/$@/requirements.txt
	.venv/$@/bin/pip install --quiet --disable-pip-version-check --upgrade -r .venv/$@/requirements.txt
	.venv/$@/bin/python -m pytest tests/test_upstream.py
	.venv/$@/bin/$(PYTEST) -m "not slow"

runtimes: .venv/runtimes-ready
	RUNTIMES=.venv/runtimes PYTHONPATH=$(CURDIR)/.venv/runtimes $(BIN)/python -m pytest tests/ecosystem

space: .venv/space-ready
	PYTHONPATH=$(CURDIR)/.venv/space $(BIN)/python -m pytest tests/deploy/test_space.py

lint: .venv/dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/deptry .
	$(BIN)/codespell
	$(BIN)/zizmor --offline --quiet .github

# In isolated mode (-I) neither the checkout nor the tests are importable: only the installed package runs.
wheel: .venv/dev-ready
	rm -rf build dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/venv
	build/venv/bin/pip install --quiet --disable-pip-version-check --constraint requirements.txt "$$(echo dist/*.whl)[train]"
	build/venv/bin/python -I tests/wheel_smoke.py
	rm -rf build

# From copies: the generator does not follow links to folders, and README.md and docs/ link to each other.
docs: .venv/docs-ready
	rm -rf build/docs build/site
	mkdir -p build/docs
	tar cf - *.md LICENSE docs examples/README.md | tar xf - -C build/docs
	.venv/docs/bin/zensical build --strict

# PyPI's torch for Linux brings gigabytes of CUDA, which a machine without an NVIDIA GPU does not need. If PyTorch's
# index cannot be reached, the install below takes the one of the usual index.
CPU_INDEX := https://download.pytorch.org/whl/cpu
CPU_TORCH := test "$$(uname)" != Linux || command -v nvidia-smi > /dev/null || $(BIN)/pip install --quiet --no-deps \
	--disable-pip-version-check --retries 0 --timeout 15 --index-url $(CPU_INDEX) $$(grep ^torch== requirements.txt) || true

# The command line is installed last, so its presence means that the environment is complete.
$(BIN)/pure: requirements.txt
	$(PYTHON) -m venv .venv
	$(CPU_TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

.venv/dev-ready: requirements-dev.txt $(BIN)/pure
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/docs-ready: requirements-docs.txt
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# In a separate folder: once installed, some of these print at every import of transformers. Only llama.cpp's converter
# is used, from the source of llama-cpp-python; nothing is compiled.
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

.venv/space-ready: requirements-space.txt .venv/dev-ready
	rm -rf .venv/space
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .venv/space -r $<
	touch $@

clean:
	rm -rf .venv build dist runs

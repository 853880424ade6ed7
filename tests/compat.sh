#!/usr/bin/env bash
# Runs the model tests against an older transformers and torch in a throw-away virtual environment, from any directory:
#
#     tests/compat.sh                                   # the oldest we promise to load under: transformers 5.17, torch 2.11
#     TRANSFORMERS="transformers==5.20.*" tests/compat.sh -x -k packed     # another version; arguments go to pytest
#     VENV=/some/place tests/compat.sh                  # keep the environment there and use it again next time
#
# PYTHON (default python3) makes the environment. torch comes from where pip is set to look; for the smaller CPU wheels
# give TORCH_INDEX=https://download.pytorch.org/whl/cpu, and another version by TORCH="torch==2.13.0"
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${VENV:-$(mktemp -d)}"
[ -n "${VENV:-}" ] || trap 'rm -rf "$venv"' EXIT

if [ ! -x "$venv/bin/pytest" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install --quiet "${TORCH:-torch==2.11.*}" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
    "$venv/bin/pip" install --quiet "${TRANSFORMERS:-transformers==5.17.*}" pytest peft accelerate safetensors
fi

cd "$root"
"$venv/bin/python" -c 'import torch, transformers; print(f"torch {torch.__version__}, transformers {transformers.__version__}")'
"$venv/bin/python" -m pytest tests/model -q "$@"

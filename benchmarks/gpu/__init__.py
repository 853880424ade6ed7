"""Correctness, speed and a short whole run on one GPU: see `__main__`."""

import os

# `torch.cuda.is_available()` would start CUDA, after which no forked process can use it; NVML does not.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

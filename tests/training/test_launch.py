"""The launch files are what accelerate reads, and the package installs light."""

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("accelerate_configs/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_file(path):
    config = load_config_from_file(str(path))
    assert (config.num_processes == 1) == (config.distributed_type == "NO")
    assert config.num_processes % config.num_machines == 0
    assert (config.num_machines > 1) == ("node" in path.stem)
    assert config.mixed_precision == "no"  # the scripts choose bf16 themselves


def test_accelerate_starts_a_script():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    result = subprocess.run([*command, "eval_medqa.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    assert "usage: eval_medqa.py" in result.stdout

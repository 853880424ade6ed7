"""`tp_plan="auto"`: two processes with half of each projection compute the same as one."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]

# Runs in both processes of torchrun.
SHARDED = """
import sys
from pathlib import Path
import torch
import modeling_pure
from transformers import AutoModelForCausalLM

work = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(work / "model", tp_plan="auto", dtype=torch.float32)
shard = model.model.layers[0].mlp.gate_proj.weight.to_local()
assert shard.shape[0] * 2 == model.config.intermediate_size
with torch.no_grad():
    logits = model(torch.load(work / "ids.pt")).logits
torch.save(logits, work / f"logits{torch.distributed.get_rank()}.pt")
"""


def test_two_processes_compute_the_same_as_one(model, ids, tmp_path):
    model.save_pretrained(tmp_path / "model")
    torch.save(ids, tmp_path / "ids.pt")
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", tmp_path / "sharded.py", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    with torch.no_grad():
        expected = model(ids).logits
    for rank in (0, 1):
        # Only the order of partial sums differs, by fp32 rounding.
        torch.testing.assert_close(torch.load(tmp_path / f"logits{rank}.pt"), expected, rtol=0, atol=5e-5)

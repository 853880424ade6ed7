"""The document's pipeline in a process that has nothing but the checkpoint."""

import os
import subprocess
import sys

from modeling_pure.medqa.formats import format_prompt
from tests.ecosystem.conftest import python_block

READER = """
import sys
sys.modules["modeling_pure"] = None  # not installed here
prompt = sys.stdin.read()
{block}
print(type(generate.model).__module__.split(".")[0])
print(text, end="")
"""


def test_the_documented_pipeline_runs_on_the_checkpoint_alone(work, pure, gpt2, questions, tmp_path):
    block = python_block("from transformers import pipeline").replace("runs/grpo", str(work / "runs" / "grpo"))
    result = subprocess.run(
        [sys.executable, "-c", READER.format(block=block)],
        input=format_prompt(questions[0]),
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    module, text = result.stdout.split("\n", 1)
    ids = gpt2(format_prompt(questions[0]), return_tensors="pt").input_ids
    expected = gpt2.decode(pure.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :])
    assert module == "transformers_modules"
    assert text == expected

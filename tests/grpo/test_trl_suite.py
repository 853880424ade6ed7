"""TRL's own tests of its GRPO trainer, run against ours, with TRL's as the control.

They are not in TRL's wheel: `TRL_TESTS=DIR pytest tests/grpo/test_trl_suite.py` needs the folder `tests` of TRL's
repository, at about the installed release.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.grpo.trl_stand_ins import build_hub
from tests.processes import ROOT

# Beyond text in a single turn, or for other backends, or for a GPU.
OTHERS = "VLM or Slow or vllm or liger or tools or environment or tool_calls or ContinuousBatching"
BY_DESIGN = {  # replaces `generate`, which ours does not sample with
    "test_train_with_mask_truncated_completions"
}


def run_suite(who: str, folder: Path, hub: Path, tests: Path) -> set[str]:
    """Run TRL's tests with the trainer of `who`; the names of those that passed."""
    report = folder / f"{who}.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "trl_stand_ins",
        "-p",
        "no:cacheprovider",
        "-k",
        f"not ({OTHERS})",
    ]
    command += ["-c", os.devnull, "--rootdir", tests.parent, "--basetemp", folder / who, f"--junitxml={report}"]
    command += ["-o", "tmp_path_retention_policy=none", "-o", "markers=slow", tests / "test_grpo_trainer.py"]
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(hub),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "TRL_TRAINER": who,
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
    }
    subprocess.run(command, env=environment, cwd=folder, check=False)
    cases = ElementTree.parse(report).iter("testcase")
    return {f"{case.get('classname')}.{case.get('name')}" for case in cases if not len(case)}


@pytest.mark.slow
@pytest.mark.skipif("TRL_TESTS" not in os.environ, reason="needs TRL's tests, which its wheel has not")
def test_our_trainer_passes_what_trls_passes(tmp_path):
    given = Path(os.environ["TRL_TESTS"]).resolve()
    tests = given / "tests" if (given / "tests").is_dir() else given
    build_hub(tmp_path / "hub")
    theirs, ours = (run_suite(who, tmp_path, tmp_path / "hub", tests) for who in ("theirs", "ours"))
    assert len(theirs) > 80
    assert {name.rsplit(".", 1)[1] for name in theirs - ours} <= BY_DESIGN

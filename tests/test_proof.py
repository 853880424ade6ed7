"""The proof goes on where the time was up, plans from what it measures, and writes down what its runs have left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.pages import gpu
from benchmarks.proof.collect import collect_optimizers
from benchmarks.proof.data import TEXTS, ProofData
from benchmarks.proof.parts import LEARNING_RATES, PARTS, Proof, Scale, best_rate, optimizers, plan
from benchmarks.proof.stages import Stage, StageFailed, Stages, TimeIsUp
from modeling_pure.errors import InputError
from modeling_pure.training.callbacks import METRICS_FILE

ROOT = Path(__file__).parents[1]
PATIENT = """
import signal, sys, time
def save(*_):
    open({file!r}, "a").write("saved ")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open({file!r}, "a").write("began ")
time.sleep(0 if "saved" in open({file!r}).read() else 60)
"""


# ---- stages ---------------------------------------------------------------------------------------------------------


def test_a_stage_is_stopped_when_the_time_is_up_and_goes_on_with_the_next_call(tmp_path):
    file = tmp_path / "what-it-did"
    stage = Stage("patient", ("-c", PATIENT.format(file=str(file))))
    with pytest.raises(TimeIsUp, match="patient goes on"):
        Stages(tmp_path, 2).run(stage)
    stages = Stages(tmp_path, 60)
    stages.run(stage)
    assert file.read_text() == "began saved began "
    assert [(line["exit_code"], line["stopped"]) for line in stages.journal()] == [(143, True), (0, False)]
    stages.run(stage)  # done: not run again
    assert len(stages.journal()) == 2


def test_another_command_under_the_same_name_is_run(tmp_path):
    stages = Stages(tmp_path, 60)
    for number in (1, 2):
        stages.run(Stage("one", ("-c", f"print({number})")))
    assert (tmp_path / "logs/one.log").read_text() == "1\n2\n"


def test_what_cannot_go_on_is_not_begun_with_too_little_time(tmp_path):
    with pytest.raises(TimeIsUp, match="whole is next and needs 5 minutes"):
        Stages(tmp_path, 60).run(Stage("whole", ("-c", "1 / 0"), minutes=5))


def test_a_command_that_fails_ends_the_part_with_the_end_of_its_log(tmp_path):
    stages = Stages(tmp_path, 60)
    with pytest.raises(StageFailed, match=r"(?s)exit code 1.*ZeroDivisionError"):
        stages.run(Stage("broken", ("-c", "1 / 0")))
    with pytest.raises(StageFailed):  # and is tried again
        stages.run(Stage("broken", ("-c", "1 / 0")))


# ---- plan -----------------------------------------------------------------------------------------------------------


def proof_of(folder: Path) -> Proof:
    """The full size, in a folder of nothing."""
    return Proof(ProofData(folder / "data"), folder, folder / "results", Scale())


def write_run(folder: Path, speeds: list[float], loss: float = 1.0) -> None:
    """A run's log lines."""
    lines = [{"step": 10 * i, "loss": 2.0, "tokens_per_second": speed} for i, speed in enumerate(speeds, 1)]
    lines.append({"step": 10 * len(speeds), "eval_loss": loss})
    folder.mkdir(parents=True)
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_plan_is_what_the_probe_says_and_stays(tmp_path):
    proof = proof_of(tmp_path)
    write_run(tmp_path / "probe", [1000.0, 163_840.0, 163_840.0, 170_000.0])  # the first line holds the compilation
    steps = plan(proof)
    assert steps == {"tokens_per_second": 163_840, "pretrain": 3000, "optimizers": 450}
    stage = proof.pretrain("pretrain", steps["pretrain"])
    options = dict(zip(stage.command[1::2], stage.command[2::2], strict=True))
    assert options["--warmup_steps"] == "90" and options["--eval_steps"] == "250" and options["--save_steps"] == "375"
    assert proof.pack("pack", 3000).command[-1] == "48000"
    (tmp_path / "probe" / METRICS_FILE).unlink()
    assert plan(proof) == steps


def test_muon_gets_the_time_that_adamw_took(tmp_path):
    proof = proof_of(tmp_path)
    write_run(tmp_path / "probe", [1.0, 163_840.0])
    for optimizer, speed, losses in (("adamw", 160_000.0, (3.2, 3.1, 3.3)), ("muon", 128_000.0, (3.0, 2.9, 2.8))):
        for rate, loss in zip(LEARNING_RATES, losses, strict=True):
            write_run(tmp_path / f"{optimizer}-{rate:g}", [1.0, *[speed] * 44], loss)
    assert best_rate(proof, "adamw") == 1e-3 and best_rate(proof, "muon") == 3e-3
    last = list(optimizers(proof))[-1]
    options = dict(zip(last.command[1::2], last.command[2::2], strict=True))
    assert last.name == "muon-equal-time" and options["--learning_rate"] == "0.003"
    assert options["--max_steps"] == str(450 * 128 // 160)

    write_run(tmp_path / "muon-equal-time", [1.0, *[128_000.0] * 35], 2.85)
    found, pictures = collect_optimizers(proof)
    by_run = {row["run"]: row for row in found["rows"]}
    assert by_run["muon-equal-time"]["eval_loss"] == 2.85
    assert by_run["muon-equal-time"]["seconds"] == pytest.approx(by_run["adamw-0.001"]["seconds"])
    pictures["curves.png"](tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000


# ---- data -----------------------------------------------------------------------------------------------------------


def test_data_that_are_not_there_are_named_before_anything_runs(tmp_path):
    for file in ("tokenizer/tokenizer.json", "medqa/train.jsonl", *(f"pretrain/{n}_a.train.parquet" for n in TEXTS)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(InputError, match=r"no pretrain/finepdfs\*\.validation\.parquet"):
        ProofData(tmp_path).check()


def test_without_a_gpu_only_the_small_one_runs(tmp_path):
    result = run("speed", "--out", str(tmp_path / "runs"), CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 2 and "--tiny runs on a CPU" in result.stderr
    assert not (tmp_path / "runs").exists()


# ---- the whole line, in small ---------------------------------------------------------------------------------------


def run(*options: str, **environment: str) -> subprocess.CompletedProcess:
    """The command."""
    command = [sys.executable, "-m", "benchmarks.proof", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment})


def test_the_whole_line_in_small(tmp_path):
    options = ("line", "--tiny", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results"))
    first = run(*options, "--minutes", "1.05")  # three seconds: less than the first command takes
    assert first.returncode == 75, first.stdout + first.stderr
    assert "give the same command again" in first.stdout and not (tmp_path / "results/line-tiny.json").exists()
    second = run(*options)
    assert second.returncode == 0, second.stdout + second.stderr

    found = json.loads((tmp_path / "results/line-tiny.json").read_text())
    assert set(found["evaluations"]) == set(found["runs"]) == {"pretrain", "sft", "grpo"}
    assert found["data"]["dev_questions"] == found["evaluations"]["grpo"]["n"] == 544
    assert found["data"]["train_questions"] < found["data"]["train_questions_of_the_full_set"]
    assert sum(found["data"]["packed_tokens"].values()) == 128 * found["data"]["packed_rows"]
    beside = [row["name"] for row in found["evaluations"]["grpo"]["beside"]]
    assert {"always A", "BM25 over train questions", "pretrain", "sft"} <= set(beside)
    assert found["runs"]["pretrain"]["steps"] == found["plan"]["pretrain"]
    assert found["stages"][0]["stopped"] and not found["stages"][-1]["stopped"]
    for name in ("pretrain", "sft", "grpo"):
        assert (tmp_path / f"results/line-tiny-{name}.png").stat().st_size > 5000

    as_if = tmp_path / "results/line-some-gpu.json"  # a page takes no tries on a CPU
    as_if.write_text((tmp_path / "results/line-tiny.json").read_text())
    page = gpu.line(tmp_path / "results")
    assert page.count("line-some-gpu-pretrain.png") == 1 and "776 to train on, of 10,178" in page
    assert "always A | 25.0 %" in page


def test_the_checks_can_be_collected_and_are_skipped_without_a_gpu():
    command = [sys.executable, "-m", "pytest", "benchmarks/proof/gpu_checks.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "sssssss" in result.stdout, result.stdout


def test_every_part_is_a_list_of_commands_that_the_scripts_take(tmp_path):
    assert set(PARTS) == {"checks", "line", "speed", "optimizers", "exactness", "ablation"}
    write_run(tmp_path / "probe", [1.0, 163_840.0])
    for part in ("checks", "speed", "exactness", "ablation", "line"):
        for stage in PARTS[part](proof_of(tmp_path)):
            program = stage.command[1] if stage.command[0] == "-m" else stage.command[0]
            places = (program, f"{program.replace('.', '/')}.py", stage.command[-1])
            assert any((ROOT / place).is_file() for place in places), stage

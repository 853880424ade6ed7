"""Unusable rewards and records given from Python are refused or counted."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPT2Config

from modeling_pure.errors import InputError, RunStopped
from modeling_pure.grpo.prompts import prompt_dataset
from modeling_pure.medqa.rewards import Correct, LengthPenalty
from tests.grpo.conftest import GPT2_SHAPE, spread


def logged(trainer, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if "train_loss" not in line and name in line]


@pytest.mark.parametrize("nothing", [None, math.nan])
@pytest.mark.parametrize(("of_group", "share"), [(4, 1.0), (2, 0.5)])
def test_completions_without_a_reward_are_counted_and_have_no_gradient(nothing, of_group, share, make_trainer):
    def some(completions, **kwargs):
        return [nothing if i % 4 < of_group else float(i % 4) for i in range(len(completions))]

    trainer = make_trainer(rewards=some, beta=0.0, max_steps=2, save_strategy="no")
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert {*logged(trainer, "completions/unscored")} == {share}
    changed = any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert changed == (share < 1)


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_an_infinite_reward_stops_the_run_before_the_update(infinite, make_trainer):
    def worst(completions, **kwargs):
        return [infinite, *[0.0] * (len(completions) - 1)]

    trainer = make_trainer(rewards=[spread, worst])
    with pytest.raises(RunStopped, match=r"^step 0: .*'worst'"):
        trainer.train()


WRONG_COLUMNS = {
    "letters": ("answer", list("ABCDABCD")),
    "one beyond the last": ("answer", [0, 1, 2, 3, 0, 4, 0, 0]),
    "unknown format": ("answer_format", ["letter"] * 7 + ["essay"]),
    "no answer": ("answer", None),
    "no options": ("options", None),
    "empty prompt": ("prompt", ["fever"] * 7 + [""]),
    "prompt that fills the context": ("prompt", ["fever"] * 7 + ["fever " * 300]),
}


@pytest.mark.parametrize(("name", "values"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_unusable_records_are_refused_before_the_first_step(name, values, make_trainer, questions, tokenizer):
    rows = prompt_dataset(questions, 8, seed=0).select(range(8)).remove_columns(name)
    rows = rows if values is None else rows.add_column(name, values)
    with pytest.raises(InputError, match=f"^{name}: "):
        make_trainer(rewards=Correct(tokenizer, [tokenizer.eos_token_id]), rows=rows)


def test_a_letter_in_a_stream_is_refused_when_it_is_read(tokenizer):
    ask = {"completions": [" B"], "completion_ids": [[5]], "options": [["a", "b"]], "answer_format": ["letter"]}
    reward = Correct(tokenizer, [tokenizer.eos_token_id])
    assert reward(answer=[1], **ask) == [1.0]
    with pytest.raises(InputError, match=r"^answer: .*'B'"):
        reward(answer=["B"], **ask)


@pytest.mark.parametrize("prompt", ["", "fever " * 300])
def test_a_bad_prompt_in_a_stream_is_refused_when_it_is_read(prompt, make_trainer):
    rows = Dataset.from_list([{"prompt": prompt}] * 8).to_iterable_dataset()
    with pytest.raises(InputError, match="^prompt: "):
        make_trainer(rewards=spread, rows=rows).train()


def test_prompts_without_room_for_a_full_completion_are_counted(make_trainer, capsys, tmp_path, tokenizer):
    rows = Dataset.from_list([{"prompt": "fever " * 100}] * 3 + [{"prompt": "fever"}] * 5)
    longest = len(tokenizer("fever " * 100).input_ids)
    settings = {"rewards": spread, "rows": rows, "max_completion_length": 256 - longest + 1}
    make_trainer(**settings)
    assert "3 of 8 prompts" in capsys.readouterr().out
    make_trainer(**{**settings, "max_completion_length": 256 - longest})
    assert "prompts leave" not in capsys.readouterr().out
    AutoModelForCausalLM.from_config(GPT2Config(**GPT2_SHAPE, n_positions=256)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"^max_completion_length: 3 of 8"):  # the model has a table of positions
        make_trainer(str(tmp_path / "gpt2"), **settings)


def test_the_length_penalty_alone_needs_no_answers(make_trainer, questions, tokenizer):
    rows = prompt_dataset(questions, 8, seed=0).remove_columns("answer")
    penalty = LengthPenalty(4, tokenizer, [tokenizer.eos_token_id])
    assert make_trainer(rewards=penalty, rows=rows).reward_weights.tolist()

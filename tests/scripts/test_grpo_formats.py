"""GRPO and its baseline from the command line in each answer format, in chats and with passages."""

import json
import re
from dataclasses import replace

import pandas
import pytest
import torch
from transformers import AutoConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

import train_grpo
from modeling_pure.grpo.build import generation_config
from modeling_pure.model_card import card_blocks
from tests.conftest import WORDS, question_row, with_chat_template, write_jsonl
from tests.processes import run
from tests.scripts.conftest import metrics


@pytest.fixture
def grpo_here(train_here, grpo_recipe, tmp_path):
    """GRPO in this process; returns what it printed."""

    def grpo_here(*options, folder=tmp_path / "run", **keys) -> str:
        given = [text for name, value in keys.items() for text in (f"--{name}", value)]
        command = ["--config", grpo_recipe, "--output_dir", folder, *options, *given]
        return train_here(*command, script=train_grpo)[0]

    return grpo_here


@pytest.fixture(scope="module")
def explained(questions, tmp_path_factory):
    """A file of questions with explanations of forty words, and the same four options everywhere."""
    count = " ".join(map(str, range(100, 140)))
    asked = [replace(question, options=tuple(WORDS[:4])) for question in questions]
    rows = [{**question_row(q), "explanation": f"{count}: {q.options[q.answer]}"} for q in asked]
    return write_jsonl(tmp_path_factory.mktemp("explained") / "questions.jsonl", rows)


@pytest.fixture(scope="module")
def llama(tokenizer, tmp_path_factory):
    """An untrained Llama model."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = LlamaConfig(vocab_size=408, num_key_value_heads=2, max_position_embeddings=512, **shape, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sampled(folder) -> pandas.DataFrame:
    return pandas.concat(pandas.read_parquet(file) for file in sorted(folder.glob("completions/*.parquet")))


def test_reasons_are_taught_then_sampled(grpo_here, grpo_recipe, llama, explained, tmp_path):
    taught, run_folder = tmp_path / "taught", tmp_path / "run"
    options = {"model_name_or_path": llama, "questions": explained, "max_completion_length": 256}
    sft = {
        "algorithm": "sft",
        "max_steps": 60,
        "learning_rate": 0.01,
        "per_device_train_batch_size": 16,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    grpo_here(folder=taught, **options, **sft, answer_formats="reasoned")
    losses = [line["loss"] for line in metrics(taught) if "loss" in line]
    assert losses[-1] < losses[0] / 4
    assert AutoConfig.from_pretrained(taught).answer_formats == ["reasoned"]

    given = {**options, "model_name_or_path": taught, "max_steps": 2, "medqa_dev_questions": 4}
    command = [text for name, value in given.items() for text in (f"--{name}", value)]
    printed = run("train_grpo.py", "--config", grpo_recipe, "--output_dir", run_folder, *command).stdout
    assert "eval_rewards/correct/mean" in printed
    table = sampled(run_folder)
    assert table.prompt.str.endswith("\nReasoning:").all()
    assert table.completion.str.contains("\nAnswer: ", regex=False).any()
    assert not table.length_penalty.any()
    [line] = [line for line in metrics(run_folder) if "sampling/log_prob_difference" in line]
    assert line["sampling/log_prob_difference"] < 1e-5
    assert line["medqa/parse_rate"] > 0.5
    assert 60 < line["completions/mean_length"] <= 256
    assert any("eval_rewards/correct/mean" in line for line in metrics(run_folder))
    state = json.loads((run_folder / "trainer_state.json").read_text())
    assert state["best_metric"] in [line.get("eval_rewards/correct/mean") for line in metrics(run_folder)]


def test_text_and_letter_have_their_shares_and_both_are_reported(grpo_here, tmp_path):
    printed = grpo_here(answer_formats="{text: 0.5, letter: 0.5}", load_best_model_at_end="true")
    assert re.search(r"\beval_medqa_text_accuracy .*\b13\b", printed)
    assert "WARNING: " in printed
    logged = set().union(*metrics(tmp_path / "run"))
    assert {"rewards/correct/text", "rewards/correct/letter", "medqa/contradictions"} <= logged
    assert {"eval_medqa_accuracy", "eval_medqa_text_accuracy", "eval_medqa_text_nll"} <= logged
    assert AutoConfig.from_pretrained(tmp_path / "run").answer_formats == ["letter", "text"]
    card = (tmp_path / "run" / "README.md").read_text()
    by_letter, by_text = card_blocks(card, "evaluation")
    assert ", letter, " in by_letter
    assert ", text, " in by_text
    assert re.search(r"\bletter 50 ?%, text 50 ?%", card_blocks(card, "training")["GRPO on MedQA"])


def test_the_baseline_records_what_it_taught_for_the_next_run(grpo_here, tmp_path):
    grpo_here(answer_formats="text", algorithm="sft", max_steps=2)
    for folder in ("run", "run/checkpoint-2"):
        assert "text" in AutoConfig.from_pretrained(tmp_path / folder).answer_formats
    assert any("eval_medqa_text_accuracy" in line for line in metrics(tmp_path / "run"))
    again = {"model_name_or_path": tmp_path / "run", "max_steps": 2, "algorithm": "sft", "eval_strategy": "no"}
    assert "WARNING: the model was taught" not in grpo_here(folder=tmp_path / "again", **again)
    printed = grpo_here(folder=tmp_path / "reasons", answer_formats="reasoned", **again | {"algorithm": "grpo"})
    assert "WARNING: the model was taught" in printed
    assert "reasoned" in AutoConfig.from_pretrained(tmp_path / "reasons").answer_formats


def test_merged_adapters_record_what_they_taught(grpo_here, tmp_path):
    grpo_here(answer_formats="text", lora_rank=2, max_steps=2)
    assert "text" in AutoConfig.from_pretrained(tmp_path / "run").answer_formats
    assert any("eval_medqa_text_accuracy" in line for line in metrics(tmp_path / "run"))


def test_instruct_models_use_their_chat_template(grpo_here, llama, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(train_grpo, "print_preflight", lambda trainer: None)  # saves 128 completions
    model = tmp_path / "instruct"
    LlamaForCausalLM.from_pretrained(llama).save_pretrained(model)
    with_chat_template(tokenizer).save_pretrained(model)
    keys = {"model_name_or_path": model, "answer_formats": "{text: 0.5, reasoned: 0.5}", "max_completion_length": 256}
    assert "eval_rewards/correct/mean" in grpo_here(chat="true", max_steps=2, medqa_dev_questions=4, **keys)
    turns = [turn for prompt in sampled(tmp_path / "run").prompt for turn in prompt]
    assert {turn["role"] for turn in turns} == {"user"}
    assert {turn["content"].split("\n")[-1] for turn in turns} == {"Answer:", "Reasoning:"}
    [line] = [line for line in metrics(tmp_path / "run") if "sampling/log_prob_difference" in line]
    assert line["completions/max_length"] == 256
    assert line["sampling/log_prob_difference"] < 1e-5


def test_passages_precede_the_questions(grpo_here, questions, tmp_path):
    (tmp_path / "books").mkdir()
    for number, words in enumerate(
        ("Aspirin is for pain.", "Heparin is no statin.", f"{questions[0].question} Rash.")
    ):
        (tmp_path / "books" / f"{number}.txt").write_text(words)
    printed = grpo_here(passages=tmp_path / "books", num_passages=1, max_steps=2)
    assert re.search(r"^passages: 2; .*\b1$", printed, re.MULTILINE)
    prompts = sampled(tmp_path / "run").prompt
    assert prompts.str.startswith("Passage 1: ").any()
    assert not prompts.str.contains("Passage 2: ", regex=False).any()
    assert "passages" in card_blocks((tmp_path / "run" / "README.md").read_text(), "training")["GRPO on MedQA"]


def test_a_model_without_a_generation_config_ends_where_its_configuration_says(tmp_path):
    config = LlamaConfig(eos_token_id=[2, 7])
    assert generation_config(str(tmp_path), config).eos_token_id == [2, 7]
    GenerationConfig(eos_token_id=[2, 9]).save_pretrained(tmp_path)
    assert generation_config(str(tmp_path), config).eos_token_id == [2, 9]

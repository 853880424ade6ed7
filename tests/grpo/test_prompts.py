"""GRPO's prompts: every epoch has all questions in another order, with balanced letters and formats by share."""

import random
from dataclasses import replace

import pytest

from modeling_pure.errors import InputError
from modeling_pure.grpo.arguments import GRPOScriptArguments
from modeling_pure.grpo.prompts import PromptSettings, prompt_dataset
from modeling_pure.grpo.questions import open_books, prompt_length, questions_that_fit, teachable
from modeling_pure.medqa.formats import chat_prompt, format_prompt, teach_formats
from modeling_pure.medqa.passages import Library
from tests.conftest import with_chat_template
from tests.grpo.conftest import FAMILIES


def test_every_epoch_has_all_questions_in_another_order(questions):
    data = prompt_dataset(questions, num_prompts=300, seed=0)
    assert len(data) == 360
    epochs = [data["digest"][start : start + 120] for start in (0, 120, 240)]
    assert {tuple(sorted(each)) for each in epochs} == {tuple(sorted(q.digest for q in questions))}
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(("name", "end"), [("letter", "Answer:"), ("text", "Answer:"), ("reasoned", "Reasoning:")])
def test_the_answer_is_the_letter_of_the_right_option(name, end, questions):
    right = {q.digest: q.options[q.answer] for q in questions}
    for row in prompt_dataset(questions, 500, seed=1, settings=PromptSettings({name: 1.0})):
        assert f"\n{'ABCD'[row['answer']]}. {right[row['digest']]}\n" in row["prompt"]
        assert row["prompt"].endswith(f"\n{end}")
        assert row["options"][row["answer"]] == right[row["digest"]]
        assert row["answer_format"] == name


def test_a_constant_letter_earns_a_quarter(questions):
    answers = prompt_dataset(questions, 6000, seed=0)["answer"]
    assert all(abs(answers.count(letter) / len(answers) - 0.25) < 0.03 for letter in range(4))


def test_the_seed_decides(questions):
    assert prompt_dataset(questions, 120, 3)[:] == prompt_dataset(questions, 120, 3)[:]
    assert prompt_dataset(questions, 120, 3)[:] != prompt_dataset(questions, 120, 4)[:]


@pytest.mark.parametrize("with_answers", [False, True])
def test_formats_have_their_shares_and_change_no_order(with_answers, questions):
    explained = [replace(question, explanation="It is so.") for question in questions]
    settings = PromptSettings({"letter": 0.5, "text": 0.3, "reasoned": 0.2}, with_answers=with_answers)
    mixed, letters = prompt_dataset(explained, 6000, 0, settings=settings), prompt_dataset(explained, 6000, 0)
    assert all(mixed[name] == letters[name] for name in ("digest", "answer", "options"))
    rng = random.Random("grpo 0 0")  # only used for questions and options
    orders = [question.shuffled(rng).options for question in rng.sample(explained, len(explained))]
    assert [tuple(options) for options in mixed["options"][:120]] == orders
    for name, share in settings.shares.items():
        assert abs(mixed["answer_format"].count(name) / len(mixed) - share) < 0.03
    other = prompt_dataset(explained, 6000, 1, settings=settings)
    assert mixed["answer_format"] != other["answer_format"]
    assert mixed["answer_format"][:120] != mixed["answer_format"][120:240]


def test_both_algorithms_use_the_same_prompts_and_formats(questions):
    explained = [replace(question, explanation="It is so.") for question in questions]
    shares = {"text": 0.4, "reasoned": 0.6}
    sampled, taught = (
        prompt_dataset(explained, 240, 0, settings=PromptSettings(shares, False, which)) for which in (False, True)
    )
    assert sampled["prompt"] == taught["prompt"]
    assert sampled["answer_format"] == taught["answer_format"]
    assert {*taught.column_names} - {*sampled.column_names} == {"target"}


def test_reasons_are_sampled_for_all_questions_but_taught_only_with_an_explanation(questions):
    some = [replace(q, explanation="So it is (c)." if i % 2 else "") for i, q in enumerate(questions)]
    explained = {question.digest: question for question in some if question.explanation}
    shares = {"reasoned": 0.5, "text": 0.5}
    sampled, taught = (
        prompt_dataset(some, 1200, 0, settings=PromptSettings(shares, False, which)) for which in (False, True)
    )
    for data, without in ((sampled, True), (taught, False)):
        asked = {row["digest"] for row in data if row["answer_format"] == "reasoned"}
        assert bool(asked - {*explained}) == without
    of_letters = [row for row in taught if row["answer_format"] == "reasoned"]
    assert all(tuple(row["options"]) == explained[row["digest"]].options for row in of_letters)
    others = [row for row in taught if row["answer_format"] == "text" and row["digest"] in explained]
    assert any(tuple(row["options"]) != explained[row["digest"]].options for row in others)


def test_only_explanations_that_are_not_cut_off_are_taught(questions, tokenizer):
    some = [replace(q, explanation="fever " * 40 if i % 2 else "rash") for i, q in enumerate(questions[:8])]
    mixed, reasons = (
        PromptSettings(shares, with_answers=True) for shares in ({"text": 0.5, "reasoned": 0.5}, {"reasoned": 1})
    )
    kept = teachable(some, tokenizer, 30, mixed)
    assert [question.explanation for question in kept] == ["rash", ""] * 4
    assert [question.digest for question in kept] == [question.digest for question in some]
    assert teachable(some, tokenizer, 30, reasons) == some[::2]
    assert teachable(some, tokenizer, 30, PromptSettings({"reasoned": 1})) == some
    with pytest.raises(InputError, match="^answer_formats: "):
        teachable(some, tokenizer, 3, reasons)


def test_questions_fit_in_their_longest_format_and_template(questions, tokenizer):
    chat = with_chat_template(tokenizer)
    for settings, longest in (
        (PromptSettings({"letter": 1.0}), lambda q: len(tokenizer(format_prompt(q)).input_ids)),
        (
            PromptSettings({"letter": 0.5, "reasoned": 0.5}),
            lambda q: len(tokenizer(format_prompt(q, "reasoned")).input_ids),
        ),
        (
            PromptSettings({"letter": 1.0}, chat=True),
            lambda q: len(tokenizer(chat_prompt(chat, format_prompt(q))).input_ids),
        ),
    ):
        lengths = [longest(question) for question in questions]
        limit = sorted(lengths)[60]
        fitting = [question for question, length in zip(questions, lengths, strict=True) if length <= limit]
        assert 0 < len(fitting) < len(questions)
        assert questions_that_fit(questions, chat, limit, settings) == fitting
    with pytest.raises(InputError, match="^max_completion_length: .*3"):
        questions_that_fit(questions, chat, 3, PromptSettings({"letter": 1.0}))
    with pytest.raises(InputError, match="^chat: "):
        questions_that_fit(questions, tokenizer, 200, PromptSettings({"letter": 1.0}, chat=True))


@pytest.mark.parametrize(
    ("shares", "chat", "taught", "metric"),
    [
        ({"letter": 1.0}, False, False, "eval_medqa_accuracy"),
        ({"letter": 0.9, "text": 0.1}, False, False, "eval_medqa_text_accuracy"),
        ({"letter": 0.1, "reasoned": 0.9}, False, False, "eval_medqa_accuracy"),
        ({"reasoned": 1.0}, False, False, "eval_rewards/correct/mean"),
        ({"reasoned": 1.0}, False, True, "eval_medqa_text_accuracy"),
        ({"text": 1.0}, True, False, "eval_rewards/correct/mean"),
        ({"text": 1.0}, True, True, "eval_medqa_text_accuracy"),
    ],
)
def test_the_headline_format_selects_the_best_metric(shares, chat, taught, metric):
    assert PromptSettings(shares, chat, taught).best_metric == metric


def test_the_default_format_is_the_one_that_was_taught():
    config = FAMILIES["pure"]()
    assert PromptSettings.of(GRPOScriptArguments(), config).shares == {"letter": 1.0}
    assert PromptSettings({"reasoned": 1.0}).warnings(config) == []
    teach_formats(config, ["letter", "text"])
    assert PromptSettings.of(GRPOScriptArguments(), config).shares == {"text": 1.0}
    assert len(PromptSettings({"reasoned": 1.0}).warnings(config)) == 1
    assert len(PromptSettings({"letter": 0.5, "text": 0.5}).warnings(config)) == 1  # one prompt, two rewards
    assert PromptSettings({"letter": 0.5, "text": 0.5}, with_answers=True).warnings(config) == []


def test_passages_precede_questions_and_fit_the_context(questions, tokenizer, tmp_path):
    train, dev = questions[:6], questions[6:9]
    texts = [
        "Aspirin is for pain. " * 4,
        "Insulin lowers the fever. " * 4,
        f"{train[0].question} Rash.",
        dev[1].question,
    ]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    settings = PromptSettings({"letter": 0.5, "reasoned": 0.5})
    room = max(prompt_length(question, tokenizer, settings) for question in questions) + 40
    library = Library.read("passages", str(tmp_path), [*train, *dev])
    for asked, split in zip(
        open_books(library, 2, (train, dev), tokenizer, room, settings), (train, dev), strict=True
    ):
        assert [replace(question, passages=()) for question in asked] == split
        assert all(prompt_length(question, tokenizer, settings) <= room for question in asked)
        shown = [passage for question in asked for passage in question.passages]
        assert shown
        assert not any(question.question in passage for question in (*train, *dev) for passage in shown)
    assert questions_that_fit(asked, tokenizer, room, settings) == asked
    row = prompt_dataset(asked, 1, 0, settings=settings)[0]
    assert row["prompt"].startswith("Passage 1: ")

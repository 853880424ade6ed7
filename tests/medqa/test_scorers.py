"""The three scorers against plain ways of computing the same."""

from dataclasses import replace

import pytest
import torch

from modeling_pure.medqa.formats import format_prompt, format_stem, parse_answer
from modeling_pure.medqa.questions import Question
from modeling_pure.medqa.scorers import SCORERS, Asked, score_cloze, score_generations, score_letters
from modeling_pure.medqa.tasks import MEDQA


@pytest.fixture(scope="module")
def asked(model, tokenizer) -> Asked:
    return Asked(model, tokenizer, MEDQA, batch_size=8, max_new_tokens=6)


@pytest.fixture(scope="module")
def mixed(questions) -> list[Question]:
    """Questions of different lengths with options of different lengths."""
    return [
        replace(q, question=q.question * (1 + i % 3), options=tuple(f"{o} " * k + o for k, o in enumerate(q.options)))
        for i, q in enumerate(questions[:20])
    ]


def records_of(scorer, asked, questions) -> list[dict]:
    found = dict(scorer(asked, questions))
    assert sorted(found) == list(range(len(questions)))
    return [found[i] for i in range(len(questions))]


@torch.no_grad()
def log_likelihood(asked, context: str, continuation: str) -> float:
    """One forward pass over the whole text."""
    start = len(asked.tokenizer(context).input_ids)
    ids = asked.tokenizer(context + continuation).input_ids
    log_probs = asked.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(start, len(ids)))


def test_cloze_scores_are_those_of_single_texts(asked, mixed):
    for question, record in zip(mixed, records_of(score_cloze, asked, mixed), strict=True):
        stem = format_stem(question)
        assert "A. " not in stem
        assert question.question in stem
        for option, given, alone, characters in zip(
            question.options, record["log_likelihoods"], record["unconditional"], record["characters"], strict=True
        ):
            assert given == pytest.approx(log_likelihood(asked, stem, f" {option}"), abs=1e-4)
            assert alone == pytest.approx(log_likelihood(asked, "Answer:", f" {option}"), abs=1e-4)
            assert characters == len(option)
        assert not record["cut"]


def test_greedy_completions_are_those_of_a_plain_loop(asked, mixed):
    eos = asked.tokenizer.eos_token_id
    for question, record in zip(mixed[:6], records_of(score_generations, asked, mixed[:6]), strict=True):
        ids = asked.tokenizer(format_prompt(question)).input_ids
        written = []
        with torch.no_grad():
            while len(written) < 6 and eos not in written:
                written.append(int(asked.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
        text = asked.tokenizer.decode(written, skip_special_tokens=True)
        assert record["completions"] == [text]
        assert record["answers"] == [parse_answer(text, question.options).option]
        assert record["lengths"] == [sum(token != eos for token in written)]


def test_a_question_of_three_words_cannot_fill_the_room_of_an_answer(asked, questions):
    long = replace(questions[0], question="fever " * 600)
    (record,) = records_of(score_generations, asked, [long])
    assert record["cut"]
    assert len(record["completions"]) == 1
    assert records_of(score_letters, asked, [long, questions[1]])[0]["cut"]


@pytest.mark.parametrize("scorer", SCORERS)
def test_records_do_not_depend_on_the_batch(asked, mixed, scorer):
    """Log-likelihoods to 1e-5 in fp32 (sums of a few tokens: 1e-4), completions exactly, sampled or not."""
    settings = [asked, replace(asked, batch_size=1), replace(asked, batch_size=64)]
    if scorer == "generate":
        settings += [replace(one, num_samples=3, temperature=0.7) for one in settings]
    found = [records_of(SCORERS[scorer], one, mixed) for one in settings]
    for group in (found[:3], found[3:]):
        for other in group[1:]:
            for first, second in zip(group[0], other, strict=True):
                if scorer == "generate":
                    assert first == second
                else:
                    assert second["log_likelihoods"] == pytest.approx(first["log_likelihoods"], abs=1e-4)


def test_samples_are_drawn_question_by_question(asked, mixed):
    """What is left to do after a stop is drawn as it would have been; another seed draws otherwise."""
    sampling = replace(asked, num_samples=4, temperature=1.5)
    whole = records_of(score_generations, sampling, mixed[:5])
    assert records_of(score_generations, sampling, mixed[3:5]) == whole[3:]
    assert records_of(score_generations, replace(sampling, seed=1), mixed[:5]) != whole
    assert all(len(record["completions"]) == 4 for record in whole)


class Writes:
    """A model that writes the same tokens after every prompt."""

    def __init__(self, model, ids):
        self.config, self.device, self.ids = model.config, model.device, ids

    def generate(self, input_ids, **kwargs):
        return torch.cat([input_ids, torch.tensor([self.ids] * len(input_ids))], 1)


def test_the_reward_is_grpos(asked, questions):
    eos = asked.tokenizer.eos_token_id
    ids = [*asked.tokenizer(" B").input_ids, eos, eos]
    records = records_of(score_generations, replace(asked, model=Writes(asked.model, ids)), questions)
    penalty = max(0.0, (4 - sum(token != eos for token in ids)) / 4)
    for question, record in zip(questions, records, strict=True):
        assert record["answers"] == [1]
        assert record["lengths"] == [1]
        assert record["rewards"] == [float(question.answer == 1) - 0.01 * penalty]
    assert penalty == 0.75

"""Letter log-likelihoods against one forward pass per question."""

import pytest
import torch

from modeling_pure.medqa.formats import format_prompt
from modeling_pure.medqa.log_likelihood import letter_log_likelihoods, sorted_batches, text_log_likelihoods
from modeling_pure.medqa.questions import Question
from tests.conftest import adding


@torch.no_grad()
def one_by_one(model, tokenizer, questions) -> torch.Tensor:
    """One forward pass with all logits for each prompt."""
    letters = [tokenizer(f" {letter}").input_ids[0] for letter in "ABCD"]
    rows = []
    for question in questions:
        ids = torch.tensor([tokenizer(format_prompt(question)).input_ids])
        rows.append(model(ids).logits[0, -1].log_softmax(-1)[letters])
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_score_like_single_prompts(model, tokenizer, questions, batch_size):
    stems = [Question(q.question * (1 + i % 5), q.options, q.answer) for i, q in enumerate(questions[:40])]
    scores = letter_log_likelihoods(model, tokenizer, stems, batch_size)
    # Kernels add in another order for other batch shapes, about 1e-6 in fp32 at these magnitudes.
    torch.testing.assert_close(scores, one_by_one(model, tokenizer, stems), atol=1e-5, rtol=0)


def test_a_prompt_longer_than_the_context_is_cut_from_the_left(model, tokenizer, questions):
    long = Question("fever " * 600 + questions[0].question, questions[0].options, 0)
    ids = tokenizer(format_prompt(long)).input_ids
    assert len(ids) > model.config.max_position_embeddings
    with torch.no_grad():
        logits = model(torch.tensor([ids[-512:]])).logits[0, -1].log_softmax(-1)
    letters = [tokenizer(f" {letter}").input_ids[0] for letter in "ABCD"]
    torch.testing.assert_close(letter_log_likelihoods(model, tokenizer, [long])[0], logits[letters], atol=1e-5, rtol=0)


def test_batches_are_sorted_by_length_longest_first():
    assert sorted_batches([3, 9, 5, 9, 1], 2) == [[1, 3], [2, 0], [4]]


class SplitsD:
    """A tokenizer without a token " D"."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        (self.whole,), self.parts = tokenizer(" D").input_ids, tokenizer(" ").input_ids + tokenizer("D").input_ids

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, texts, **kwargs):
        ids = self.tokenizer(texts, **kwargs)
        rows = [ids.input_ids] if isinstance(texts, str) else ids.input_ids
        split = [[part for token in row for part in (self.parts if token == self.whole else [token])] for row in rows]
        ids["input_ids"] = split[0] if isinstance(texts, str) else split
        return ids


def test_a_letter_of_two_tokens_is_scored_by_both_tokens(model, tokenizer, questions):
    splits = SplitsD(tokenizer)
    assert len(splits(" D").input_ids) == 2
    scores = letter_log_likelihoods(model, splits, questions[:6], batch_size=4)
    for question, row in zip(questions[:6], scores, strict=True):
        for letter, score in zip("ABCD", row, strict=True):
            ids = tokenizer(format_prompt(question)).input_ids
            answer = splits(f" {letter}").input_ids
            with torch.no_grad():
                log_probs = model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
            expected = sum(log_probs[len(ids) + i - 1, token].item() for i, token in enumerate(answer))
            assert score.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("log_likelihoods", [letter_log_likelihoods, text_log_likelihoods])
def test_an_appended_end_token_changes_no_score(log_likelihoods, model, tokenizer, questions):
    appends = adding(tokenizer, back=tokenizer.eos_token)
    assert appends("a").input_ids[-1] == tokenizer.eos_token_id
    expected = log_likelihoods(model, tokenizer, questions[:10])
    assert torch.equal(log_likelihoods(model, appends, questions[:10]), expected)
    begins = log_likelihoods(model, adding(tokenizer, front="<|pad|>"), questions[:10])
    assert not torch.allclose(begins, expected, atol=1e-3)  # third-party models are trained with it

"""Letter log-likelihoods against one forward pass per question."""

import pytest
import torch

from modeling_pure.errors import InputError
from modeling_pure.medqa.formats import format_prompt
from modeling_pure.medqa.questions import Question
from modeling_pure.medqa.scoring import letter_log_likelihoods, single_token_id, sorted_batches


@torch.no_grad()
def one_by_one(model, tokenizer, questions) -> torch.Tensor:
    """The plain way: whole logits of each prompt by itself."""
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
    # fp32: kernels for other batch shapes add in another order, about 1e-6 at these magnitudes.
    torch.testing.assert_close(scores, one_by_one(model, tokenizer, stems), atol=1e-5, rtol=0)


def test_a_prompt_longer_than_the_context_is_cut_from_the_left(model, tokenizer, questions):
    long = Question("fever " * 600 + questions[0].question, questions[0].options, 0)
    ids = tokenizer(format_prompt(long)).input_ids
    assert len(ids) > model.config.max_position_embeddings
    with torch.no_grad():
        logits = model(torch.tensor([ids[-512:]])).logits[0, -1].log_softmax(-1)
    letters = [tokenizer(f" {letter}").input_ids[0] for letter in "ABCD"]
    torch.testing.assert_close(letter_log_likelihoods(model, tokenizer, [long])[0], logits[letters], atol=1e-5, rtol=0)


def test_batches_hold_neighbours_longest_first():
    assert sorted_batches([3, 9, 5, 9, 1], 2) == [[1, 3], [2, 0], [4]]


def test_an_answer_of_two_tokens_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"^model_name_or_path: .*' Zyxw'.*\b[2-9]\b"):
        single_token_id(tokenizer, " Zyxw")

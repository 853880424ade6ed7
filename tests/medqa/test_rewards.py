"""The reward is `correct * 1.0 - length_penalty * 0.01`, and no penalty outweighs a right answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from modeling_pure.medqa.rewards import REWARD_WEIGHTS, Correct, LengthPenalty

EOS, TURN_ENDS = 0, 7
OPTIONS = ["aspirin", "heparin", "insulin", "statin"]


@pytest.fixture
def correct(tokenizer):
    """The reward of texts in one format; all completions are finished unless `ids` are given."""
    reward = Correct(tokenizer, [EOS, TURN_ENDS])

    def call(completions, answer, answer_format="letter", ids=None, **kwargs):
        n = len(completions)
        formats = [answer_format] * n if isinstance(answer_format, str) else answer_format
        return reward(completions, ids or [[5, EOS]] * n, answer, [OPTIONS] * n, formats, **kwargs)

    return call


def penalty(tokenizer, min_tokens, ids, completions=None, answer_format="letter"):
    n = len(ids)
    reward = LengthPenalty(min_tokens, tokenizer, [EOS, TURN_ENDS])
    return reward(completions or [""] * n, ids, [OPTIONS] * n, [answer_format] * n)


def test_the_letter_decides_and_the_shares_are_logged(correct):
    logged = {}
    completions = [" A. aspirin", " B", " maybe C", " C. heparin"]
    assert correct(completions, [0, 0, 2, 2], log_metric=logged.__setitem__) == [1.0, 0.0, 0.0, 1.0]
    assert logged == {"medqa/parse_rate": 0.75, "medqa/contradictions": 0.25}


def test_each_prompt_is_rewarded_in_its_own_format(correct):
    logged = {}
    completions = [" insulin (C)", " C. insulin", " No sugar.\nAnswer: insulin (C)", " insulin (C)"]
    formats = ["text", "letter", "reasoned", "letter"]
    assert correct(completions, [2] * 4, formats, log_metric=logged.__setitem__) == [1.0, 1.0, 1.0, 0.0]
    of_format = {name: value for name, value in logged.items() if name.startswith("rewards/")}
    assert of_format == {"rewards/correct/text": 1, "rewards/correct/letter": 0.5, "rewards/correct/reasoned": 1}


def test_unfinished_reasons_are_wrong_and_a_turn_may_end_them(correct):
    completions = [" So.\nAnswer: insulin (C)"] * 4
    ids = [[5, EOS], [5, TURN_ENDS], [5, 6], []]
    assert correct(completions, [2] * 4, "reasoned", ids) == [1.0, 1.0, 0.0, 0.0]
    assert correct([" insulin (C)"], [2], "text", [[5, 6]]) == [1.0]


def test_a_chat_turn_is_parsed_as_text(correct):
    turns = [[{"role": "assistant", "content": text}] for text in ("C. insulin", "C", "aspirin", "")]
    assert correct(turns, [2] * 4) == [1.0, 1.0, 0.0, 0.0]
    turns = [[{"role": "assistant", "content": "insulin (C)"}], [{"role": "assistant"}]]
    assert correct(turns, [2] * 2, "text") == [1.0, 0.0]


def test_a_leading_space_that_the_decoder_drops_is_restored():
    bpe = Tokenizer(models.BPE({"▁A": 0, ".": 1, "B": 2, "</s>": 3}, []))
    bpe.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")
    assert tokenizer.decode([0, 1]) == "A."
    reward = Correct(tokenizer, [3])
    ids = [[0, 1, 3], [2, 3]]
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert reward(texts, ids, [0, 1], [OPTIONS] * 2, ["letter"] * 2) == [1.0, 0.0]


def test_a_bare_letter_is_penalised_and_a_full_answer_is_not(tokenizer):
    ids = [[317, EOS], [317, 13, 5, 6, EOS], [EOS], [317, 13], [317, 13, TURN_ENDS]]
    assert penalty(tokenizer, 4, ids) == [0.75, 0.0, 1.0, 0.5, 0.5]


def test_only_the_reasoning_counts_in_the_format_reasoned(tokenizer):
    answer = "\nAnswer: insulin (C)"
    count = len(tokenizer(" Sugar is high").input_ids)
    ids = [[*range(10, 30), EOS]] * 3 + [[10, 11]]
    completions = [answer, f" Sugar is high{answer}", " Sugar is high, " * 9 + answer, " no"]
    expected = [1.0, (2 * count - count) / (2 * count), 0.0, (2 * count - 2) / (2 * count)]
    assert penalty(tokenizer, 2 * count, ids, completions, "reasoned") == pytest.approx(expected)


def test_a_minimum_of_zero_disables_the_penalty(tokenizer):
    assert penalty(tokenizer, 0, [[EOS], [1]]) == [0.0, 0.0]


@given(st.lists(st.integers(0, 50), max_size=300), st.lists(st.integers(0, 50), max_size=300), st.integers(0, 64))
def test_right_is_always_worth_more_than_wrong(tokenizer, right, wrong, min_tokens):
    penalties = penalty(tokenizer, min_tokens, [right, wrong])
    rewards = [
        REWARD_WEIGHTS[0] * is_right + REWARD_WEIGHTS[1] * penalty
        for is_right, penalty in zip([1.0, 0.0], penalties, strict=True)
    ]
    assert rewards[0] >= 0.99 > rewards[1]
    assert all(0 <= penalty <= 1 for penalty in penalties)


def test_rewards_of_seen_and_unseen_questions_are_logged_apart(correct):
    logged = {}
    rewards = correct(
        [" A. x", " B. y", " C", "none"],
        [0, 0, 2, 1],
        seen=[True, True, False, False],
        log_metric=logged.__setitem__,
    )
    assert rewards == [1.0, 0.0, 1.0, 0.0]
    assert logged == {
        "medqa/parse_rate": 0.75,
        "medqa/contradictions": 0.0,
        "rewards/correct/seen": 0.5,
        "rewards/correct/unseen": 0.5,
    }
    correct([" A"], [0], seen=[False], log_metric=(only := {}).__setitem__)
    assert "rewards/correct/seen" not in only

"""The reward is `correct * 1.0 - length_penalty * 0.01`, and no length ever outweighs being right."""

from hypothesis import given
from hypothesis import strategies as st

from modeling_pure.medqa.rewards import REWARD_WEIGHTS, LengthPenalty, correct

EOS = 0


def test_the_letter_decides_and_the_parse_rate_is_logged():
    logged = {}
    completions = [" A. aspirin", " B", " maybe C", " C. heparin"]
    assert correct(completions, [0, 0, 2, 2], log_metric=logged.__setitem__) == [1.0, 0.0, 0.0, 1.0]
    assert logged == {"medqa/parse_rate": 0.75}


def test_a_bare_letter_is_penalised_and_a_full_answer_is_not():
    ids = [[317, EOS], [317, 13, 5, 6, EOS], [EOS], [317, 13]]
    assert LengthPenalty(4, EOS)(completion_ids=ids) == [0.75, 0.0, 1.0, 0.5]


def test_zero_turns_it_off():
    assert LengthPenalty(0, EOS)(completion_ids=[[EOS], [1]]) == [0.0, 0.0]


@given(st.lists(st.integers(0, 50), max_size=300), st.lists(st.integers(0, 50), max_size=300), st.integers(0, 64))
def test_right_is_always_worth_more_than_wrong(right, wrong, min_tokens):
    penalties = LengthPenalty(min_tokens, EOS)(completion_ids=[right, wrong])
    rewards = [
        REWARD_WEIGHTS[0] * is_right + REWARD_WEIGHTS[1] * penalty
        for is_right, penalty in zip([1.0, 0.0], penalties, strict=True)
    ]
    assert rewards[0] >= 0.99 > rewards[1]
    assert all(0 <= penalty <= 1 for penalty in penalties)


def test_rewards_of_seen_and_unseen_questions_are_logged_apart():
    logged = {}
    rewards = correct(
        completions=[" A. x", " B. y", " C", "none"],
        answer=[0, 0, 2, 1],
        seen=[True, True, False, False],
        log_metric=logged.__setitem__,
    )
    assert rewards == [1.0, 0.0, 1.0, 0.0]
    assert logged == {"medqa/parse_rate": 0.75, "rewards/correct/seen": 0.5, "rewards/correct/unseen": 0.5}
    correct(completions=[" A"], answer=[0], seen=[False], log_metric=(only := {}).__setitem__)
    assert "rewards/correct/seen" not in only

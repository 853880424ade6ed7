"""Flaws of questions are found by row and described in sentences."""

from modeling_pure.medqa.questions import Flaws, Question, find_flaws

SOUND = Question("p < 0.05 & q > 0.1; is AT&T; or &nothing; meant?", ("a", "b", "A", "c"), 0)


def test_flaws_are_counted_by_row():
    questions = [
        SOUND,
        Question("Q?", ("a", "b", " b", "c"), 0),
        Question("Q?", ("a", "b", "caf\u00e9", "cafe\u0301"), 3),
        Question("Q?", ("a", "", "b", "c"), 0),
        Question("Q?", (" ", "\n", "b", "c"), 2),
        Question("p &lt; 0.05?", ("a", "b", "c", "d"), 0),
        Question("Q?", ("yes", "no", "maybe"), 0, context="&#39;"),
        Question("Q?", ("a", "b", "c", "R&AMP;D &#x27;"), 0),
    ]
    assert find_flaws(questions) == Flaws(
        same_options=[1, 2, 4],
        right_option_twice=[2],
        empty_options=[3, 4],
        html_entities=[5, 6, 7],
    )


def test_each_flaw_has_a_sentence():
    assert find_flaws([SOUND]).describe() == []
    bad = Question("&amp;", ("a", "a", "", "c"), 1)
    sentences = find_flaws([SOUND, *[bad] * 7]).describe()
    assert len(sentences) == 3
    assert all("7 (rows 1, 2, 3, 4, 5 ...)" in sentence for sentence in sentences)

"""Baselines against brute force, and on questions with a known answer."""

import re

import numpy as np
import pytest

from modeling_pure.errors import InputError
from modeling_pure.medqa.comparisons import bm25_baseline, simple_baselines
from modeling_pure.medqa.passages import Bm25
from modeling_pure.medqa.questions import Question
from modeling_pure.medqa.tasks import MEDQA, PUBMEDQA
from tests.medqa.conftest import plain_bm25


def test_constants_and_the_longest_option(questions):
    found = simple_baselines(MEDQA, questions)
    assert list(found) == ["always A", "always B", "always C", "always D", "longest option"]
    assert [set(found[f"always {letter}"]) for letter in "ABCD"] == [{0}, {1}, {2}, {3}]
    for question, place in zip(questions, found["longest option"], strict=True):
        lengths = [len(option) for option in question.options]
        assert lengths[place] == max(lengths)
        assert max(lengths) not in lengths[:place]
    assert list(simple_baselines(PUBMEDQA, questions)) == ["always yes", "always no", "always maybe"]


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def test_bm25_predicts_the_option_with_the_best_ten_documents(questions):
    train, evaluated = questions[:60], questions[60:]
    documents = [f"{one.question} {one.options[one.answer]}" for one in train]
    words = [words_of(text) for text in documents]
    expected = []
    for question in evaluated:
        stem = words_of(question.question)
        sums = [sum(sorted(plain_bm25(words, [*stem, option]))[-10:]) for option in question.options]
        expected.append(sums)
    predictions = bm25_baseline(evaluated, Bm25("train_questions", documents))
    # The index leaves out stop words and single letters: the sums differ a little, the best option seldom.
    agreed = [p == int(np.argmax(sums)) for p, sums in zip(predictions, expected, strict=True)]
    assert np.mean(agreed) > 0.8


def test_bm25_finds_the_answer_in_a_book():
    books = ["Cholera is treated with doxycycline in adults."] * 12 + ["Aspirin lowers fever."] * 12
    books += [f"{drug} number {i}" for i in range(12) for drug in ("aspirin", "doxycycline", "insulin", "heparin")]
    questions = [
        Question("Cholera in a man?", ("aspirin", "doxycycline", "insulin", "heparin"), 1),
        Question("Fever in a child?", ("insulin", "heparin", "aspirin", "doxycycline"), 2),
    ]
    assert bm25_baseline(questions, Bm25("textbooks", books)).tolist() == [1, 2]


def test_bm25_predicts_the_first_option_without_a_known_word():
    question = Question("the of and", ("the", "of", "and", "a"), 3)
    assert bm25_baseline([question], Bm25("textbooks", ["fever", "rash"])).tolist() == [0]


def test_documents_without_words_are_refused():
    with pytest.raises(InputError, match="^textbooks: [^']*$"):
        Bm25("textbooks", ["the of and"])

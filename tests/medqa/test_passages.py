"""Books: which passages are read, which are retrieved (against brute force), and how much of them fits."""

import random
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_pure.errors import InputError
from modeling_pure.medqa.formats import format_prompt
from modeling_pure.medqa.passages import (
    PASSAGE_WORDS,
    Bm25,
    Library,
    content_words,
    cut_passages,
    fit_passages,
    query_of,
    retrieval_metrics,
    split_passages,
)
from modeling_pure.medqa.questions import Question
from tests.conftest import WORDS, write_jsonl
from tests.medqa.conftest import plain_bm25

QUESTION = Question("Cholera in a man?", ("aspirin", "doxycycline", "insulin", "heparin"), 1)


def numbered(count: int, start: int = 0) -> str:
    return " ".join(f"w{start + number}" for number in range(count))


# ---- reading --------------------------------------------------------------------------------------------------------


def test_books_of_all_kinds_are_cut_into_passages(tmp_path):
    (tmp_path / "one.txt").write_text("word " * (2 * PASSAGE_WORDS + 7))
    (tmp_path / "two.md").write_text("# Title\n\nshort")
    write_jsonl(tmp_path / "three.jsonl", [{"text": "a b"}, {"text": "c d"}])
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "four.txt").write_text("below")
    library = Library.read("textbooks", str(tmp_path))
    passages = library.passages
    assert [len(passage.split()) for passage in passages] == [PASSAGE_WORDS, PASSAGE_WORDS, 7, 3, 2, 2]
    assert split_passages(" ") == []
    assert (library.left_out, len(library)) == (0, 6)
    assert sorted(library.unread) == ["four.txt", "image.png"]
    assert all(name in library.describe() for name in library.unread)


def test_a_folder_without_books_is_refused(tmp_path):
    with pytest.raises(InputError, match=rf"^textbooks: '{tmp_path}' .*\.jsonl\b"):
        Library.read("textbooks", str(tmp_path))
    with pytest.raises(InputError, match=f"^textbooks: '{tmp_path / 'none'}' "):
        Library.read("textbooks", str(tmp_path / "none"))
    (tmp_path / "broken.jsonl").write_text('{"text": ')
    with pytest.raises(InputError, match=r"^textbooks: .*broken\.jsonl': "):
        Library.read("textbooks", str(tmp_path))
    (tmp_path / "broken.jsonl").unlink()
    write_jsonl(tmp_path / "bad.jsonl", [{"body": "x"}])
    with pytest.raises(InputError, match=r"^textbooks: '.*bad\.jsonl' .*'text'"):
        Library.read("textbooks", str(tmp_path))
    (tmp_path / "bad.jsonl").write_text('{"text": "of the and"}\n')
    with pytest.raises(InputError, match="^textbooks: "):
        Library.read("textbooks", str(tmp_path))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"^textbooks: .*latin\.txt'.*\butf-8\b"):
        Library.read("textbooks", str(tmp_path))
    (tmp_path / "latin.txt").unlink()
    (tmp_path / "dead_link.txt").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match=r"^textbooks: .*dead_link\.txt'"):
        Library.read("textbooks", str(tmp_path))


def test_empty_texts_are_ignored(tmp_path):
    write_jsonl(tmp_path / "books.jsonl", [{"text": None}, {"text": ""}, {"text": "cystitis"}])
    assert Library.read("textbooks", str(tmp_path)).passages == ["cystitis"]


def test_questions_too_short_to_check_are_counted(tmp_path, questions):
    (tmp_path / "book.txt").write_text("cystitis " * 20)
    short = Question("Drug of choice?", ("a", "b", "c", "d"), 0)
    library = Library.read("passages", str(tmp_path), [short, *questions[:3]])
    assert (library.unchecked, library.left_out) == (1, 0)
    assert Library.read("passages", str(tmp_path)).unchecked == 0


@pytest.mark.parametrize(
    ("place", "left_out"),
    [
        (PASSAGE_WORDS, {0, 1}),  # both neighbours of the boundary are left out
        (2 * PASSAGE_WORDS - 50, {1, 2}),
        (PASSAGE_WORDS + 60, {1}),
        (2 * PASSAGE_WORDS - 30, {1, 2}),  # the question spans two passages
        (2 * PASSAGE_WORDS - 20, {1, 2}),
    ],
)
def test_passages_that_give_a_question_away_are_left_out(tmp_path, place, left_out):
    question = replace(QUESTION, question=" ".join(f"q{number}" for number in range(40)))
    words = numbered(4 * PASSAGE_WORDS).split()
    (tmp_path / "book.txt").write_text(" ".join([*words[:place], question.question, *words[place + 40 :]]))
    library = Library.read("passages", str(tmp_path), [question])
    assert library.left_out == len(left_out)
    kept = [number for number in range(4) if number not in left_out]
    assert library.passages == [split_passages(" ".join(words))[number] for number in kept]
    assert Library.read("passages", str(tmp_path), [QUESTION]).left_out == 0


def test_books_that_hold_only_questions_are_refused(tmp_path, questions):
    long = [replace(one, question=f"{one.question} {one.question}") for one in questions[:5]]
    write_jsonl(tmp_path / "book.jsonl", [{"text": one.question} for one in long])
    with pytest.raises(InputError, match=rf"^passages: .*\b5\b.*'{tmp_path}'"):
        Library.read("passages", str(tmp_path), long)


# ---- retrieval ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> Library:
    rng = random.Random(0)
    return Library("passages", [" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) for _ in range(200)])


def test_retrieved_passages_match_brute_force(library, questions):
    documents = content_words(library.passages)
    for question in library.retrieve(questions, 4):
        scores = plain_bm25(documents, content_words([query_of(question)])[0])
        ranked = sorted(range(200), key=lambda i: -scores[i])[:4]
        found = [scores[library.passages.index(passage)] for passage in question.passages]
        assert found == pytest.approx([scores[i] for i in ranked], rel=1e-5)


def test_retrieval_does_not_depend_on_option_order_or_other_questions(library, questions):
    found = library.retrieve(questions, 3)
    shuffled = [question.shuffled(random.Random(i)) for i, question in enumerate(questions)]
    assert [one.passages for one in library.retrieve(shuffled, 3)] == [one.passages for one in found]
    assert [library.retrieve([question], 3)[0] for question in questions[:10]] == found[:10]
    assert [replace(one, passages=()) for one in found] == questions


def test_equal_passages_keep_their_order_and_those_without_a_common_word_are_left_out():
    passages = [f"{name} doxycycline" for name in ("zeta", "alpha", "mu", "eta", "beta")] + ["fever"] * 5
    library = Library("passages", passages)
    for number in range(1, 8):
        assert library.retrieve([QUESTION], number)[0].passages == tuple(passages[: min(number, 5)])
    assert library.retrieve([Question("of the", ("a", "b", "c", "d"), 0)], 3)[0].passages == ()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 15))
def test_the_best_are_a_stable_sort(counts, number):
    index = Bm25("key", ["filler", *("word " * count + "other " * (5 - count) for count in counts)])
    scores = index.scores(["word"])
    expected = sorted((i for i in range(len(scores)) if scores[i] > 0), key=lambda i: -scores[i])
    assert index.best(["word"], number) == expected[:number]


def test_options_are_found_at_word_boundaries():
    questions = [
        replace(QUESTION, passages=("Give Doxycycline.", "not aspirins but insulin")),
        replace(QUESTION, passages=("heparin",)),
        replace(QUESTION, options=("a b", "c++", "insulin", "d"), passages=("use c++ or A\u00a0B",)),
    ]
    found = retrieval_metrics(questions)
    assert asdict(found) == pytest.approx({"right_found": 2 / 3, "wrong_found": 1 / 3, "passages": 4 / 3})


# ---- fitting --------------------------------------------------------------------------------------------------------


def joined(passages: tuple[str, ...]) -> list[tuple[int, str]]:
    return [(number, word) for number, passage in enumerate(passages) for word in passage.split()]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([*WORDS, "ü", "x-ray,"]), min_size=1, max_size=30), min_size=0, max_size=4),
    st.integers(0, 200),
)
def test_passages_are_cut_to_the_token_limit(tokenizer, passages, room):
    question = replace(QUESTION, passages=tuple(map(" ".join, passages)))

    def tokens(one: Question) -> int:
        return len(tokenizer(format_prompt(one))["input_ids"])

    limit = tokens(QUESTION) + room
    fitted = fit_passages(question, tokenizer, limit, format_prompt)
    assert tokens(fitted) <= limit
    words, kept = joined(question.passages), joined(fitted.passages)
    assert kept == words[: len(kept)]
    assert replace(fitted, passages=()) == QUESTION
    if len(kept) < len(words):  # the next word would exceed the limit
        number, word = words[len(kept)]
        more = [*fitted.passages]
        more[number:] = [f"{more[number]} {word}" if number < len(more) else word]
        assert tokens(replace(question, passages=tuple(more))) > limit


def test_a_question_that_is_itself_too_long_loses_its_passages(tokenizer):
    question = replace(QUESTION, passages=("fever", "rash"))
    assert fit_passages(question, tokenizer, 3, format_prompt) == QUESTION
    assert cut_passages(QUESTION, lambda one: False) is QUESTION

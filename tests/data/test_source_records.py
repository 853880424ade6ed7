"""Exam text in the answer formats of a recipe: each question draws a format in every epoch."""

import random
import re
import shutil
from collections import Counter
from dataclasses import replace

import pytest

from modeling_pure.data.arguments import DataArguments, parse_sources
from modeling_pure.data.opening import open_sources, split_questions
from modeling_pure.data.source_records import ExamRecords, exam_text
from modeling_pure.data.tokenizer import DocumentTokenizer
from modeling_pure.errors import InputError
from modeling_pure.medqa.formats import format_prompt, parse_answer
from modeling_pure.medqa.questions import Question
from tests.conftest import WORDS, numbers_in, question_row, write_jsonl
from tests.processes import ROOT

EXAM = {"weight": 1, "format": "medqa"}
SHARES = {"letter": 0.25, "text": 0.25, "reasoned": 0.5}


@pytest.fixture
def explained(questions) -> list[Question]:
    """Every other question has an explanation that mentions no letter."""
    return [replace(one, explanation="Pyuria. So it is." if i % 2 else "") for i, one in enumerate(questions)]


def texts_of(records: ExamRecords, epoch: int = 0) -> dict[int, str]:
    return dict(records.read(0, epoch, 0))


def format_of(text: str) -> str:
    """The format of an exam text, by the text after the options."""
    if "\nReasoning:" in text:
        return "reasoned"
    return "letter" if text.split("\nAnswer: ")[1][1] == "." else "text"


@pytest.mark.parametrize("formats", [[], [{"letter": 1.0}]])
def test_letters_alone_are_written_as_before_there_were_formats(explained, formats):
    for epoch in (0, 3):
        for i, text in texts_of(ExamRecords("key", explained, 7, *formats), epoch).items():
            shown = explained[i].shuffled(random.Random(f"options 7 {epoch} {i}"))
            options = "".join(f"{letter}. {option}\n" for letter, option in zip("ABCD", shown.options, strict=True))
            assert (
                text == f"Question: {shown.question}\n{options}Answer: {shown.letter}. {shown.options[shown.answer]}"
            )


def test_formats_come_in_their_shares_and_reasons_where_there_are_any(explained):
    records = ExamRecords("key", explained, 0, SHARES)
    drawn = {has: Counter() for has in (True, False)}
    for epoch in range(20):
        for i, text in texts_of(records, epoch).items():
            drawn[bool(explained[i].explanation)][format_of(text)] += 1
    assert {name: count / 1200 for name, count in drawn[True].items()} == pytest.approx(SHARES, abs=0.05)
    assert {name: count / 1200 for name, count in drawn[False].items()} == pytest.approx(
        {"letter": 0.5, "text": 0.5}, abs=0.05
    )


def test_every_text_can_be_parsed_for_the_right_option(explained):
    for i, text in texts_of(ExamRecords("key", explained, 0, SHARES)).items():
        name = format_of(text)
        prompt, completion = text.split("\nReasoning:" if name == "reasoned" else "\nAnswer:", 1)
        options = [line[3:] for line in prompt.split("\n")[1:]]
        answer = parse_answer(completion, options, name)
        assert options[answer.option] == explained[i].options[explained[i].answer]
        assert not answer.contradicts
        assert sorted(options) == sorted(explained[i].options)


def test_a_question_draws_its_format_whoever_reads_it(explained):
    records = ExamRecords("key", explained, 3, SHARES)
    whole = list(records.read(0, 1, 0))
    assert list(records.read(0, 1, 50)) == whole[50:]
    formats = [[format_of(text) for _, text in sorted(records.read(0, epoch, 0))] for epoch in (1, 2)]
    assert formats[0] != formats[1]


def test_questions_without_reasons_are_left_out_only_if_all_is_reasoned(explained):
    records = ExamRecords("key", explained, 0, {"reasoned": 1.0})
    assert (len(records.questions), records.left_out) == (60, 60)
    assert {format_of(text) for text in records.texts()} == {"reasoned"}
    assert len(records.texts()) == 60
    assert ExamRecords("key", explained, 0, SHARES).left_out == 0
    assert "60" in records.describe()


def test_the_documents_show_exam_text_byte_for_byte():
    options = ("Aspirin", "Heparin", "Nitrofurantoin", "Warfarin")
    explanation = "It reaches high concentrations in urine."
    question = Question("Which drug treats cystitis?", options, 2, explanation=explanation)
    blocks = re.findall(r"```text\n(.*?)\n```", (ROOT / "docs/DATASETS.md").read_text(), re.DOTALL)
    prompt = format_prompt(question).removesuffix("Answer:")
    assert blocks[:3] == [
        exam_text(question, "letter"),
        exam_text(question, "text").removeprefix(prompt),
        exam_text(question, "reasoned").removeprefix(prompt),
    ]


def open_exam(path, formats, **fields):
    source = {"path": str(path), "answer_formats": formats, **EXAM, **fields}
    return open_sources(parse_sources({"usmle": source}), DataArguments(), 0).sources[0]


def test_reasons_are_refused_where_no_question_has_any(corpus):
    with pytest.raises(InputError, match=r"^sources\.usmle\.answer_formats: "):
        open_exam(corpus / "questions.jsonl", {"reasoned": 0.5, "letter": 0.5})


def test_validation_questions_are_written_in_the_formats_too(explained, tmp_path):
    records = [{**question_row(one), "explanation": one.explanation} for one in explained]
    dev = write_jsonl(tmp_path / "dev.jsonl", records[:40])
    train = write_jsonl(tmp_path / "train.jsonl", records[40:])
    one = open_exam(train, SHARES, validation_path=str(dev))
    assert {*map(format_of, one.validation_texts)} == {*SHARES}
    assert (len(one.validation_texts), len(one.dev)) == (40, 40)
    one = open_exam(train, "reasoned", validation_path=str(dev))
    assert (len(one.validation_texts), len(one.dev)) == (20, 40)
    bare = write_jsonl(tmp_path / "bare.jsonl", [question_row(one) for one in explained[:40]])
    with pytest.raises(InputError, match=r"^sources\.usmle\.answer_formats: "):
        open_exam(train, "reasoned", validation_path=str(bare))


def test_medmcqa_brings_its_explanations(tmp_path):
    records = [
        {
            "question": f"Case {i}?",
            **dict(zip(("opa", "opb", "opc", "opd"), "wxyz", strict=True)),
            "cop": 2,
            "exp": why,
        }
        for i, why in enumerate(["Because of y.", None] * 40)
    ]
    one = open_exam(write_jsonl(tmp_path / "medmcqa.jsonl", records), "reasoned")
    assert one.records.left_out > 0
    assert all("\nReasoning: Because of y.\nAnswer: y (" in text for text in one.records.texts())


# ---- with books -----------------------------------------------------------------------------------------------------


@pytest.fixture
def books(tmp_path):
    """A folder of 60 short passages."""
    rng, folder = random.Random(0), tmp_path / "books"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [{"text": f"book {i}: " + " ".join(rng.choices(WORDS, k=30))} for i in range(60)])
    return folder


@pytest.fixture
def open_books(books, sources, tokenizer_folder):
    """Opens the exam with books; fields of the source, and of `DataArguments` by `arguments`."""

    def open_books(arguments=None, **fields):
        source = {**sources["usmle"], "weight": 1, "passages": str(books), **fields}
        data = DataArguments(
            **{"tokenizer_name_or_path": str(tokenizer_folder), "max_seq_length": 2048, **(arguments or {})}
        )
        return open_sources(parse_sources({"usmle": source}), data, 0).sources[0]

    return open_books


def closed(text: str) -> str:
    """A text without its passages."""
    return text[text.index("Question: ") :]


def passages_in(text: str) -> list[str]:
    return [line.split(": ", 1)[1] for line in text.split("\n") if line.startswith("Passage ")]


def test_passages_stand_before_their_share_of_the_questions(open_books):
    formats = {"letter": 0.5, "text": 0.5}
    records = open_books(passages_share=0.25, answer_formats=formats).records
    plain = ExamRecords("key", [replace(one, passages=()) for one in records.questions], 0, formats)
    opened = Counter()
    for epoch in range(20):
        texts = texts_of(records, epoch)
        assert {i: closed(text) for i, text in texts.items()} == texts_of(plain, epoch)
        for i, text in texts.items():
            opened[i] += text.startswith("Passage 1: book ")
            assert passages_in(text) in ([], list(records.questions[i].passages))
    assert sum(opened.values()) / (20 * len(records.questions)) == pytest.approx(0.25, abs=0.04)
    assert set(opened.values()) > {3, 4, 5, 6}
    assert {len(question.passages) for question in records.questions} == {3}


@pytest.mark.parametrize("limit", [90, 105, 120, 127])
def test_texts_with_passages_fit_a_sequence(open_books, tokenizer, limit):
    one = open_books({"max_seq_length": limit}, passages_share=1, num_passages=2)
    lengths = [len(ids) for ids in DocumentTokenizer(tokenizer)([*one.records.texts(), *one.validation_texts])]
    assert limit - 5 < max(lengths) <= limit
    for i, text in texts_of(one.records).items():
        kept, found = " ".join(passages_in(text)), " ".join(one.records.questions[i].passages)
        assert found.startswith(kept)
        assert kept


def test_passages_that_fit_stay_whole(open_books):
    assert all(len(passages_in(text)) == 3 for text in open_books(passages_share=1).records.texts())


def test_passages_that_cover_any_of_the_questions_are_left_out(open_books, books, corpus, questions, tmp_path):
    (source,) = parse_sources({"usmle": {"path": str(corpus / "questions.jsonl"), **EXAM}})
    train, dev, _ = split_questions(source, 0.0)
    other = replace(questions[0], question="One two three four five six seven eight nine ten eleven twelve thirteen?")
    write_jsonl(books / "b.jsonl", [{"text": f"It says: {one.question} Yes."} for one in (*train, *dev, other)])
    before = open_books({"grpo_holdout": 0.5})
    assert (before.records.open_book.left_out, before.records.open_book.kept) == (120, 61)
    path = write_jsonl(tmp_path / "test.jsonl", [question_row(other)])
    after = open_books({"decontaminate": [str(path)]})
    assert (after.records.open_book.left_out, after.records.open_book.kept) == (121, 60)
    assert {"50", "60", "121"} <= {*numbers_in(after.records.describe())}


def test_books_may_move_and_not_change(open_books, books, tmp_path):
    one = open_books()
    shutil.copytree(books, tmp_path / "moved")
    assert open_books(passages=str(tmp_path / "moved")).records.listing == one.records.listing
    assert open_books(num_passages=2).records.listing != one.records.listing
    write_jsonl(books / "a.jsonl", [{"text": " ".join(WORDS)}])
    assert open_books().records.listing != one.records.listing


def test_books_are_refused_before_anything_is_read(open_books, tmp_path):
    with pytest.raises(InputError, match=r"^sources\.usmle\.passages: "):
        open_books(passages=str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^sources\.usmle\.passages: "):
        open_books(format="text")
    for field, value in (
        ("passages_share", 0),
        ("passages_share", 1.5),
        ("passages_share", True),
        ("num_passages", 0),
    ):
        with pytest.raises(InputError, match=rf"^sources\.usmle\.{field}: "):
            open_books(**{field: value})
    for field, value in (("passages_share", 0.5), ("num_passages", 3)):
        with pytest.raises(InputError, match=rf"^sources\.usmle\.{field}: "):
            open_books(passages=None, **{field: value})

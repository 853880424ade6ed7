"""A document that contains an evaluation question is found; one that only shares stock phrases is not."""

import json
import random
import re
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_pure.commands.decontaminate import coverage_facts, note_best
from modeling_pure.medqa.decontamination import GRAM, QuestionFinder, gram_at, gram_hashes, normalised, words_of
from modeling_pure.medqa.questions import Question
from tests.conftest import WORDS, question_row, write_jsonl

STOCK = "which of the following is the most appropriate next step in the management of this patient"


def vignette(number: int, words: int = 60) -> Question:
    """A question of its own words that ends in a stock phrase."""
    rng = random.Random(number)
    stem = " ".join(f"{rng.choice(WORDS)}{rng.randrange(100)}" for _ in range(words))
    return Question(f"{stem}, {STOCK}?", ("a", "b", "c", "d"), 0)


QUESTIONS = [vignette(number) for number in range(20)]
FINDER = QuestionFinder(QUESTIONS)


@pytest.mark.parametrize("number", [0, 7, 19])
def test_a_planted_question_is_found(number):
    text = f"Lecture notes. {QUESTIONS[number].question.upper()} The answer is discussed below."
    match = FINDER.find(text)
    assert match.question == QUESTIONS[number]
    assert match.coverage == 1


def test_another_layout_does_not_hide_a_question():
    text = QUESTIONS[3].question.replace(" ", "\n  ").replace(",", " --")
    assert FINDER.find(text).question == QUESTIONS[3]


PDF_QUESTION = Question(
    "A 54-year-old woman with a finding of diffuse inflammation is brought to the office because of a five-day "
    "history of fatigue and difficulty swallowing. Her first symptoms were confined to the fingers, and she has had a "
    "na\u00efve follow-up with significant weight loss. Which of the following is the first finding to confirm in the "
    "office?",
    ("a", "b", "c", "d"),
    0,
)


def at_line_ends(text: str, hyphen: str = "-\n", every: int = 3) -> str:
    """Every third word of at least five letters broken."""
    words = text.split()
    for i in range(0, len(words), every):
        if words[i].isalpha() and len(words[i]) > 4:
            words[i] = f"{words[i][:3]}{hyphen}{words[i][3:]}"
    return " ".join(words)


def with_ligatures(text: str) -> str:
    for letters, ligature in (("ffi", "\ufb03"), ("fi", "\ufb01"), ("fl", "\ufb02"), ("ff", "\ufb00")):
        text = text.replace(letters, ligature)
    return text


LAYOUTS = {
    "ligatures": with_ligatures,
    "gaps behind ligatures": lambda text: re.sub("([\ufb00-\ufb06])(?=\\w)", r"\1 ", with_ligatures(text)),
    "hyphens at line ends": at_line_ends,
    "hyphens at line ends, indented": lambda text: at_line_ends(text, "-\r\n   "),
    "hyphens left within lines": lambda text: at_line_ends(text, "-"),
    "other hyphens": lambda text: at_line_ends(text.replace("-", "\u2011"), "\u2010\n"),
    "a hyphen that belongs to the word at a line end": lambda text: text.replace("-", "-\n"),
    "soft hyphens": lambda text: at_line_ends(text, "\u00ad", 1),
    "soft hyphens at line ends": lambda text: at_line_ends(text, "\u00ad\n", 1),
    "zero-width spaces": lambda text: at_line_ends(text, "\u200b", 1),
    "marks of direction": lambda text: at_line_ends(text, "\u2067", 1),
    "Arabic letter marks": lambda text: at_line_ends(text, "\u061c", 1),
    "tags of another plane": lambda text: at_line_ends(text, "\U000e0041", 1),
    "dashes at line ends": lambda text: at_line_ends(text, "\u2013\n"),
    "signs of negation at line ends": lambda text: at_line_ends(text, "\u00ac\n"),
    "tags": lambda text: re.sub(r"(\w{5,})", r"<b class='x'>\1</b>", text),
    "byte order marks": lambda text: at_line_ends(text, "\ufeff", 1),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "entities": lambda text: text.replace(" ", "&nbsp;"),
    "entities escaped twice": lambda text: text.replace(" ", "&amp;nbsp;"),
    "soft hyphens as entities": lambda text: at_line_ends(text, "&shy;", 1),
    "full-width letters": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "accents apart": lambda text: unicodedata.normalize("NFD", text),
    "no accents": lambda text: text.replace("\u00ef", "i"),
    "upper case": str.upper,
    "ligatures and hyphens": lambda text: with_ligatures(at_line_ends(text, "-\n", 2)),
}


@pytest.mark.parametrize("other_scripts", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_of_a_pdf_or_a_page_hides_a_question(layout, other_scripts):
    others = [*QUESTIONS, Question("\u0445" * 5, ("a", "b", "c", "d"), 0)][: None if other_scripts else -1]
    match = QuestionFinder([PDF_QUESTION, *others]).find(
        f"Some pages. {LAYOUTS[layout](PDF_QUESTION.question)} More pages."
    )
    assert match.question == PDF_QUESTION
    assert match.coverage == 1


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if not re.search("within|gaps|belongs", name)])
def test_a_question_in_the_layout_of_a_page_is_found_in_plain_text(layout):
    """A word that is broken within a line of the question stays broken, because nothing identifies it."""
    finder = QuestionFinder([Question(LAYOUTS[layout](PDF_QUESTION.question), ("a", "b", "c", "d"), 0), *QUESTIONS])
    assert finder.find(PDF_QUESTION.question).coverage == 1


def test_a_gap_in_a_question_is_closed_if_another_question_knows_the_word():
    gaps = LAYOUTS["gaps behind ligatures"](PDF_QUESTION.question)
    words = Question(f"{PDF_QUESTION.question} What else?", ("a", "b", "c", "d"), 0)
    assert "\ufb01 " in gaps
    broken = Question(gaps, ("a", "b", "c", "d"), 0)
    (match,) = (found for found in QuestionFinder([broken, words]).matches(words.question) if found.question == broken)
    assert match.coverage == 1


SCRIPTS = {
    "Chinese": "一位五十四岁的女性因发热和咳嗽三天来诊，下列哪项是最合适的治疗？",  # noqa: RUF001
    "Russian": "Женщина 54 лет с лихорадкой и кашлем обратилась к врачу. Какое лечение ей следует назначить?",  # noqa: RUF001
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_question_in_another_script_is_found(script):
    question = Question(SCRIPTS[script], ("a", "b", "c", "d"), 0)
    finder = QuestionFinder([question, *QUESTIONS])
    assert finder.unchecked == 0
    assert finder.covers(f"Pages \u2014 {SCRIPTS[script].upper()} more")
    assert finder.covers(SCRIPTS[script].replace("\uff0c", "\n, "))
    assert not finder.covers(SCRIPTS[script][: len(SCRIPTS[script]) // 3])
    assert finder.find(QUESTIONS[3].question).question == QUESTIONS[3]


def test_neighbours_of_a_question_are_spared():
    assert not FINDER.covers(vignette(100).question)  # the same stock phrase, 17 words of it
    words = QUESTIONS[0].question.split()
    assert not FINDER.covers(" ".join(words[:30]))  # 18 of 65 13-grams, not at the end
    assert not FINDER.covers(STOCK)
    assert not FINDER.covers("")
    assert not FINDER.covers("a short text")


def test_half_of_the_question_or_its_last_thirty_words_are_enough():
    words = QUESTIONS[0].question.split()
    grams = len(words) - GRAM + 1
    half = -(-grams // 2)
    assert FINDER.covers(" ".join(words[: half + GRAM - 1]))
    assert not FINDER.covers(" ".join(words[: half + GRAM - 2]))
    assert FINDER.covers(" ".join(words[-30:]))
    assert not FINDER.covers(" ".join(words[-29:]))


def test_parts_of_different_questions_do_not_add_up():
    parts = [" ".join(question.question.split()[:40]) for question in QUESTIONS]
    assert not FINDER.covers(" and ".join(parts))


def test_short_questions_are_counted_as_unchecked():
    finder = QuestionFinder([*QUESTIONS, Question("What is given?", ("a", "b", "c", "d"), 0)])
    assert finder.unchecked == 1
    assert not finder.covers("What is given?")


@given(st.lists(st.sampled_from([*WORDS, "THE", "of", "12", "--", "\n", "d\u00e9j\u00e0", "\u4e2d"]), max_size=60))
def test_every_gram_has_its_hash_wherever_it_stands(words):
    text = normalised(" ".join(words), None, True)
    words = words_of(text)
    hashes = gram_hashes(text)
    assert len(hashes) == max(0, len(words) - GRAM + 1)
    for place, gram_hash in enumerate(hashes):
        gram = gram_at(words, place).decode().title().replace(" ", ", ")
        assert gram_hashes(normalised(f"before, {gram}; after", None, True))[1] == gram_hash


def test_different_grams_have_different_hashes():
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdéfgh123я", k=rng.randint(1, 8))) for _ in range(20_000))
    assert len(set(gram_hashes(text.encode()).tolist())) == 20_000 - GRAM + 1


def test_a_planted_question_is_not_trained_on(make_mixture, tmp_path):
    records = [{"text": f"document {i}: " + " ".join(random.Random(i).choices(WORDS, k=20))} for i in range(200)]
    records[150]["text"] = f"Forum: {QUESTIONS[5].question}"
    records[151]["text"] = f"Forum: {STOCK}?"
    source = {"path": str(write_jsonl(tmp_path / "web.jsonl", records)), "weight": 1, "max_epochs": 1}
    evaluation = write_jsonl(tmp_path / "test.jsonl", [question_row(question) for question in QUESTIONS])
    documents = make_mixture({"web": source}, decontaminate=[str(evaluation)]).packed_source("web").documents
    texts = documents.read(10**9, 1000)
    assert records[150]["text"] not in texts
    assert records[151]["text"] in texts
    assert documents.skipped == {"validation document": 64, "evaluation question": 1}
    assert len(texts) == 135
    without = make_mixture({"web": source}).packed_source("web").documents
    assert records[150]["text"] in without.read(10**9, 1000)


def test_dev_questions_of_a_medqa_source_are_kept_out_of_its_train_questions(make_mixture, tmp_path):
    near_copy = Question(QUESTIONS[0].question + " Choose one.", ("e", "f", "g", "h"), 1)
    train = write_jsonl(tmp_path / "train.jsonl", [question_row(q) for q in [near_copy, vignette(50)]])
    dev = write_jsonl(tmp_path / "dev.jsonl", [question_row(QUESTIONS[0])])
    source = {"path": str(train), "weight": 1, "format": "medqa", "validation_path": str(dev), "max_epochs": 1}
    mixture = make_mixture({"usmle": source})
    trainable = {question.digest for question in mixture.data.sources[0].records.questions}
    documents = mixture.packed_source("usmle").documents
    texts = documents.read(10**9)
    assert all(near_copy.question not in text for text in texts)
    assert len(texts) == len(trainable - {near_copy.digest})


def test_the_command_reports_which_documents_would_go(tmp_path):
    records = [{"text": f"document {i}"} for i in range(100)]
    records[90]["text"] = QUESTIONS[5].question
    web = write_jsonl(tmp_path / "web.jsonl", records)
    evaluation = write_jsonl(tmp_path / "test.jsonl", [question_row(question) for question in QUESTIONS])
    report = tmp_path / "hits.jsonl"
    command = [sys.executable, "-m", "modeling_pure", "decontaminate", "--sources.web.path", web]
    command += ["--sources.web.weight", "1", "--decontaminate", evaluation, "--report", report]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^sources\.web: 1 \D*\b36\b", result.stdout, re.M)
    (hit,) = [json.loads(line) for line in report.read_text().splitlines()]
    assert hit == {
        "source": "web",
        "record": f"record 90 of '{web}'",
        "question": QUESTIONS[5].digest,
        "coverage": 1.0,
        "end_words": len(words_of(normalised(QUESTIONS[5].question))),
    }
    result = subprocess.run(list(map(str, command[:8])), capture_output=True, text=True)
    assert result.returncode == 2
    assert "error: decontaminate: " in result.stderr


def test_the_most_that_any_document_holds_of_a_question_is_kept():
    """The document with the most counts; a question in no document has 0, and one that is too short has null."""
    words = QUESTIONS[0].question.split()
    grams = len(words) - GRAM + 1
    texts = [" ".join(words[:20]), " ".join(words[:30]), " ".join(words[-30:]), "nothing"]
    short = Question("Too short?", ("a", "b", "c", "d"), 0)
    finder = QuestionFinder([QUESTIONS[0], Question("other " * 30, ("a", "b", "c", "d"), 0), short])
    best = {}
    for record, text in enumerate(texts):
        for match in finder.matches(text):
            note_best(best, match, {"source": "mine", "record": record})
    facts = coverage_facts(finder, {"mine": 4}, best)
    found, nothing, unchecked = facts["questions"].values()
    assert found["coverage"] == pytest.approx(18 / grams, abs=1e-3)
    assert found["end_words"] == 30
    assert found["covered"]
    assert found["record"] in (1, 2)
    assert nothing == {"coverage": 0.0, "end_words": 0, "covered": False}
    assert unchecked["coverage"] is None
    assert facts["documents"] == {"mine": 4}


def test_matches_are_those_that_find_chooses_from():
    text = f"{QUESTIONS[1].question} and {' '.join(QUESTIONS[2].question.split()[:25])}"
    matches = {match.question: match for match in FINDER.matches(text)}
    assert {QUESTIONS[1], QUESTIONS[2]} <= set(matches)
    assert matches[QUESTIONS[1]].covers
    assert not any(match.covers for q, match in matches.items() if q != QUESTIONS[1])
    assert FINDER.find(text) == matches[QUESTIONS[1]]
    assert FINDER.matches("nothing") == []

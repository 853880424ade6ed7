"""The promises of the demo world: reproducible, correct, balanced, and a held-out part no text or question tells."""

from __future__ import annotations

import collections
import itertools
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from modeling_pure.demo.facts import DISEASES, Disease
from modeling_pure.demo.world import (
    EXAM_FILES,
    NEVER_ASKED,
    TEXT_FILES,
    split_combinations,
    train_tokenizer,
    write_world,
)
from modeling_pure.medqa.formats import parse_answer

DOCUMENTS = 3000


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=0, documents=DOCUMENTS)
    return folder


@pytest.fixture(scope="module")
def tokenizer(world: Path):
    return train_tokenizer([world / name for name in (*TEXT_FILES, EXAM_FILES[0])], world / "tokenizer")


def asked(question: str) -> frozenset[str]:
    """The three findings in a question, parsed from its wording; empty if it names a drug instead."""
    vignette = question.rsplit(". ", 1)[0]
    if " has " not in vignette:
        return frozenset()
    first, rest = vignette.split(" has ", 1)[1].split(", ")
    return frozenset((first, *rest.split(" and ")))


def disease_asked(question: str) -> Disease:
    """The disease that a question is about, by its findings or by the drug that it names."""
    findings = asked(question)
    if not findings:
        return next(each for each in DISEASES if f" takes {each.drug} for " in question)
    (disease,) = [each for each in DISEASES if findings <= set(each.findings)]
    return disease


def test_table_is_large_and_varied():
    assert len(DISEASES) >= 24
    assert sum(len(disease.findings) + 3 for disease in DISEASES) >= 200
    assert all(6 <= len(set(disease.findings)) == len(disease.findings) <= 7 for disease in DISEASES)
    assert not [f for disease in DISEASES for f in disease.findings if "," in f or " and " in f]
    for field in ("name", "drug", "mechanism", "cause"):
        assert len({getattr(disease, field) for disease in DISEASES}) >= 4
    assert len({disease.name for disease in DISEASES}) == len(DISEASES)


def test_three_findings_name_one_disease():
    for one, other in itertools.combinations(DISEASES, 2):
        assert len(set(one.findings) & set(other.findings)) <= 2, (one.name, other.name)


def test_also_right_speaks_of_values_in_the_table():
    values = {value for disease in DISEASES for value in (disease.drug, disease.mechanism, disease.cause)}
    for disease in DISEASES:
        assert set(disease.also_right) <= values - {disease.drug, disease.mechanism, disease.cause}, disease.name


@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_bytes(tmp_path: Path, seed: int):
    for folder in ("one", "two"):
        write_world(tmp_path / folder, seed=seed, documents=200)
    for name in TEXT_FILES + EXAM_FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_other_seed_other_world(tmp_path: Path, world: Path):
    write_world(tmp_path, seed=1, documents=200)
    for name in TEXT_FILES + EXAM_FILES:
        assert (tmp_path / name).read_bytes() != (world / name).read_bytes()


def test_sizes(world: Path):
    assert [len(read(world / name)) for name in TEXT_FILES] == [DOCUMENTS] * 3
    train, dev, heldout = (len(read(world / name)) for name in EXAM_FILES)
    assert train >= 700
    assert dev >= 200
    assert heldout >= 500


def test_no_combination_is_asked_in_two_files(world: Path):
    files = [{asked(row["question"]) for row in read(world / name)} - {frozenset()} for name in EXAM_FILES]
    assert all(len(combination) == 3 for combinations in files for combination in combinations)
    for one, other in itertools.combinations(files, 2):
        assert not one & other
    split = split_combinations(0)
    for combinations, part in zip(files, (split.train, split.dev, split.heldout), strict=True):
        assert combinations == {frozenset(combination.findings) for combination in part}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_text_tells_a_hidden_combination(tmp_path: Path, seed: int):
    write_world(tmp_path, seed=seed, documents=DOCUMENTS)
    split = split_combinations(seed)
    hidden = [combination.findings for combination in split.dev + split.heldout]
    for name in TEXT_FILES:
        for row in read(tmp_path / name):
            text = row["text"].lower()
            told = {f for disease in DISEASES for f in disease.findings if f.lower() in text}
            assert not [three for three in hidden if told.issuperset(three)], (name, row["text"])


def test_every_disease_is_in_every_exam_file():
    split = split_combinations(0)
    for part in (split.train, split.dev, split.heldout):
        assert {combination.disease for combination in part} == set(DISEASES)


def quizzes(path: Path) -> list[tuple[str, list[str], str]]:
    """Question, options and the answer's option text of every quiz in a text file."""
    lines = [row["text"].splitlines() for row in read(path) if row["text"].startswith("Question: ")]
    return [(first[len("Question: ") :], [line[3:] for line in options], last) for first, *options, last in lines]


@pytest.mark.parametrize("name", ["web.jsonl", "general.jsonl"])
def test_quizzes_have_two_to_four_options_and_name_the_right_one(world: Path, name: str):
    facts = {f"Best drug for {disease.name}?": (disease, disease.drug) for disease in DISEASES}
    facts |= {f"Mechanism of {disease.drug}?": (disease, disease.mechanism) for disease in DISEASES}
    formats = collections.Counter()
    sizes, letters = collections.Counter(), collections.Counter()
    for question, options, last in quizzes(world / name):
        assert len(set(options)) == len(options)
        completion = last.removeprefix("Answer:")
        found = {name: parse_answer(completion, options, name) for name in ("letter", "text")}
        ((answer_format, answer),) = [(name, each) for name, each in found.items() if each.option is not None]
        disease, right = facts.get(question, (None, question.removesuffix("?")))
        assert options[answer.option] == right
        assert not answer.contradicts
        assert not disease or not {*disease.also_right, disease.name} & set(options)
        sizes[len(options)] += 1
        letters["ABCD"[answer.option]] += 1
        formats[answer_format] += 1
    assert sum(sizes.values()) > 0.6 * DOCUMENTS
    assert 0.1 < formats["letter"] / formats.total() < 0.3
    assert set(sizes) == {2, 3, 4}
    assert min(sizes.values()) > 0.8 * max(sizes.values())
    assert set(letters) == set("ABCD")


def test_general_texts_hold_no_medicine(world: Path):
    terms = {each for d in DISEASES for each in (d.name, d.drug, d.mechanism, d.cause, *d.findings)}
    for row in read(world / "general.jsonl"):
        assert not [term for term in terms if term in row["text"]]


@pytest.mark.parametrize("name", EXAM_FILES)
def test_questions_follow_the_schema_and_letters_balance(world: Path, name: str):
    rows = read(world / name)
    for row in rows:
        assert set(row) == {"question", "answer", "options", "answer_idx", "meta_info", "explanation"}
        assert list(row["options"]) == list("ABCD")
        assert len(set(row["options"].values())) == 4
        assert row["options"][row["answer_idx"]] == row["answer"]
    counts = collections.Counter(row["answer_idx"] for row in rows)
    assert set(counts) == set("ABCD")
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({row["question"] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", EXAM_FILES)
def test_exactly_one_option_is_right(world: Path, name: str):
    """Checked against the table alone: one disease has the findings, and it owns one option and defends no other."""
    for row in read(world / name):
        disease = disease_asked(row["question"])
        own = {disease.name, disease.drug, disease.mechanism, disease.cause}
        assert {letter for letter, text in row["options"].items() if text in own} == {row["answer_idx"]}
        assert not set(disease.also_right) & set(row["options"].values())


def test_three_steps_of_some_diseases_are_never_asked_in_train(world: Path):
    train, *others = ([row for row in read(world / name) if asked(row["question"])] for name in EXAM_FILES)
    mechanisms = [row for row in train if row["question"].endswith("Mechanism of the best drug?")]
    assert not {disease_asked(row["question"]).name for row in mechanisms} & {*NEVER_ASKED}
    for rows in others:
        never = [row for row in rows if row["meta_info"] == "mechanism, never asked"]
        assert {disease_asked(row["question"]).name for row in never} == {*NEVER_ASKED}
    # Yet its two steps are: the drug by the findings, and the mechanism by the drug, so that no value is only wrong.
    asked_for = {(disease_asked(row["question"]).name, row["answer"]) for row in read(world / EXAM_FILES[0])}
    assert {(each.name, value) for each in DISEASES for value in (each.drug, each.mechanism)} <= asked_for


def test_reasons_name_the_steps(world: Path):
    for row in read(world / EXAM_FILES[0]):
        disease, reason = disease_asked(row["question"]), row["explanation"]
        if not asked(row["question"]):
            assert reason == f"{disease.drug}."
        elif row["answer"] == disease.name:
            assert reason == f"{disease.name}."
        else:
            assert reason == f"{disease.name}, so {disease.drug}."


def test_questions_are_short(world: Path, tokenizer):
    lengths = [len(tokenizer.encode(row["question"])) for row in read(world / EXAM_FILES[2])]
    assert max(lengths) <= 70


def test_tokenizer_round_trip_and_special_tokens(world: Path, tokenizer):
    assert len(tokenizer) <= 2048
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    texts = [row["text"] for name in TEXT_FILES for row in read(world / name)[:50]] + ["Naïve 5 µg\n\tÅ 日本"]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_answer_letters_are_single_tokens(tokenizer):
    ids = [tokenizer.encode(f" {letter}") for letter in "ABCD"]
    assert all(len(each) == 1 for each in ids)
    assert len({each[0] for each in ids}) == 4
    prompt = tokenizer.encode("Answer:")
    assert tokenizer.encode("Answer: C. Nitrofurantoin")[: len(prompt) + 1] == prompt + ids[2]


def test_saved_tokenizer_reloads(world: Path, tokenizer):
    again = AutoTokenizer.from_pretrained(world / "tokenizer")
    text = "A 34-year-old woman has pyuria.\nAnswer: A"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.eos_token_id == tokenizer.eos_token_id
    assert again.pad_token_id == tokenizer.pad_token_id

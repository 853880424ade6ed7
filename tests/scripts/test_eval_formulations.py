"""Evaluation in several formulations: independent of each other, with the taught one as headline."""

import json
import re
import shutil
from dataclasses import replace
from itertools import count

import pytest
from scipy.stats import binomtest

from modeling_pure.medqa import compare, scorers
from modeling_pure.medqa.formats import format_prompt
from modeling_pure.medqa.questions import select_split
from tests.conftest import write_jsonl
from tests.scripts.conftest import predictions_of, stops_after_one


@pytest.fixture
def taught(pretrained, tmp_path):
    """A copy of the pretrained model that was taught some formats."""

    def taught(*formats: str, **tokenizer):
        folder = tmp_path / "model"
        shutil.copytree(pretrained, folder, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
        for file, change in (("config", {"answer_formats": formats}), ("tokenizer_config", tokenizer)):
            path = folder / f"{file}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        return folder

    return taught


@pytest.fixture
def books(tmp_path, questions):
    """40 passages: the first 20 contain their question's right option, the next 20 a wrong one."""
    lines = [
        {"text": f"{question.question} {question.options[(question.answer + (i >= 20)) % 4]}".replace("given?", "")}
        for i, question in enumerate(questions[:40])
    ]
    (tmp_path / "books").mkdir()
    write_jsonl(tmp_path / "books" / "one.jsonl", lines)
    return tmp_path / "books"


def test_each_formulation_equals_a_run_with_it_alone(evaluate, train_here, tmp_path):
    writing = ["--answer_format", "text", "--max_new_tokens", "4", "--num_samples", "2"]
    orders = ["--permutations", "4"]
    beside = ["--scorer", "text", "--beside", "cloze", "generate"]
    printed, together = evaluate(tmp_path / "all", *beside, *writing, *orders, split="dev")
    lines = predictions_of(tmp_path / "all")
    assert [*together["formulations"]] == ["text", "cloze", "generate text", "letter"]
    assert together["headline"]["name"] == "text"
    alone = {
        "text": ["--scorer", "text", *orders],
        "letter": ["--scorer", "letter", *orders],
        "cloze": ["--scorer", "cloze"],
        "generate text": ["--scorer", "generate", *writing],
    }
    report = (tmp_path / "all" / "report.md").read_text()
    for name, options in alone.items():
        _, results = evaluate(tmp_path / name, *options, split="dev")
        predictions = [line["prediction"] for line in predictions_of(tmp_path / name)]
        assert predictions == [line["prediction"] if name == "text" else line["beside"][name] for line in lines]
        found = together["formulations"][name]
        assert found == results["metrics"]
        assert f"{100 * found['accuracy']:.1f} %" in report
        if name == "text":
            continue
        row = next(row for row in together["comparisons"] if row["name"] == f"by {name}")
        assert row["difference"] == pytest.approx(together["metrics"]["accuracy"] - found["accuracy"])
        other, own = row["only_first"], row["only_second"]
        assert row["p_value"] == pytest.approx(binomtest(own, other + own).pvalue if other + own else 1)
        assert row["name"] in printed.out
    compared = train_here(tmp_path / "letter", tmp_path / "all", "--formulation", "letter", script=compare).out
    assert re.search(r"\b0 / 0\b", compared)
    message = train_here(tmp_path / "letter", tmp_path / "all", "--formulation", "cloze", script=compare, expect=2).err
    assert re.search(r"error: --formulation: .*\['letter'\].*'cloze'$", message.rstrip())


def test_the_headline_is_the_taught_format_also_in_the_card(evaluate, taught, tmp_path):
    model = taught("text")
    _, results = evaluate(tmp_path / "eval", model=model, split="dev")
    assert results["headline"]["name"] == "text"
    assert results["headline"]["taught"] == ["text"]
    card = (model / "README.md").read_text()
    assert "(text, fp32, no examples)" in card
    assert "| by letter |" in card
    printed, results = evaluate(tmp_path / "letter", "--scorer", "letter", model=model, split="dev")
    assert results["headline"]["warning"]
    for text in (printed.out, (tmp_path / "letter" / "report.md").read_text()):
        assert results["headline"]["warning"] in text


def test_other_evaluations_are_compared_in_the_same_formulation(evaluate, tmp_path):
    evaluate(tmp_path / "before", "--scorer", "cloze", "--beside", "text", split="dev")
    rows = {}
    for scorer in ("letter", "text", "generate"):
        options = ["--max_new_tokens", "2", "--compare_with", tmp_path / "before"]
        _, results = evaluate(tmp_path / scorer, "--scorer", scorer, *options, split="dev")
        rows[scorer] = next(row for row in results["comparisons"] if row["name"].startswith(str(tmp_path)))
    for scorer in ("letter", "text"):
        assert rows[scorer]["name"] == str(tmp_path / "before")
        assert rows[scorer]["only_first"] == rows[scorer]["only_second"] == 0
    assert rows["generate"]["name"] == f"{tmp_path / 'before'} (cloze)"


def test_a_stop_in_any_formulation_loses_no_record(evaluate, tmp_path, monkeypatch):
    options = ["--scorer", "text", "--batch_size", "4", "--permutations", "4", "--include_text", "true"]
    evaluate(tmp_path / "straight", *options, split="dev")
    scored = []

    def counting(scorer, stop_after=None):
        def score(settings, questions):
            batches, number = scorer(settings, questions), count()

            def score_batch(batch):
                if next(number) == stop_after:
                    raise KeyboardInterrupt
                scored.extend((settings.formulation.name, questions[item]) for item in batch)
                return batches.score(batch)

            return replace(batches, score=score_batch)

        return score

    original = {**scorers.SCORERS}
    for stopped_in, stop_after in (("text", 20), ("letter", 2), (None, None)):
        for name in ("text", "letter"):
            stop = stop_after if name == stopped_in else None
            monkeypatch.setitem(scorers.SCORERS, name, counting(original[name], stop))
        if stopped_in:
            with pytest.raises(KeyboardInterrupt):
                evaluate(tmp_path / "stopped", *options, split="dev")
    assert len(scored) == 13 * 4 + 8
    assert len([*(tmp_path / "stopped").glob("records-*")]) == 2
    _, resumed = evaluate(tmp_path / "stopped", *options, split="dev")
    assert len(scored) == len(set(scored)) == 2 * 13 * 4
    straight = json.loads((tmp_path / "straight" / "eval.json").read_text())
    for name, found in resumed["formulations"].items():
        expected = straight["formulations"][name]["permutations"]
        assert found["permutations"]["accuracies"] == expected["accuracies"]
    for line, expected in zip(*map(predictions_of, (tmp_path / "stopped", tmp_path / "straight")), strict=True):
        assert (line["prediction"], line["beside"]) == (expected["prediction"], expected["beside"])
    assert not [*(tmp_path / "stopped").glob("records-*")]


def test_memorisation_is_measured_by_text_for_a_text_headline(evaluate, corpus, tmp_path):
    train = ["--train_questions", corpus / "questions.jsonl"]
    _, results = evaluate(tmp_path / "text", "--scorer", "text", *train, split="dev")
    _, letters = evaluate(tmp_path / "letter", *train, split="dev")
    probe = results["memorisation"]
    assert probe["nll_gap"] == pytest.approx(results["metrics"]["calibration"]["nll"] - probe["nll"])
    assert probe["nll"] != letters["memorisation"]["nll"]
    assert evaluate(tmp_path / "cloze", "--scorer", "cloze", *train, split="dev")[1]["memorisation"] is None


def test_reasons_may_take_half_of_the_context(evaluate, taught, tmp_path):
    _, results = evaluate(tmp_path / "eval", "--num_samples", "2", model=taught("reasoned"), split="dev")
    assert results["headline"]["name"] == "generate reasoned"
    assert results["config"]["max_new_tokens"] == 128
    found = results["metrics"]["generation"]
    assert found["mean_reasoning_length"] <= found["mean_length"] <= 128
    assert found["pass_at_k"]["1"] <= found["pass_at_k"]["2"]
    assert found["pass_at_k"]["1"] == pytest.approx(found["sample_accuracy"])
    report = (tmp_path / "eval" / "report.md").read_text()
    for part in (f"{found['mean_reasoning_length']:.1f} tokens", f"{found['reward']:.4f}"):
        assert part in report


def test_a_chat_model_is_prompted_in_its_template(evaluate, taught, questions, tmp_path, monkeypatch):
    template = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    prompts = []
    written = scorers.ScorerSettings.prompt
    monkeypatch.setattr(
        *(scorers.ScorerSettings, "prompt"),
        lambda settings, question: prompts.append(written(settings, question)) or prompts[-1],
    )
    options = ["--scorer", "generate", "--chat", "true", "--max_new_tokens", "2"]
    _, results = evaluate(tmp_path / "eval", *options, model=taught(chat_template=template), split="dev")
    assert [*results["formulations"]] == ["generate letter, chat", "letter"]
    plain = [format_prompt(question) for question in select_split(questions, "dev")]
    assert prompts == [f"<{prompt}>" for prompt in plain] + plain


def test_open_book_is_reported_with_closed_book(evaluate, books, questions, tmp_path):
    options = ["--passages", books, "--num_passages", "1"]
    printed, results = evaluate(tmp_path / "open", "--scorer", "text", *options)
    assert [*results["formulations"]] == ["text, open book", "text", "letter"]
    found = results["retrieval"]
    assert found["passages"] == 40
    assert found["left_out"] == 0
    assert found["metrics"]["passages"] == 1
    assert found["metrics"]["right_found"] >= 20 / 120
    _, closed = evaluate(tmp_path / "closed", "--scorer", "text")
    for line, other in zip(*map(predictions_of, (tmp_path / "open", tmp_path / "closed")), strict=True):
        assert line["beside"] == {"text": other["prediction"], **other["beside"]}
        assert line["log_likelihoods"] != other["log_likelihoods"]
    assert results["data"]["sha256"] == closed["data"]["sha256"]
    assert "by text" in printed.out
    assert f"{100 * found['metrics']['right_found']:.1f} %" in (tmp_path / "open" / "report.html").read_text()


@pytest.mark.parametrize("scorer", ["letter", "text", "cloze", "generate"])
def test_passages_leave_room_for_the_answer(evaluate, books, tmp_path, scorer):
    """Passages that do not fit in the context are truncated; the question never is."""
    (books / "two.txt").write_text("case fever cough rash pain heart statin aspirin " * 200)
    options = ["--scorer", scorer, "--max_new_tokens", "100", "--passages", books, "--num_passages", "5"]
    _, results = evaluate(tmp_path / "eval", *options, split="dev")
    assert results["metrics"]["cut_prompts"] == 0
    assert results["retrieval"]["metrics"]["passages"] >= 1


def test_changing_the_passages_starts_a_new_evaluation(evaluate, books, tmp_path, monkeypatch):
    """Records scored with other passages are not reused."""
    options = ["--passages", books, "--num_passages", "1"]

    with monkeypatch.context() as patch:
        patch.setitem(scorers.SCORERS, "letter", stops_after_one)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path / "eval", *options, split="dev")
    write_jsonl(books / "one.jsonl", [{"text": "fever cough rash pain"}])
    evaluate(tmp_path / "eval", *options, split="dev")
    assert predictions_of(tmp_path / "eval")[0]["log_likelihoods"][0] != 0
    assert len([*(tmp_path / "eval").glob("records-*")]) == 1

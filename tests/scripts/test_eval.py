"""Evaluation from the command line."""

import json

from tests.scripts.conftest import run


def test_results_and_predictions_agree(pretrained, corpus, questions, tmp_path):
    options = ["--questions", corpus / "questions.jsonl", "--split", "all", "--output_dir", tmp_path]
    printed = run("eval_medqa.py", "--model_name_or_path", pretrained, *options).stdout
    results = json.loads((tmp_path / "results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    right = [line["gold"] == line["prediction"] for line in lines]
    assert [line["digest"] for line in lines] == [question.digest for question in questions]
    assert results["metrics"]["accuracy"] == sum(right) / 120
    assert results["metrics"]["always"]["A"] == sum(question.answer == 0 for question in questions) / 120
    assert results["test_runs"] == 0
    for text in ("accuracy", "Wilson", "chance", "25.00%", "always one letter", "Not for clinical use"):
        assert text in printed


def test_dev_is_the_part_that_training_never_sees(pretrained, corpus, tmp_path):
    from modeling_pure.data.held_out import split_questions
    from modeling_pure.data.sources import Source

    options = ["--questions", corpus / "questions.jsonl", "--split", "dev", "--output_dir", tmp_path]
    run("eval_medqa.py", "--model_name_or_path", pretrained, *options)
    dev = {json.loads(line)["digest"] for line in (tmp_path / "predictions.jsonl").read_text().splitlines()}
    train = {q.digest for q in split_questions(Source("usmle", str(corpus / "questions.jsonl"), 1), 0.0)[0]}
    assert dev and not dev & train


def test_runs_of_the_test_split_are_counted(pretrained, corpus, tmp_path):
    options = ["--questions", corpus / "questions.jsonl", "--split", "test", "--output_dir", tmp_path]
    for count in (1, 2):
        run("eval_medqa.py", "--model_name_or_path", pretrained, *options)
        assert json.loads((tmp_path / "results.json").read_text())["test_runs"] == count

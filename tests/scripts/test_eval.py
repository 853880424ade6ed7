"""Evaluation from the command line: its files, resuming after a stop, and errors."""

import json
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from scipy.stats import fisher_exact
from transformers import AutoTokenizer

import eval_medqa
from modeling_pure.commands import decontaminate
from modeling_pure.console import DISCLAIMER
from modeling_pure.medqa import compare, scorers
from modeling_pure.medqa.card import SETTING
from tests.conftest import question_row, write_jsonl
from tests.processes import run
from tests.scripts.conftest import kill_once_written, predictions_of, run_ranks, start_ranks, stops_after_one


def test_results_and_predictions_agree(pretrained, corpus, questions, tmp_path):
    options = ["--questions", corpus / "questions.jsonl", "--split", "all", "--output_dir", tmp_path]
    options += ["--update_card", "false"]
    printed = run("eval_medqa.py", "--model_name_or_path", pretrained, *options).stdout
    results = json.loads((tmp_path / "eval.json").read_text())
    lines = predictions_of(tmp_path)
    right = [line["gold"] == line["prediction"] for line in lines]
    assert [line["id"] for line in lines] == [question.digest for question in questions]
    assert [line["prediction"] for line in lines] == ["ABCD"[np.argmax(line["log_likelihoods"])] for line in lines]
    metrics, data = results["metrics"], results["data"]
    assert metrics["accuracy"] == sum(right) / 120
    assert data["n"] == sum(data["labels"].values()) == 120
    assert metrics["always"]["A"] == data["labels"]["A"] / 120
    assert metrics["bias"]["confusion"][0][0] == sum(line["gold"] == line["prediction"] == "A" for line in lines)
    assert results["test_runs"] == 0
    assert results["schema_version"] == 4
    assert sum(part["n"] for name, part in results["slices"].items() if name.startswith("stem")) == 120
    names = [row["name"] for row in results["comparisons"]]
    assert names == ["chance", *(f"always {letter}" for letter in "ABCD"), "longest option"]
    figures = [f"{metrics['accuracy']:.2%}", f"{metrics['standard_error']:.2%}", "25.0 %"]
    for text in (*names, *figures, *(f"{100 * bound:.1f}" for bound in metrics["wilson_interval"]), DISCLAIMER):
        assert text in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("eval.json", "plots.png", "predictions.jsonl", "report.html", "report.md")
    ]


def test_reports_agree_with_the_results_and_hold_no_question(evaluate, questions, tmp_path):
    _, results = evaluate(tmp_path, "--permutations", "4")
    accuracy = f"{100 * results['metrics']['accuracy']:.1f} %"
    mean = f"{100 * results['metrics']['permutations']['mean_accuracy']:.1f} %"
    brier = f"{results['metrics']['calibration']['brier']:.4f}"
    names = [row["name"] for row in results["comparisons"]]
    page = (tmp_path / "report.html").read_text()
    for text in (page, (tmp_path / "report.md").read_text()):
        for part in (accuracy, mean, brier, *names, DISCLAIMER, results["data"]["sha256"]):
            assert part in text
    assert {*re.findall(r'(?:src|href)="([^"]{0,22})', page)} == {"data:image/png;base64,"}
    for file in tmp_path.iterdir():
        assert questions[0].question.encode() not in file.read_bytes()
    evaluate(tmp_path, "--include_text", "true")
    assert predictions_of(tmp_path)[0]["question"] == questions[0].question


def test_dev_questions_are_never_trained_on(evaluate, corpus, tmp_path):
    from modeling_pure.data.arguments import Source
    from modeling_pure.data.opening import split_questions

    evaluate(tmp_path, split="dev")
    dev = {line["id"] for line in predictions_of(tmp_path)}
    train = {q.digest for q in split_questions(Source("usmle", str(corpus / "questions.jsonl"), 1), 0.0)[0]}
    assert dev
    assert not dev & train


def test_evaluations_of_the_test_split_are_counted(evaluate, tmp_path):
    assert [evaluate(tmp_path, split="test")[1]["test_runs"] for _ in range(2)] == [1, 2]
    assert evaluate(tmp_path)[1]["test_runs"] == 2


@pytest.mark.parametrize("permutations", ["1", "4"])
def test_any_batch_size_gives_the_same_predictions(evaluate, tmp_path, permutations):
    """fp32: log-likelihoods to 1e-5 nats; predictions exactly unless two options are closer than that."""
    found = []
    for size in ("1", "7", "64"):
        _, results = evaluate(tmp_path / size, "--batch_size", size, "--permutations", permutations)
        found.append((results["metrics"], predictions_of(tmp_path / size)))
    for metrics, lines in found[1:]:
        assert metrics["near_ties"] == 0
        assert metrics["accuracy"] == found[0][0]["accuracy"]
        for first, second in zip(found[0][1], lines, strict=True):
            assert first["prediction"] == second["prediction"]
            assert second["log_likelihoods"] == pytest.approx(first["log_likelihoods"], abs=1e-5)


def test_a_killed_evaluation_resumes_and_scores_nothing_twice(evaluate, pretrained, corpus, tmp_path, monkeypatch):
    _, straight = evaluate(tmp_path / "straight", "--batch_size", "1", "--permutations", "24")
    stopped = tmp_path / "stopped"
    options = ["--questions", corpus / "questions.jsonl", "--split", "all", "--output_dir", stopped]
    options += ["--batch_size", "1", "--permutations", "24"]
    kill_once_written(stopped, "eval_medqa.py", "--model_name_or_path", pretrained, *options, lines=40)
    assert not (stopped / "eval.json").exists()
    (journal,) = stopped.glob("records-*.unfinished.jsonl")
    with journal.open("a") as file:
        file.write('{"item": 7, "log_lik')  # a truncated line
    held = len(journal.read_text().splitlines()) - 2
    new_prompts = []
    scored = scorers.label_log_likelihoods

    def counting(model, tokenizer, prompts, labels):
        new_prompts.extend(prompts)
        return scored(model, tokenizer, prompts, labels)

    monkeypatch.setattr(scorers, "label_log_likelihoods", counting)
    _, resumed = evaluate(stopped, "--batch_size", "1", "--permutations", "24")
    assert held > 0
    assert len(new_prompts) == 120 * 24 - held
    assert resumed["metrics"] == straight["metrics"]
    assert not journal.exists()
    assert predictions_of(stopped) == predictions_of(tmp_path / "straight")


EVERYTHING = ["--scorer", "generate", "--num_samples", "2", "--max_new_tokens", "4", "--beside", "letter", "text"]
EVERYTHING += ["--batch_size", "7", "--permutations", "4"]


def files_of(folder) -> dict[str, str]:
    """The files of an evaluation, without folder and time."""
    texts = {file.name: file.read_text() for file in folder.iterdir() if file.suffix in (".json", ".jsonl", ".md")}
    return {
        name: re.sub(r"\"seconds\": .*|\| time .*", "", text.replace(str(folder), "")) for name, text in texts.items()
    }


@pytest.mark.slow
def test_processes_share_an_evaluation_and_any_number_resumes_it(evaluate, pretrained, corpus, tmp_path, monkeypatch):
    """Two processes are killed and three continue: the journal and all files equal those of one process."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    journals = {}

    def keep(folder, *results):
        journals.update({file.name: file.read_bytes() for file in folder.glob("records-*")})

    with monkeypatch.context() as patch:
        patch.setattr(eval_medqa, "write_report", keep)
        evaluate(alone, *EVERYTHING)
    evaluate(alone, *EVERYTHING)
    command = [
        "eval_medqa.py",
        "--model_name_or_path",
        pretrained,
        "--questions",
        corpus / "questions.jsonl",
        *EVERYTHING,
    ]
    command += ["--split", "all", "--update_card", "false", "--output_dir", shared]
    ranks = start_ranks(*command)
    while not any(file.read_bytes().count(b"\n") > 20 for file in shared.glob("records-*")):
        assert {rank.poll() for rank in ranks} == {None}
        time.sleep(0.02)
    for rank in ranks:
        rank.kill_group(signal.SIGKILL)
        rank.wait()
    (left,) = shared.glob("records-*")
    assert 0 < len(left.read_bytes()) < len(journals[left.name])
    assert journals[left.name].startswith(left.read_bytes())
    first, *others = run_ranks(*command, number=3)
    assert "3 process" in first
    assert not any("3 process" in said for said in others)
    assert files_of(shared) == files_of(alone)
    assert {"eval.json", "predictions.jsonl", "report.md"} == {*files_of(shared)}


@pytest.mark.slow
def test_a_question_that_one_process_cannot_score_stops_all_and_is_named(pretrained, corpus, tmp_path):
    """The shortest question comes last, on one of three processes."""
    model = tmp_path / "model"
    shutil.copytree(pretrained, model, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    rows = [json.loads(line) for line in (corpus / "questions.jsonl").read_text().splitlines()][:7]
    weights = load_file(model / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows[4]["question"] = "~"
    (bad,) = tokenizer("~").input_ids
    weights["model.embed_tokens.weight"][bad] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    command = [
        "eval_medqa.py",
        "--model_name_or_path",
        model,
        "--questions",
        write_jsonl(tmp_path / "rows.jsonl", rows),
    ]
    command += ["--split", "all", "--batch_size", "1", "--output_dir", tmp_path / "eval"]
    for said in run_ranks(*command, number=3, expect=2):
        assert re.search(r"error: model_name_or_path: .*\brow 4\b", said.splitlines()[-1])
    (left,) = (tmp_path / "eval").glob("records-*")
    assert len(left.read_text().splitlines()) == 1 + 6


def test_records_of_another_evaluation_are_neither_used_nor_deleted(evaluate, tmp_path, monkeypatch):
    monkeypatch.setitem(scorers.SCORERS, "cloze", stops_after_one)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, "--scorer", "cloze")
    (left,) = tmp_path.glob("records-*")
    evaluate(tmp_path)
    assert predictions_of(tmp_path)[0]["log_likelihoods"][0] != 0
    assert list(tmp_path.glob("records-*")) == [left]


def test_everything_that_is_reported_with_the_accuracy(evaluate, train_here, corpus, questions, tmp_path):
    """Baselines, another evaluation, contamination and memorisation, in one table and in the files."""
    books = tmp_path / "books"
    books.mkdir()
    (books / "one.txt").write_text("aspirin helps in fever. " * 200)
    write_jsonl(books / "two.jsonl", [{"text": "insulin helps the heart"}])
    texts = [{"text": f"x {question.question * 2} y"} for question in questions[:3]]
    leaked = write_jsonl(tmp_path / "corpus.jsonl", [{"text": "held out"}, *texts, {"text": "no"}])
    train_here(
        *("--sources.mine.path", leaked, "--sources.mine.weight", "1", "--sources.mine.validation_documents", "1"),
        *("--tokenizer_name_or_path", "unused", "--decontaminate", corpus / "questions.jsonl"),
        *("--documents", "0", "--coverage", tmp_path / "coverage.json"),
        script=decontaminate,
    )
    evaluate(tmp_path / "before")
    printed, results = evaluate(
        tmp_path / "after",
        *("--permutations", "4", "--compare_with", tmp_path / "before", "--textbooks", books),
        *("--train_questions", corpus / "questions.jsonl", "--contamination", tmp_path / "coverage.json"),
    )
    rows = {row["name"]: row for row in results["comparisons"]}
    twin = rows[str(tmp_path / "before")]  # the same model, so named by its path
    assert (twin["only_first"], twin["only_second"], twin["p_value"], twin["difference"]) == (0, 0, 1, 0)
    for name in ("BM25 over train questions", "BM25 over textbooks"):
        assert rows[name]["n"] == 120
        assert name in printed.out
    assert all(row["p_holm"] >= row["p_value"] for row in rows.values())
    found = results["contamination"]
    assert found["documents"] == {"mine": 4}
    assert found["covered"] == found["covered_accuracy"]["n"] == 3
    assert found["clean"]["n"] == 117
    assert found["checked"] + found["too_short"] == 120
    assert results["memorisation"] is None  # every train question is among the evaluated ones
    assert "BM25 over textbooks" in (tmp_path / "after" / "report.html").read_text()


def test_memorisation_is_measured_on_train_questions(evaluate, corpus, questions, tmp_path):
    _, results = evaluate(tmp_path, "--train_questions", corpus / "questions.jsonl", split="dev")
    memorisation, metrics = results["memorisation"], results["metrics"]
    assert memorisation["n"] == metrics["n"] < 120
    assert memorisation["accuracy_gap"] == memorisation["accuracy"] - metrics["accuracy"]
    assert memorisation["nll_gap"] == pytest.approx(metrics["calibration"]["nll"] - memorisation["nll"])
    right = [round(part["accuracy"] * part["n"]) for part in (memorisation, metrics)]
    table = [[one, part["n"] - one] for one, part in zip(right, (memorisation, metrics), strict=True)]
    assert memorisation["accuracy_p"] == pytest.approx(fisher_exact(table).pvalue)
    assert 0 < memorisation["nll_p"] < 1
    report = (tmp_path / "report.md").read_text()
    for name in ("accuracy_p", "nll_p"):
        assert f"{memorisation[name]:.2g}" in report


@pytest.mark.parametrize("scorer", ["cloze", "generate"])
def test_other_scorers_write_the_same_files(evaluate, tmp_path, scorer):
    _, results = evaluate(tmp_path, "--scorer", scorer, "--num_samples", "2", "--max_new_tokens", "4")
    right = [line["gold"] == line["prediction"] for line in predictions_of(tmp_path)]
    assert results["metrics"]["accuracy"] == sum(right) / 120
    expected = {"cloze": {"sum", "per_character", "pmi"}, "generate": {"generation"}}[scorer]
    found = results["metrics"]["accuracy_by"] or {"generation": results["metrics"]["generation"]}
    assert set(found) == expected
    if scorer == "generate":
        written = results["metrics"]["generation"]
        assert written["samples"] == 2
        assert written["mean_length"] <= 4
        assert written["sample_accuracy"] - 0.01 <= written["reward"] <= written["sample_accuracy"]
        assert "completions" not in predictions_of(tmp_path)[0]
    assert (tmp_path / "report.html").exists()


def test_the_card_has_the_accuracy_in_the_hubs_format(evaluate, pretrained, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(pretrained, model, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    before = ModelCard.load(model / "README.md").text
    for options in ([], ["--scorer", "cloze"], []):  # the last replaces the first
        _, results = evaluate(tmp_path / "eval", *options, model=model)
    card = ModelCard.load(model / "README.md")
    entries = {(entry.metric_name, entry.dataset_split): entry for entry in card.data.eval_results}
    letter = entries[f"accuracy (letter, {SETTING})", "all"]
    assert len(entries) == len(card.data.eval_results) == 2 + before.count("<!-- evaluation: questions.jsonl")
    assert letter.metric_value == pytest.approx(results["metrics"]["accuracy"], abs=1e-6)
    assert letter.metric_args["n"] == 120
    assert letter.dataset_split == "all"
    assert letter.metric_args["wilson_95"] == pytest.approx(results["metrics"]["wilson_interval"], abs=1e-6)
    for row in results["comparisons"]:
        assert f"| {row['name']} |" in card.text
    assert DISCLAIMER in card.text
    assert card.text.count("<!-- evaluation: questions.jsonl") == 2 + before.count("<!-- evaluation: questions.jsonl")
    foreign = tmp_path / "foreign"
    shutil.copytree(model, foreign)
    (foreign / "README.md").write_text("# Mine\n")
    evaluate(tmp_path / "eval", model=foreign)
    assert (foreign / "README.md").read_text() == "# Mine\n"


def test_evaluations_are_compared_from_their_files(evaluate, train_here, tmp_path):
    evaluate(tmp_path / "a")
    evaluate(tmp_path / "b", "--scorer", "cloze")
    evaluate(tmp_path / "c", split="dev")
    printed = train_here(tmp_path / "a" / "eval.json", tmp_path / "b", tmp_path / "a", script=compare).out
    right = [[line["gold"] == line["prediction"] for line in predictions_of(tmp_path / name)] for name in "ab"]
    gained = sum(second and not first for first, second in zip(*right, strict=True))
    lost = sum(first and not second for first, second in zip(*right, strict=True))
    assert f"{gained} / {lost}" in printed
    assert "0 / 0" in printed
    message = train_here(tmp_path / "a", tmp_path / "c", script=compare, expect=2).err
    assert re.search(r"error: EVAL\.json: .*\b13\b.*\b13\b.*\b120\b", message)
    (tmp_path / "b" / "predictions.jsonl").unlink()
    message = train_here(tmp_path / "a", tmp_path / "b", script=compare, expect=2).err
    assert re.search(rf"error: EVAL\.json: '{tmp_path / 'b'}' .*FileNotFoundError", message)
    assert train_here(tmp_path / "a", script=compare, expect=2).err.count("error: ") == 1


def test_truncated_prompts_and_repeated_questions_are_counted(evaluate, questions, tmp_path):
    rows = [question_row(question) for question in questions[:20]]
    rows[4]["question"] = "fever " * 300 + rows[4]["question"]
    rows[7]["options"] = dict.fromkeys("ABCD", "R&amp;D")
    rows[7]["answer"] = "R&amp;D"
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[2]])
    printed, results = evaluate(tmp_path / "eval", "--questions", path)
    assert results["metrics"]["cut_prompts"] == 1
    assert results["data"]["repeated_rows"] == [[20, 2]]
    flaws = {"same_options": [7], "right_option_twice": [7], "empty_options": [], "html_entities": [7]}
    assert results["data"]["flaws"] == flaws
    assert (tmp_path / "eval" / "report.md").read_text().count("1 (row 7)") == 2
    assert re.search(r"\b1 \(\D*\b20\b\D*\b2\)", printed.out)
    assert [line["cut"] for line in predictions_of(tmp_path / "eval")].index(True) == 4


@pytest.mark.parametrize("scorer", ["letter", "cloze", "generate", "sampled"])
def test_weights_that_are_not_finite_are_refused(evaluate, pretrained, tmp_path, scorer):
    model = tmp_path / "model"
    shutil.copytree(pretrained, model, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"][:] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    options = {"sampled": ["--scorer", "generate", "--num_samples", "2"]}.get(scorer, ["--scorer", scorer])
    _, message = evaluate(tmp_path / "eval", *options, model=model, expect=2)
    assert re.search(r"error: model_name_or_path: .*\brow \d+\b", message)
    assert not (tmp_path / "eval" / "eval.json").exists()


def test_an_answer_as_long_as_the_context_is_refused(evaluate, tmp_path):
    _, message = evaluate(tmp_path, "--scorer", "generate", "--max_new_tokens", "256", expect=2)
    assert re.search(r"error: max_new_tokens: 256 .*\b256\b", message)


def test_files_of_different_evaluations_are_refused(evaluate, train_here, tmp_path):
    for name, scorer in (("a", "letter"), ("b", "cloze")):
        evaluate(tmp_path / name, "--scorer", scorer)
    (tmp_path / "a" / "predictions.jsonl").write_bytes((tmp_path / "b" / "predictions.jsonl").read_bytes())
    message = train_here(tmp_path / "a", tmp_path / "b", script=compare, expect=2).err
    assert re.search(rf"error: EVAL\.json: '{tmp_path / 'a'}' .*ValueError", message)
    (tmp_path / "a" / "eval.json").write_text('{"cut o')
    assert re.search(rf"error: output_dir: '{tmp_path / 'a' / 'eval.json'}' ", evaluate(tmp_path / "a", expect=2)[1])


def test_unicode_line_separators_are_kept(evaluate, questions, tmp_path):
    """Unicode line separators, at which str.splitlines would split."""
    rows = [question_row(question) for question in questions[:9]]
    rows[3]["question"] += "\u2028Which?\u0085\x1e"
    path = write_jsonl(tmp_path / "odd.jsonl", rows)
    evaluate(tmp_path / "a", "--questions", path, "--include_text", "true")
    evaluate(tmp_path / "b", "--questions", path, "--compare_with", tmp_path / "a")
    assert predictions_of(tmp_path / "a")[3]["question"] == rows[3]["question"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "medqa"], "task: .*'medqa_4options'.*'medqa'$"),
        (["--scorer", "letters"], "scorer: .*'letter'.*'letters'$"),
        (["--permutations", "3"], r"permutations: .*\[1, 4, 24\].*\b3$"),
        (["--beside", "letters"], r"beside: .*'letter'.*'letters'\]$"),
        (["--answer_format", "texts", "--scorer", "generate"], r"answer_format: .*'text'.*'texts'$"),
        (["--answer_format", "text"], "answer_format: .*generate$"),
        (["--chat", "true", "--scorer", "text"], "chat: .*generate$"),
        (["--chat", "true", "--scorer", "generate"], "chat: "),
        (["--num_samples", "-1"], "num_samples: .*-1$"),
        (["--passages", ".", "--num_passages", "0"], "num_passages: .*0$"),
        (["--task", "pubmedqa", "--beside", "cloze"], r"scorer: pubmedqa\b"),
        (["--task", "pubmedqa", "--scorer", "generate"], r"scorer: pubmedqa\b"),
        (["--batch_size", "0"], "batch_size: .*0$"),
        (["--temperature", "0"], "temperature: "),
        (["--temperature", "nan"], "temperature: "),
        (["--length_penalty_min_tokens", "-4"], "length_penalty_min_tokens: .*-4$"),
        (["--textbooks", "/nowhere"], "textbooks: '/nowhere' "),
        (["--compare_with", "/nowhere"], "compare_with: '/nowhere' "),
        (["--contamination", "/nowhere"], "contamination: .*'/nowhere'"),
        (["--train_questions", "/nowhere.jsonl"], r"train_questions: .*'/nowhere\.jsonl'"),
        (["--questions", "GBaker/MedQA-USMLE-4-options"], r"split: all\b"),
        (["--task", "pubmedqa"], r"questions: row 0 .*\bfinal_decision\b"),
    ],
)
def test_refused_before_a_model_is_loaded(evaluate, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(eval_medqa, "load_model", None)
    _, err = evaluate(tmp_path / "eval", *options, expect=2)
    assert re.match(rf"eval_medqa\.py: error: {message}", err.rstrip()), err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "eval").exists()


def test_files_about_other_questions_are_refused(evaluate, questions, tmp_path):
    evaluate(tmp_path / "dev", split="dev")
    _, err = evaluate(tmp_path / "all", "--compare_with", tmp_path / "dev", expect=2)
    assert re.search(r"error: compare_with: .*\b13\b.*\bmedqa_4options\b.*\b13\b.*\b120\b", err)
    (tmp_path / "coverage.json").write_text(json.dumps({"documents": {}, "questions": {}}))
    _, err = evaluate(tmp_path / "all", "--contamination", tmp_path / "coverage.json", expect=2)
    assert re.search(rf"error: contamination: '{tmp_path / 'coverage.json'}' .*\b120\b.*\b120\b", err)
    path = write_jsonl(tmp_path / "one.jsonl", [question_row(questions[0])])
    assert re.search(f"error: questions: '{path}' ", evaluate(tmp_path / "all", "--questions", path, expect=2)[1])


def test_other_data_sets(evaluate, questions, tmp_path):
    """MedMCQA and PubMedQA through the same code; with slices by subject if the data set has subjects."""
    rows = [
        {"question": q.question, "cop": q.answer, "subject_name": ("Surgery", "Anatomy")[i % 2]}
        | {f"op{letter}": option for letter, option in zip("abcd", q.options, strict=True)}
        for i, q in enumerate(questions)
    ]
    path = write_jsonl(tmp_path / "medmcqa.jsonl", rows)
    _, results = evaluate(tmp_path / "medmcqa", "--task", "medmcqa", "--questions", path, "--permutations", "4")
    assert results["slices"]["meta_info Surgery"]["n"] == 60
    rows = [
        {"question": q.question, "contexts": ["a", "b"], "final_decision": ("yes", "no", "maybe")[i % 3]}
        for i, q in enumerate(questions)
    ]
    path = write_jsonl(tmp_path / "pubmedqa.jsonl", rows)
    _, results = evaluate(tmp_path / "pubmedqa", "--task", "pubmedqa", "--questions", path)
    assert results["metrics"]["chance"] == 1 / 3
    assert list(results["metrics"]["always"]) == ["yes", "no", "maybe"]
    assert {line["gold"] for line in predictions_of(tmp_path / "pubmedqa")} == {"yes", "no", "maybe"}

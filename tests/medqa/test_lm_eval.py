"""Against lm-evaluation-harness 0.4.13: its stock tasks on a local file, with the same model.

Prompts are compared byte for byte, log-likelihoods to 1e-4 nats (fp32, other batch shapes), predictions, accuracy and
standard error exactly.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modeling_pure.medqa.accuracy import measure
from modeling_pure.medqa.formulations import BY_LETTER, CLOZE, ORDERS
from modeling_pure.medqa.scorers import ScorerSettings, score_letters, score_texts
from modeling_pure.medqa.tasks import MEDQA, MMLU_MEDICAL, TASKS
from tests.conftest import adding, question_row, write_jsonl

lm_eval = pytest.importorskip("lm_eval")
STOCK = Path(lm_eval.__file__).parent / "tasks"


def run_lm_eval(model, tokenizer, folder: Path, task: dict) -> tuple[dict, list[dict]]:
    """Results and samples of one task, in the order of the documents."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    (folder / "task.yaml").write_text(json.dumps(task))
    result = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu"),
        tasks=[task["task"]],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=1,  # the standard error of a mean needs no bootstrap, but 0 omits it
    )
    return result["results"][task["task"]], sorted(result["samples"][task["task"]], key=lambda s: s["doc_id"])


def stock_task(name: str, stock: str, data: Path) -> dict:
    """A stock task that reads a local file."""
    return {
        "include": str(STOCK / stock),
        "task": f"{name}_local",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
    }


def rows_of(name: str, questions) -> list[dict]:
    """The questions in the format of each data set, with whitespace as in the real ones."""
    if name == "medqa_4options":
        return [
            {"id": str(i), "sent1": f"{q.question} ", "sent2": "", "label": q.answer}
            | {f"ending{k}": f" {option}" for k, option in enumerate(q.options)}
            for i, q in enumerate(questions)
        ]
    if name == "medmcqa":
        return [
            {"question": q.question, "cop": q.answer, "subject_name": "Surgery"}
            | {f"op{letter}": option for letter, option in zip("abcd", q.options, strict=True)}
            for q in questions
        ]
    if name == "pubmedqa":
        return [
            {
                "QUESTION": f"Does {q.options[0]} help?",
                "CONTEXTS": [q.question, "Results."],
                "final_decision": ("yes", "no", "maybe")[i % 3],
            }
            for i, q in enumerate(questions)
        ]
    return [
        {"question": f" {q.question}\n", "choices": list(q.options), "answer": q.answer, "subject": "x"}
        for q in questions
    ]


STOCK_FILES = {
    "medqa_4options": "medqa/medqa.yaml",
    "medmcqa": "medmcqa/medmcqa.yaml",
    "pubmedqa": "pubmedqa/pubmedqa.yaml",
    **{task.name: f"mmlu/default/{task.name}.yaml" for task in MMLU_MEDICAL},
}


@pytest.mark.parametrize("name", [name for name in TASKS if not name.startswith("mmlu")] + ["mmlu_college_medicine"])
def test_letter_scores_are_lm_evals(name, model, tokenizer, questions, tmp_path):
    chosen = questions if name == "medqa_4options" else questions[:40]
    data, task = write_jsonl(tmp_path / "test.jsonl", rows_of(name, chosen)), TASKS[name]
    theirs, samples = run_lm_eval(model, tokenizer, tmp_path, stock_task(name, STOCK_FILES[name], data))
    read = task.read("questions", str(data))
    records = [record for _, record in sorted(score_letters(ScorerSettings(model, tokenizer, task, 5), read))]
    assert [sample["arguments"][0][0] for sample in samples] == [task.prompt(question) for question in read]
    their_scores = np.array([[float(answer[0][0]) for answer in sample["resps"]] for sample in samples])
    ours = np.array([record["log_likelihoods"] for record in records])
    np.testing.assert_allclose(ours, their_scores, atol=1e-4, rtol=0)
    scored = measure(task, read, BY_LETTER, records, ORDERS[1])
    assert scored.predictions.tolist() == their_scores.argmax(-1).tolist()
    assert scored.metrics.accuracy == theirs["acc,none"]
    assert scored.metrics.standard_error == pytest.approx(theirs["acc_stderr,none"], abs=1e-12)


def test_a_prepended_token_is_scored_as_in_lm_eval(model, tokenizer, questions, tmp_path):
    """Llama has such a token, and third-party models are trained with it."""
    begins, task = adding(tokenizer, front="<|pad|>"), TASKS["medmcqa"]
    data = write_jsonl(tmp_path / "test.jsonl", rows_of("medmcqa", questions[:20]))
    _, samples = run_lm_eval(model, begins, tmp_path, stock_task("medmcqa", STOCK_FILES["medmcqa"], data))
    records = sorted(score_letters(ScorerSettings(model, begins, task), task.read("questions", str(data))))
    their_scores = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
    np.testing.assert_allclose([r["log_likelihoods"] for _, r in records], their_scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [task.name for task in MMLU_MEDICAL])
def test_prompts_of_mmlu_subjects_are_lm_evals(name, questions):
    import yaml

    class Loader(yaml.SafeLoader):
        """lm-eval's files name functions with a tag."""

    stock = yaml.load((STOCK / STOCK_FILES[name]).read_text(), Loader)
    prompt = TASKS[name].prompt(questions[0])
    assert prompt.startswith(stock["description"])
    assert stock["dataset_name"] == TASKS[name].config
    assert prompt.removeprefix(stock["description"]).startswith(questions[0].question.strip())


def test_cloze_scores_are_lm_evals(model, tokenizer, questions, tmp_path):
    """The option's text after the question: accuracy by sum is lm-eval's acc, by characters its acc_norm."""
    longer = [replace(q, options=tuple(f"{o} and " * k + o for k, o in enumerate(q.options))) for q in questions[:40]]
    rows = [question_row(question) | {"choices": list(question.options)} for question in longer]
    data = write_jsonl(tmp_path / "test.jsonl", rows)
    metric = {"aggregation": "mean", "higher_is_better": True}
    task = {
        "task": "cloze_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{['A','B','C','D'].index(answer_idx)}}",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc", **metric}, {"metric": "acc_norm", **metric}],
    }
    theirs, samples = run_lm_eval(model, tokenizer, tmp_path, task)
    read = MEDQA.read("questions", str(data))
    records = [record for _, record in sorted(score_texts(ScorerSettings(model, tokenizer, MEDQA, 3, CLOZE), read))]
    their_scores = [[float(answer[0][0]) for answer in sample["resps"]] for sample in samples]
    np.testing.assert_allclose([r["log_likelihoods"] for r in records], their_scores, atol=1e-4, rtol=0)
    metrics = measure(MEDQA, read, CLOZE, records, ORDERS[1]).metrics
    assert metrics.accuracy_by["sum"] == theirs["acc,none"]
    assert metrics.accuracy_by["per_character"] == metrics.accuracy == theirs["acc_norm,none"]

"""Letter log-likelihoods against one forward pass per question, and against lm-evaluation-harness."""

import json

import pytest
import torch

from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.medqa.evaluation import compare_folders, summarise, write_results
from modeling_pure.medqa.prompt import format_prompt
from modeling_pure.medqa.questions import Question
from modeling_pure.medqa.scoring import letter_log_likelihoods
from modeling_pure.medqa.statistics import standard_error
from tests.conftest import question_row, write_jsonl


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = PureConfig.from_preset(
        "tiny", hidden_size=64, intermediate_size=160, initializer_range=0.1, head_initializer_range=0.1
    )
    return PureForCausalLM(config).eval()


@torch.no_grad()
def one_by_one(model, tokenizer, questions) -> torch.Tensor:
    """The plain way: whole logits of each prompt by itself."""
    letters = [tokenizer(f" {letter}").input_ids[0] for letter in "ABCD"]
    rows = []
    for question in questions:
        ids = torch.tensor([tokenizer(format_prompt(question)).input_ids])
        rows.append(model(ids).logits[0, -1].log_softmax(-1)[letters])
    return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batches_score_like_single_prompts(model, tokenizer, questions, batch_size):
    stems = [Question(q.question * (1 + i % 5), q.options, q.answer) for i, q in enumerate(questions[:40])]
    scores = letter_log_likelihoods(model, tokenizer, stems, batch_size)
    # fp32: kernels for other batch shapes add in another order, about 1e-6 at these magnitudes.
    torch.testing.assert_close(scores, one_by_one(model, tokenizer, stems), atol=1e-5, rtol=0)


def test_a_prompt_longer_than_the_context_is_cut_from_the_left(model, tokenizer, questions):
    long = Question("fever " * 600 + questions[0].question, questions[0].options, 0)
    ids = tokenizer(format_prompt(long)).input_ids
    assert len(ids) > model.config.max_position_embeddings
    with torch.no_grad():
        logits = model(torch.tensor([ids[-512:]])).logits[0, -1].log_softmax(-1)
    letters = [tokenizer(f" {letter}").input_ids[0] for letter in "ABCD"]
    torch.testing.assert_close(letter_log_likelihoods(model, tokenizer, [long])[0], logits[letters], atol=1e-5, rtol=0)


def test_lm_evaluation_harness_agrees(model, tokenizer, questions, tmp_path):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    data = write_jsonl(tmp_path / "test.jsonl", [question_row(q) for q in questions])
    task = {
        "task": "medqa_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nA. {{options['A']}}\nB. {{options['B']}}\nC. {{options['C']}}\n"
        "D. {{options['D']}}\nAnswer:",
        "doc_to_target": "{{['A','B','C','D'].index(answer_idx)}}",
        "doc_to_choice": ["A", "B", "C", "D"],
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    result = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, device="cpu"),
        tasks=["medqa_local"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(result["samples"]["medqa_local"], key=lambda sample: sample["doc_id"])
    theirs = torch.tensor([[float(answer[0][0]) for answer in sample["resps"]] for sample in samples])
    ours = letter_log_likelihoods(model, tokenizer, questions)
    assert [s["arguments"][0][0] for s in samples] == [format_prompt(q) for q in questions]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert summarise(questions, ours)["accuracy"] == result["results"]["medqa_local"]["acc,none"]


def test_summary_counts_letters_and_ties_go_to_the_first(questions):
    scores = torch.zeros(len(questions), 4).log_softmax(-1)
    metrics = summarise(questions, scores)
    assert metrics["predicted"] == {"A": 1.0, "B": 0.0, "C": 0.0, "D": 0.0}
    assert metrics["accuracy"] == metrics["always"]["A"]
    assert metrics["standard_error"] == standard_error([q.answer == 0 for q in questions])
    assert metrics["letter_mass"] == pytest.approx(1.0)


def test_two_evaluations_are_compared_question_by_question(questions, tmp_path):
    right = torch.tensor([[0.0 if i == q.answer else -9.0 for i in range(4)] for q in questions])
    write_results(tmp_path / "a", {}, questions, torch.zeros(len(questions), 4))
    write_results(tmp_path / "b", {}, questions, right)
    result = compare_folders(tmp_path / "a", tmp_path / "b")
    assert result["only_first"] == 0
    assert result["only_second"] == sum(q.answer != 0 for q in questions)
    assert questions[0].question not in (tmp_path / "a" / "predictions.jsonl").read_text()

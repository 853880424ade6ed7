"""The two `evaluate` modules: loaded by path, against scipy, brute force, and resampling."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from transformers import EvalPrediction

from modeling_pure.medqa.metrics import FOLDER, compute_metrics
from modeling_pure.medqa.metrics.medqa_accuracy import medqa_accuracy
from modeling_pure.medqa.metrics.paired_mcq_comparison import paired_mcq_comparison

NAMES = ("medqa_accuracy", "paired_mcq_comparison")


@cache
def load_metric(name: str) -> evaluate.EvaluationModule:
    """Load a module by its path, without a file for its input."""
    return evaluate.load(str(FOLDER / name), keep_in_memory=True)


answers = st.lists(st.integers(-1, 3), min_size=2, max_size=200)


@given(answers, st.data())
def test_accuracy_and_standard_error(predictions, data):
    references = data.draw(st.lists(st.integers(0, 3), min_size=len(predictions), max_size=len(predictions)))
    result = load_metric("medqa_accuracy").compute(predictions=predictions, references=references, n_resamples=0)
    right = np.equal(predictions, references)
    assert result["accuracy"] == right.mean()
    assert result["correct"] == right.sum()
    assert result["n"] == len(right)
    assert result["standard_error"] == pytest.approx(right.std(ddof=1) / np.sqrt(len(right)), abs=1e-12)
    of_option = [right[np.equal(references, option)].mean() for option in sorted(set(references))]
    assert list(result["recall"].values()) == of_option
    assert result["balanced_accuracy"] == pytest.approx(np.mean(of_option), abs=1e-12)
    assert "bootstrap_interval" not in result


@given(st.integers(1, 2000), st.data(), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_interval_is_scipys(n, data, level):
    correct = data.draw(st.integers(0, n))
    theirs = binomtest(correct, n).proportion_ci(level, method="wilson")
    assert medqa_accuracy.wilson_interval(correct, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_always_a_on_medqa():
    low, high = medqa_accuracy.wilson_interval(353, 1273)
    assert (round(low, 4), round(high, 4)) == (0.2534, 0.3025)
    assert round(medqa_accuracy.standard_error(353, 1273), 4) == 0.0126


@given(st.integers(0, 700), st.integers(0, 700))
def test_mcnemar_is_scipys_binomial_test(only_first, only_second):
    ours = paired_mcq_comparison.exact_mcnemar(only_first, only_second)
    n = only_first + only_second
    assert ours == pytest.approx(binomtest(only_first, n).pvalue if n else 1.0, rel=1e-9)


@given(answers, st.data())
def test_a_comparison_counts_questions_that_only_one_has_right(first, data):
    size = {"min_size": len(first), "max_size": len(first)}
    second = data.draw(st.lists(st.integers(-1, 3), **size))
    gold = data.draw(st.lists(st.integers(0, 3), **size))
    result = load_metric("paired_mcq_comparison").compute(predictions1=first, predictions2=second, references=gold)
    pairs = list(zip(first, second, gold, strict=True))
    assert result["only_first"] == sum(a == g != b for a, b, g in pairs)
    assert result["only_second"] == sum(b == g != a for a, b, g in pairs)
    assert result["difference"] == (result["only_second"] - result["only_first"]) / len(pairs)
    low, high = result["bootstrap_interval"]
    assert low <= result["difference"] <= high


def test_bootstraps_match_resampled_questions():
    """Counts have the distribution of resampled questions; two seeds differ as much as the two methods."""
    rng = np.random.default_rng(1)
    first, second = rng.random(300) < 0.4, rng.random(300) < 0.55
    picks = rng.integers(0, 300, (20_000, 300))
    plain = np.quantile(first[picks].mean(1), [0.025, 0.975])
    ours = medqa_accuracy.bootstrap_interval(int(first.sum()), 300, 20_000)
    assert ours == pytest.approx(plain, abs=2 / 300)
    plain = np.quantile(second[picks].mean(1) - first[picks].mean(1), [0.025, 0.975])
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    ours = paired_mcq_comparison.bootstrap_interval(only_first, only_second, 300, 20_000)
    assert ours == pytest.approx(plain, abs=2 / 300)


def test_a_seed_decides_the_bootstrap():
    metric = load_metric("medqa_accuracy")
    same = [metric.compute(predictions=[0, 1] * 99, references=[0, 0] * 99, seed=3) for _ in range(2)]
    assert same[0] == same[1]


@pytest.mark.parametrize("name", NAMES)
def test_no_predictions_is_an_error(name):
    columns = ["predictions"] if name == "medqa_accuracy" else ["predictions1", "predictions2"]
    with pytest.raises(ValueError, match=f"^{name}: "):
        load_metric(name).compute(references=[], **{column: [] for column in columns})


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_paths_work_as_for_any_module(name, monkeypatch):
    monkeypatch.chdir(FOLDER)
    module = evaluate.load(f"./{name}")
    columns = ["predictions"] if name == "medqa_accuracy" else ["predictions1", "predictions2"]
    for _ in range(2):
        module.add_batch(references=[0, 1], **{column: [0, 2] for column in columns})
    result = module.compute()
    found = {"medqa_accuracy": "accuracy", "paired_mcq_comparison": "difference"}[name]
    assert result[found] == {"accuracy": 0.5, "difference": 0}[found]


@pytest.mark.parametrize("name", NAMES)
def test_a_module_needs_numpy_and_scipy_and_one_import_a_line(name):
    tree = ast.parse((FOLDER / name / f"{name}.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports]
    assert set(names) <= {"datasets", "evaluate", "numpy", "scipy.stats", *sys.stdlib_module_names}
    assert all(isinstance(node, ast.ImportFrom) or len(node.names) == 1 for node in imports)


def test_modules_travel_with_the_package():
    """`pip install` copies both folders."""
    root = Path(__file__).parents[3]
    find = "import setuptools; print(*setuptools.find_packages(include=['modeling_pure*']))"
    found = subprocess.run([sys.executable, "-c", find], cwd=root, capture_output=True, text=True, check=True)
    assert {f"modeling_pure.medqa.metrics.{name}" for name in NAMES} <= set(found.stdout.split())


def test_compute_metrics_for_a_trainer():
    logits = np.array([[2.0, 0, 0, 0], [0, 0, 0, 0], [0, 5.0, 0, 0]])
    metrics = compute_metrics(EvalPrediction(logits, np.array([0, 0, 2])))
    assert metrics["accuracy"] == 2 / 3  # the tie goes to the first
    nats = [np.log(np.exp(row).sum()) - row[gold] for row, gold in zip(logits, [0, 0, 2], strict=True)]
    assert metrics["nll"] == pytest.approx(np.mean(nats))
    logits[1, 2] = np.nan
    assert all(np.isnan(value) for value in compute_metrics(EvalPrediction(logits, np.array([0, 0, 2]))).values())

"""GPT-2's six tasks: lm-evaluation-harness's own definitions, on small files in each data set's format."""

import json
from pathlib import Path

import datasets
import pytest
import torch
import yaml

from modeling_pure import PureConfig, PureForCausalLM, general
from modeling_pure.general import GeneralArguments, chance_of, summarise

ROOT = Path(__file__).parents[2]
SIX = yaml.safe_load((ROOT / "recipes/general.yaml").read_text())["tasks"]

ARC = {"id": "1", "question": "What boils at 100 degrees?", "answerKey": "B"}
ROWS = {
    "cais/mmlu": [
        {"question": f"What is {i} and {i}?", "subject": "x", "choices": ["one", "two", "six", "ten"], "answer": i % 4}
        for i in range(6)
    ],
    "Rowan/hellaswag": [
        {
            "activity_label": "Cooking",
            "ctx_a": "A man opens a pot.",
            "ctx_b": f"he takes {i} eggs",
            "endings": ["and boils them.", "and flies away.", "into the sea [step] now.", "of stone."],
            "label": str(i % 4),
        }
        for i in range(5)
    ],
    "allenai/ai2_arc": [
        {**ARC, "choices": {"text": ["ice", "water", "iron", "gold"], "label": list("ABCD")}},
        {**ARC, "choices": {"text": ["ice", "water", "iron"], "label": list("ABC")}},
        {**ARC, "choices": {"text": ["ice", "water", "iron", "gold", "tin"], "label": list("ABCDE")}},
    ],
    "baber/piqa": [
        {"goal": f"Cut {i} apples.", "sol1": "Use a knife.", "sol2": "Use a lamp.", "label": i % 2} for i in range(4)
    ],
    "allenai/winogrande": [
        {"sentence": "The cup fell on Ann, so _ was wet.", "option1": "Ann", "option2": "the cup", "answer": answer}
        for answer in "121"
    ],
    "truthfulqa/truthful_qa": [
        {
            "question": f"Is the sky green ({i})?",
            "mc1_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]},
            "mc2_targets": {"choices": ["No.", "Never.", "Yes.", "Always."][: 3 + i], "labels": [1, 1, 0, 0][: 3 + i]},
        }
        for i in range(2)
    ],
}
CHANCE = {
    "mmlu": 1 / 4,
    "hellaswag": 1 / 4,
    "arc_challenge": (1 / 4 + 1 / 3 + 1 / 5) / 3,
    "piqa": 1 / 2,
    "winogrande": 1 / 2,
    "truthfulqa_mc2": (2 / 3 + 2 / 4) / 2,
}


@pytest.fixture
def small_files(monkeypatch):
    """The data sets as lm-evaluation-harness asks for them, with these rows in every split."""

    def load_dataset(path, name=None, **kwargs):
        rows = datasets.Dataset.from_list(ROWS[path])
        asked = rows.select(range(1)) if path == "cais/mmlu" else rows  # it has 57 subjects
        return datasets.DatasetDict(train=rows, validation=rows, test=asked, dev=rows)

    pytest.importorskip("lm_eval")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory) -> dict[str, Path]:
    """A random model, and one to which every token is equally likely."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name in ("random", "even"):
        scale = 0.1 if name == "random" else 0.0
        config = PureConfig.from_preset("tiny", initializer_range=0.1, head_initializer_range=scale)
        model = PureForCausalLM(config)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in ("random", "even")}


@pytest.fixture
def run_general(train_here, tmp_path):
    def run_general(*options, expect: int = 0):
        settings = ["--config", ROOT / "recipes/general.yaml", "--output_dir", tmp_path / "out", "--limit", "4"]
        return train_here(*settings, *options, script=general, expect=expect)

    return run_general


def test_all_six_tasks_on_both_models(small_files, models, run_general, tmp_path):
    printed = run_general(
        *("--model_name_or_path", models["random"], "--reference_model_name_or_path", models["even"])
    ).out
    results = json.loads((tmp_path / "out" / "general.json").read_text())
    ours, even = results["models"].values()
    assert list(ours) == list(even) == list(SIX)
    for task, chance in CHANCE.items():
        assert ours[task]["chance"] == pytest.approx(chance)
        score = ours[task]["score"]
        assert 0 <= score <= 1 and ours[task]["normalised"] == pytest.approx((score - chance) / (1 - chance))
    assert ours["mmlu"]["n"] == 57
    assert results["summary"] == summarise(ours, even)
    markdown = (tmp_path / "out" / "general.md").read_text()
    for text in (printed, markdown):
        assert f"{100 * ours['winogrande']['score']:.1f}" in text
        assert f"a coin has {results['summary']['coin_ratio']:.1%}" in text
        assert "Not for clinical use" in text


def test_a_model_without_preferences_has_what_can_be_counted_by_hand(small_files, models, run_general, tmp_path):
    """Every token has the same probability: the first of equally long options wins, of others the shortest."""
    tasks = ["--tasks", json.dumps({name: SIX[name] for name in ("hellaswag", "piqa", "winogrande")})]
    run_general("--model_name_or_path", models["even"], "--reference_model_name_or_path", "", *tasks)
    (even,) = json.loads((tmp_path / "out" / "general.json").read_text())["models"].values()
    assert even["piqa"]["score"] == pytest.approx(1 / 2)  # answers of one length: always the first
    assert even["winogrande"]["score"] == pytest.approx(2 / 3)  # the same continuation twice: the first option
    assert set(json.loads((tmp_path / "out" / "general.json").read_text())["summary"]) == {
        *("mean", "chance", "normalised")
    }


def test_lm_evaluation_harness_says_the_same(small_files, models, run_general, tmp_path, tokenizer):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    tasks = ["--tasks", json.dumps({name: SIX[name] for name in ("arc_challenge", "piqa")})]
    run_general("--model_name_or_path", models["random"], "--reference_model_name_or_path", "", *tasks)
    (ours,) = json.loads((tmp_path / "out" / "general.json").read_text())["models"].values()
    model = AutoModelForCausalLM.from_pretrained(models["random"], dtype=torch.float32)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, device="cpu")
    result = lm_eval.simple_evaluate(lm, tasks=["arc_challenge", "piqa"], num_fewshot=0, limit=4, bootstrap_iters=1)
    for task in ("arc_challenge", "piqa"):
        assert ours[task]["score"] == pytest.approx(result["results"][task]["acc,none"])
        assert ours[task]["standard_error"] == pytest.approx(result["results"][task]["acc_stderr,none"])


def test_chance_is_zero_and_perfect_is_one():
    row = {"score": 0.5, "chance": 0.25, "normalised": 1 / 3}
    at_chance, perfect = (
        {"t": {**row, "score": 0.25, "normalised": 0.0}},
        {"t": {**row, "score": 1, "normalised": 1.0}},
    )
    assert summarise(at_chance, perfect) == {
        "mean": 0.25,
        "chance": 0.25,
        "normalised": 0.0,
        "reference_mean": 1,
        "reference_normalised": 1.0,
        "raw_ratio": 0.25,
        "coin_ratio": 0.25,
        "normalised_ratio": 0.0,
    }
    assert summarise(perfect, at_chance)["normalised_ratio"] is None


def test_mass_and_choice_have_their_own_chance():
    sample = {"doc": {"mc2_targets": {"labels": [1, 1, 0]}}, "resps": [0] * 3}
    assert chance_of("truthfulqa_mc2", sample) == pytest.approx(2 / 3)
    assert chance_of("truthfulqa_mc1", sample) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tasks", "{none_such: {num_fewshot: 0, metric: acc}}"], "tasks.none_such: lm-evaluation-harness has no"),
        (["--tasks", "{piqa: {metric: acc}}"], "tasks.piqa: expected a mapping of metric, num_fewshot"),
        (["--tasks", "{piqa: {num_fewshot: 0, metric: f1}}"], "tasks.piqa.metric: expected acc or acc_norm"),
        (["--tasks", "{}"], "tasks: none"),
        (["--limit", "0"], "limit: expected 1 or more"),
        (["--model_name_or_path", "/nowhere"], "model_name_or_path: '/nowhere'"),
        (["--model_name_or_path", "no-such-model"], "model_name_or_path: cannot load 'no-such-model'"),
    ],
)
def test_refused(run_general, tmp_path, options, message):
    pytest.importorskip("lm_eval")
    assert message in run_general(*options, expect=2).err
    assert not (tmp_path / "out").exists()


def test_a_metric_that_a_task_has_not_is_refused(small_files, models, run_general):
    options = ["--tasks", "{winogrande: {num_fewshot: 0, metric: acc_norm}}", "--reference_model_name_or_path", ""]
    err = run_general("--model_name_or_path", models["random"], *options, expect=2).err
    assert "tasks.winogrande.metric: the task has no acc_norm" in err


def test_without_lm_eval_the_cure_is_named(run_general, monkeypatch):
    monkeypatch.setattr(general, "find_spec", lambda name: None)
    assert "pip install" in run_general(expect=2).err


def test_the_recipe_names_gpt2s_six():
    assert list(GeneralArguments(tasks=SIX).tasks) == list(CHANCE)
    assert SIX["mmlu"]["num_fewshot"] == 5

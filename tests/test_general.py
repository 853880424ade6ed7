"""GPT-2's six tasks as lm-evaluation-harness defines them, against values computed by hand, and early errors."""

import json
import re
import sys
from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from modeling_pure import PureConfig, PureForCausalLM, general
from modeling_pure.errors import InputError, run_script
from modeling_pure.general import GeneralArguments, Score, in_words, load_task, score_task, summarise, table
from modeling_pure.recipe import RecipeParser
from modeling_pure.tokenizer import load_tokenizer
from tests.conftest import numbers_in

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.model import LM  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import make_table  # noqa: E402

ROOT = Path(__file__).parents[1]
RECIPE = str(ROOT / "recipes/general.yaml")


def arc(*texts: str, answer: int, letters: str = "ABCDE") -> dict:
    """A question in ARC's layout; some of its questions are numbered instead of lettered."""
    choices = {"text": list(texts), "label": list(letters[: len(texts)])}
    return {"id": texts[0], "question": "Which one is warm?", "choices": choices, "answerKey": letters[answer]}


def truthful(number: int, true: list[str], false: list[str]) -> dict:
    """A question in TruthfulQA's layout."""
    return {
        "question": f"Do pills number {number} cure a cold?",
        "mc1_targets": {"choices": [true[0], *false], "labels": [1] + [0] * len(false)},
        "mc2_targets": {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)},
    }


ROWS = {
    "Rowan/hellaswag": [
        {
            "activity_label": "Nursing",
            "ctx_a": f"A nurse opens box {i}.",
            "ctx_b": "she",
            "endings": ["takes a mask.", "sings to the lamp.", "eats the door and the wall.", "flies."],
            "label": str(i),
        }
        for i in range(4)
    ],
    "allenai/ai2_arc": [
        arc("a snowball in the dark", "fire", "ice", "a pond", answer=1),
        arc("a lamp", "moss", "slow rain", answer=0, letters="123"),
        arc("an old coat", "frost", "dew", "an oven", "wind", answer=3),
    ],
    "baber/piqa": [
        {"goal": "Dry a cup.", "sol1": "Wipe it.", "sol2": "Wipe it with a wet and muddy sponge.", "label": 0},
        {"goal": "Warm the soup.", "sol1": "Leave it out.", "sol2": "Put it in a pot on the stove.", "label": 1},
    ],
    "allenai/winogrande": [
        {"sentence": "The pill did not fit the box as _ was big.", "option1": "pill", "option2": "box", "answer": one}
        for one in "1212"
    ],
    "truthfulqa/truthful_qa": [
        truthful(1, ["No."], ["Yes, at once.", "Of course they do.", "Yes."]),
        truthful(2, ["They do not.", "Nothing does."], ["Yes."]),
    ],
    "EleutherAI/lambada_openai": [{"text": "She took the pill with a glass of water"}],
}
CHANCE = {
    "mmlu": 1 / 4,
    "hellaswag": 1 / 4,
    "arc_challenge": (1 / 4 + 1 / 3 + 1 / 5) / 3,
    "piqa": 1 / 2,
    "winogrande": 1 / 2,
    "truthfulqa_mc2": (1 / 4 + 2 / 3) / 2,
}
MMLU = 4 + 56 * 2  # questions


def mmlu(subject: str) -> list[dict]:
    """A subject's questions in MMLU's layout; the right letters of anatomy are A to D, elsewhere B and C."""
    answers = range(4) if subject == "anatomy" else [1, 2]
    return [
        {"question": f" Which is {i} in {subject}?", "subject": subject, "choices": ["a", "bc", "d", "e"], "answer": i}
        for i in answers
    ]


def load_dataset(path: str, name: str | None = None, **_) -> datasets.DatasetDict:
    """What the hub has, with a handful of questions."""
    rows = datasets.Dataset.from_list(mmlu(name) if path == "cais/mmlu" else ROWS[path])
    dev = datasets.Dataset.from_list(mmlu("anatomy") + mmlu("virology")) if path == "cais/mmlu" else rows
    return datasets.DatasetDict(train=rows, validation=rows, test=rows, dev=dev)


@pytest.fixture(scope="module")
def manager():
    """The index of all stock tasks takes seconds to build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load_dataset)
        yield TaskManager()


@pytest.fixture(scope="module")
def arguments() -> GeneralArguments:
    return RecipeParser((GeneralArguments,), "").parse_recipe(["--config", RECIPE])[0]


@pytest.fixture(scope="module")
def tasks(manager, arguments) -> dict:
    """The six of the recipe."""
    return {name: load_task(name, manager, **settings) for name, settings in arguments.tasks.items()}


def right_answers(doc: dict) -> list[int]:
    """Read from the layouts, not from the tasks."""
    if "mc2_targets" in doc:
        return [i for i, label in enumerate(doc["mc2_targets"]["labels"]) if label]
    if "answerKey" in doc:
        return [doc["choices"]["label"].index(doc["answerKey"])]
    if "sentence" in doc:
        return [int(doc["answer"]) - 1]
    return [int(doc["label"] if "label" in doc else doc["answer"])]


class KnowsTheKey(LM):
    """Scores correct answers this many nats above wrong ones."""

    def __init__(self, nats: float):
        super().__init__()
        self.nats = nats

    def loglikelihood(self, requests):
        return [(self.nats * (request.idx in right_answers(request.doc)) - 200.0, False) for request in requests]

    loglikelihood_rolling = generate_until = None


def scores(lm, tasks: dict, arguments: GeneralArguments, manager) -> dict[str, Score]:
    options = {"limit": None, "task_manager": manager}
    return {name: score_task(lm, name, task, **arguments.tasks[name], **options) for name, task in tasks.items()}


def test_the_key_scores_one_and_its_opposite_is_below_chance(tasks, arguments, manager):
    right, wrong = (scores(KnowsTheKey(nats), tasks, arguments, manager) for nats in (200.0, -1e5))
    assert right.keys() == wrong.keys() == CHANCE.keys()
    for name, chance in CHANCE.items():
        assert right[name].chance == pytest.approx(chance)
        assert right[name].score == right[name].normalised == pytest.approx(1)
        assert wrong[name].score == pytest.approx(0)
        assert wrong[name].normalised == pytest.approx(-chance / (1 - chance))
    assert right["mmlu"].n == MMLU


def test_acc_norm_divides_by_length(tasks, manager):
    """100 nats for the right ending and 200 for the others; a letter of it must cost less than one of the longest."""
    settings = {"hellaswag": {"num_fewshot": 0, "metric": "acc_norm"}}
    rows = scores(KnowsTheKey(100.0), {"hellaswag": tasks["hellaswag"]}, GeneralArguments(tasks=settings), manager)
    assert rows["hellaswag"].score == 1 / 2  # 100 / 13 and 100 / 6 against 200 / 27; 100 / 18; the longest itself
    assert rows["hellaswag"].standard_error == pytest.approx((1 / 3 / 4) ** 0.5)


def test_equal_log_likelihoods_score_chance(tasks, arguments, manager):
    """Of equals lm-evaluation-harness takes the first, which in these files is right as often as any other."""
    rows = scores(KnowsTheKey(0.0), tasks, arguments, manager)
    for name in ("hellaswag", "piqa", "winogrande", "truthfulqa_mc2"):
        assert rows[name].score == pytest.approx(CHANCE[name])
        assert rows[name].normalised == pytest.approx(0, abs=1e-12)
    assert rows["arc_challenge"].score == pytest.approx(1 / 3)
    assert rows["mmlu"].score == pytest.approx(1 / MMLU)  # over questions: over subjects it would be 1 / 4 / 57


@pytest.fixture(scope="module")
def checkpoints(tokenizer_folder, tmp_path_factory) -> dict[str, Path]:
    """A random Pure, one with an all-zero head, and one of GPT-2's kind, which has no spare id for a pad token."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    pure = PureConfig.from_preset("tiny", initializer_range=0.1, head_initializer_range=0.1)
    even = PureConfig.from_preset("tiny", initializer_range=0.1, head_initializer_range=0.0)
    gpt2 = GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=512, initializer_range=0.3)
    models = {"pure": PureForCausalLM(pure), "even": PureForCausalLM(even), "gpt2": GPT2LMHeadModel(gpt2)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        load_tokenizer("key", str(tokenizer_folder)).save_pretrained(folder / name)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder / "gpt2")
    return {name: folder / name for name in models}


@pytest.fixture
def run(monkeypatch, capsys, manager, tmp_path):
    """The command, in this process and with the index that is there."""

    def run(*options, expect: int = 0):
        argv = ["general", "--config", RECIPE, "--output_dir", tmp_path / "out", *options]
        monkeypatch.setattr(sys, "argv", list(map(str, argv)))
        monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)
        with pytest.raises(SystemExit) as stop:
            run_script(general.main, "general")
        captured = capsys.readouterr()
        assert stop.value.code == expect, captured.err[-3000:]
        return captured

    return run


def test_scores_are_those_that_lm_evaluation_harness_prints(run, checkpoints, manager, tokenizer, tmp_path):
    """One model after the other, with lm-evaluation-harness alone; the files hold what was printed."""
    options = ["--model_name_or_path", checkpoints["pure"], "--reference_model_name_or_path", checkpoints["gpt2"]]
    out = run(*options, "--tasks.hellaswag.metric", "acc_norm", "--tasks.arc_challenge.metric", "acc_norm").out
    results = json.loads((tmp_path / "out/general.json").read_text())
    models = {name: {task: Score(**one) for task, one in of.items()} for name, of in results["models"].items()}
    assert list(results["models"]) == [str(checkpoints["pure"]), str(checkpoints["gpt2"])]
    for name, rows in models.items():
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, device="cpu")
        for shots in (0, 5):
            metrics = {
                task: s["metric"] for task, s in results["config"]["tasks"].items() if s["num_fewshot"] == shots
            }
            theirs = lm_eval.simple_evaluate(lm, tasks=list(metrics), num_fewshot=shots, task_manager=manager)
            for task, metric in metrics.items():
                found = theirs["results"][task]
                assert rows[task].score == pytest.approx(found[f"{metric},none"], abs=1e-6)
                assert rows[task].standard_error == pytest.approx(found[f"{metric}_stderr,none"], abs=1e-6)
                assert f"|{rows[task].score:.4f}|" in make_table(theirs).replace(" ", "")
    markdown = (tmp_path / "out/general.md").read_text()
    for line in table(models):
        assert "| " + " | ".join(line) + " |" in markdown
        assert " ".join(line).split() in [row.split() for row in out.splitlines()]
    for text in (*in_words(results["summary"]), general.DISCLAIMER):
        assert text in out
        assert text in markdown
    assert results["summary"] == summarise(*models.values())


def tokens(tokenizer, text: str) -> int:
    return len(tokenizer(" " + text).input_ids)


def test_a_zero_head_prefers_short_answers(checkpoints, tasks, manager, arguments, tokenizer):
    """Every token has probability 1/V: the answer of the fewest tokens wins; by acc_norm, of the fewest a letter."""
    norm = {name: {"num_fewshot": 0, "metric": "acc_norm"} for name in ("hellaswag", "arc_challenge")}
    arguments = GeneralArguments(tasks={**arguments.tasks, **norm})
    model = AutoModelForCausalLM.from_pretrained(checkpoints["even"], dtype=torch.float32)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16, device="cpu")
    even = scores(lm, tasks, arguments, manager)

    def share(answers: list[tuple[list[str], int]], weight) -> float:
        return sum(min(texts, key=weight) == texts[right] for texts, right in answers) / len(answers)

    def a_letter(text: str) -> float:
        return tokens(tokenizer, text) / len(text)

    piqa = [([row["sol1"], row["sol2"]], row["label"]) for row in ROWS["baber/piqa"]]
    hellaswag = [(row["endings"], int(row["label"])) for row in ROWS["Rowan/hellaswag"]]
    ai2 = [
        (row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])) for row in ROWS["allenai/ai2_arc"]
    ]
    assert even["piqa"].score == share(piqa, lambda text: tokens(tokenizer, text))
    assert even["hellaswag"].score == share(hellaswag, a_letter)
    assert even["arc_challenge"].score == pytest.approx(share(ai2, a_letter))
    assert even["winogrande"].score == 1 / 2  # both options are followed by the same text: a tie, so the first
    assert even["mmlu"].score == pytest.approx(1 / MMLU)  # four letters of equal length: always A
    masses = []
    for row in ROWS["truthfulqa/truthful_qa"]:
        labels, texts = row["mc2_targets"]["labels"], row["mc2_targets"]["choices"]
        mass = [lm.model.config.vocab_size ** -float(tokens(tokenizer, text)) for text in texts]
        masses.append(sum(m for m, label in zip(mass, labels, strict=True) if label) / sum(mass))
    assert even["truthfulqa_mc2"].score == pytest.approx(sum(masses) / len(masses), rel=1e-4)


def test_the_same_weights_as_reference_give_ratios_of_one(manager):
    """Also where the examples before a question are drawn: both models read the same."""
    shots = {"piqa": {"num_fewshot": 1, "metric": "acc"}, "winogrande": {"num_fewshot": 2, "metric": "acc"}}
    arguments = GeneralArguments(tasks=shots)
    tasks = {name: load_task(name, manager, **settings) for name, settings in shots.items()}
    seen = []

    class Listener(KnowsTheKey):
        def loglikelihood(self, requests):
            seen.append([request.args for request in requests])
            return super().loglikelihood(requests)

    first, second = (scores(Listener(200.0), tasks, arguments, manager) for _ in range(2))
    assert seen[:2] == seen[2:]
    assert seen[0][0][0].count("Question:") == 2
    assert summarise(first, second)["raw_ratio"] == summarise(first, second)["normalised_ratio"] == 1


def one(score: float, chance: float) -> Score:
    return Score(1, score, None, chance, (score - chance) / (1 - chance))


def test_the_raw_ratio_is_reported_with_that_of_chance():
    """The figures of codelion/gpt-2-70m's card without TruthfulQA: 93.6 % of GPT-2, of which a coin has 90.2."""
    chance = (0.25, 0.25, 0.25, 0.5, 0.5)
    small = dict(zip("mhapw", map(one, (0.2411, 0.2703, 0.2167, 0.5729, 0.5146), chance), strict=True))
    gpt2 = dict(zip("mhapw", map(one, (0.26, 0.30, 0.24, 0.63, 0.51), chance), strict=True))
    raw, gain = in_words(summarise(small, gpt2))
    assert numbers_in(raw) == ["93.6", "90.2"]
    (share,) = numbers_in(gain)
    assert float(share) < 60
    assert in_words(summarise(small)) == []


@pytest.mark.parametrize("score", [0.5, 0.3, 0.0])
def test_no_ratio_to_a_reference_without_gain(score):
    summary = summarise({"t": one(0.75, 0.5)}, {"t": one(score, 0.5)})
    assert summary["normalised_ratio"] is None
    assert (summary["raw_ratio"] is None) == (score == 0)
    *ratios, why = in_words(summary)
    assert not numbers_in(why)
    assert [len(numbers_in(line)) for line in ratios] == ([] if score == 0 else [2])  # never without the coin's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--tasks", "{winogrande: {num_fewshot: 0, metric: acc_norm}}"],
            r"tasks\.winogrande\.metric: .*\bacc_norm\b",
        ),
        (
            ["--tasks", "{mmlu: {num_fewshot: 5, metric: acc_norm}}"],
            r"tasks\.mmlu\.metric: .*\bacc_norm\b",
        ),
        (["--tasks", "{ai2_arc: {num_fewshot: 0, metric: acc}}"], r"tasks\.ai2_arc\.metric: .*\bacc\b"),
        (["--tasks", "{lambada_openai: {num_fewshot: 0, metric: acc}}"], r"tasks\.lambada_openai: "),
        (["--tasks.truthfulqa_mc2.num_fewshot", "5"], r"tasks\.truthfulqa_mc2\.num_fewshot: .*\b0\b.*\b5$"),
        (
            ["--tasks.hellaswagg", "{num_fewshot: 0, metric: acc}"],
            r"tasks\.hellaswagg: ",
        ),
        (["--tasks.piqa.shots", "5"], r"tasks\.piqa: .*\bmetric, num_fewshot\b.*\{.*'shots': 5"),
        (["--tasks.piqa.num_fewshot", "five"], r"tasks\.piqa\.num_fewshot: .*'five'$"),
        (["--tasks.piqa.num_fewshot", "-1"], r"tasks\.piqa\.num_fewshot: .*-1$"),
        (["--batch_size", "0"], "batch_size: .*0$"),
        (["--reference_model_name_or_path", "{model}"], "reference_model_name_or_path: (?!.*config)"),
        (["--reference_model_name_or_path", "/none"], "reference_model_name_or_path: '/none'"),
        (["--model_name_or_path", "/none"], "model_name_or_path: '/none'"),
    ],
)
def test_refused_before_a_model_is_loaded(run, checkpoints, monkeypatch, tmp_path, options, message):
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # to call it is a TypeError
    names = [option.replace("{model}", str(checkpoints["pure"])) for option in options]
    models = ["--model_name_or_path", checkpoints["pure"], "--reference_model_name_or_path", checkpoints["gpt2"]]
    err = run(*models, *names, expect=2).err
    assert re.match(f"general: error: {message}", err.rstrip().splitlines()[-1]), err
    assert not (tmp_path / "out").exists()


def test_a_data_set_that_cannot_be_loaded_is_named(run, checkpoints, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach it\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    err = run("--model_name_or_path", checkpoints["pure"], "--reference_model_name_or_path", "", expect=2).err
    assert re.search(r"error: tasks\.mmlu: .*: Couldn't reach it\n", err)


def test_a_reference_that_cannot_be_loaded_stops_before_anything_is_scored(run, checkpoints, monkeypatch, tmp_path):
    monkeypatch.setattr(general, "evaluate_model", None)
    broken = tmp_path / "broken"
    GPT2LMHeadModel.from_pretrained(checkpoints["gpt2"]).save_pretrained(broken)
    (broken / "config.json").write_text(json.dumps({"model_type": "none_such"}))
    tasks = ["--tasks", "{piqa: {num_fewshot: 0, metric: acc}}"]
    models = ["--model_name_or_path", checkpoints["pure"], "--reference_model_name_or_path", broken]
    err = run(*models, *tasks, expect=2).err
    assert re.search(f"error: reference_model_name_or_path: .*'{broken}': .*none_such", err)


def test_a_score_of_nan_is_refused(manager):
    """Answers so unlikely that TruthfulQA's masses are 0 / 0."""
    task = load_task("truthfulqa_mc2", manager, num_fewshot=0, metric="acc")
    lm = KnowsTheKey(0.0)
    lm.loglikelihood = lambda requests: [(-1e4, False) for _ in requests]
    with pytest.raises(InputError, match=r"^tasks\.truthfulqa_mc2: .*\bnan\b"):
        score_task(lm, "truthfulqa_mc2", task, num_fewshot=0, metric="acc", limit=None, task_manager=manager)


def test_a_missing_lm_evaluation_harness_names_the_cure(run, monkeypatch):
    monkeypatch.setattr(general, "find_spec", lambda name: None)
    assert re.search(r"error: lm_eval .*\bpip install\b", run(expect=2).err)

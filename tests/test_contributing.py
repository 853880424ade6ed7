"""The changes that CONTRIBUTING.md tells of, made in a copy of the project and used there by its own commands."""

import gzip
import json
import re
import subprocess
import sys
import tomllib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import islice
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from modeling_pure import PureForCausalLM
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.mixture import Mixture
from modeling_pure.recipe import read_recipe
from tests.conftest import WORDS, write_jsonl
from tests.examples.conftest import write_answering_model
from tests.scripts.conftest import metrics

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CHANGES = re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)


def apply_change(change: str, root: Path) -> None:
    """Make a change of the document in the files under `root`; what it calls there has to be there, once."""
    for part in re.split(r"^--- ", change, flags=re.M)[1:]:
        name, lines = part.split("\n", 1)
        text = (root / name).read_text()
        for place in re.split(r"^@@\n", lines, flags=re.M):
            marked = [(line[:1], line[1:]) for line in place.splitlines()]
            old, new = ("".join(f"{line}\n" for mark, line in marked if mark != skip) for skip in "+-")
            found = f"\n{text}".count(f"\n{old}") if old else 0
            assert found == 1, f"{name} does not hold these lines once:\n{old}"
            text = f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]
        (root / name).write_text(text)


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """A copy of the project in which everything in the document has been done."""
    root = tmp_path_factory.mktemp("changed")
    for folder in ("modeling_pure", "recipes"):
        copytree(ROOT / folder, root / folder, ignore=ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", *(path.name for path in ROOT.glob("*.py"))):
        copy(ROOT / file, root)
    for change in CHANGES:
        apply_change(change, root)
    return root


def run(root: Path, *command: str | Path, expect: int = 0) -> str:
    """Run one of the copy's commands; returns what it said."""
    result = subprocess.run([sys.executable, *map(str, command)], cwd=root, capture_output=True, text=True)
    said = result.stdout + result.stderr
    assert result.returncode == expect, said[-3000:]
    return said


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer, questions) -> Path:
    """A small model that answers ` A. aspirin` to most questions."""
    return write_answering_model(tmp_path_factory.mktemp("model"), tokenizer, questions)


@pytest.fixture(scope="module")
def texts(changed, corpus) -> Path:
    """The files that the changed recipe reads, where it looks for them."""
    for folder in ("data/pretrain", "data/medqa", "data/textbooks"):
        (changed / folder).mkdir(parents=True)
    for name in ("finepdfs", "fineweb_edu", "c4"):
        rows = [json.loads(line) for line in (corpus / f"{name}.jsonl").read_text().splitlines()]
        pq.write_table(pa.Table.from_pylist(rows), changed / f"data/pretrain/{name}.parquet")
    drugs = {"options": dict(zip("ABCD", ("aspirin", "heparin", "insulin", "statin"), strict=True)), "answer_idx": "B"}
    cases = [{"question": f"Case {i}. What is given?", **drugs} for i in range(100)]
    write_jsonl(changed / "data/medqa/train.jsonl", cases)
    chapters = [{"body": f"Chapter {i}: " + " ".join(WORDS)} for i in range(200)]
    pq.write_table(pa.Table.from_pylist(chapters), changed / "data/textbooks/a.parquet")
    lines = "".join(json.dumps(chapter) + "\n" for chapter in chapters)
    (changed / "data/notes.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return changed / "data"


def test_every_way_of_adding_something_is_shown_and_passes_lint(changed):
    """A source of text, a file format, a reward, an evaluation set."""
    touched = {*re.findall(r"^--- (.*)$", "".join(CHANGES), re.M)}
    modules = ("files.py", "medqa/rewards.py", "medqa/tasks.py")
    assert {"recipes/local/pretrain.yaml", *(f"modeling_pure/{name}" for name in modules)} <= touched
    files = {name for name in touched if name.endswith(".py")}
    for check in (["check"], ["format", "--check"]):
        run(changed, "-m", "ruff", *check, "--no-cache", *files)


@pytest.mark.parametrize("line", ["-COMPRESSIONS = ()\n+COMPRESSIONS = (1,)\n", "-import\n+import io\n", "+x = 1\n"])
def test_a_change_that_does_not_fit_is_noticed(line, changed):
    with pytest.raises(AssertionError, match="modeling_pure/files.py|assert ''"):
        apply_change(f"--- modeling_pure/files.py\n{line}", changed)


def test_the_source_comes_in_its_share(changed, texts, tokenizer, monkeypatch):
    monkeypatch.chdir(changed)
    sources = read_recipe("recipes/local/pretrain.yaml")["sources"]
    arguments = DataArguments(sources=sources, max_seq_length=64)
    mixture = Mixture(arguments, tokenizer)
    rows = [(row["source"], tokenizer.decode(row["input_ids"])) for row in islice(mixture.sequences_of_worker(), 60)]
    shares = {"finepdfs": 21, "textbooks": 6, "fineweb_edu": 15, "c4": 12, "usmle": 6}
    assert {name: [source for source, _ in rows].count(name) for name in sources} == shares
    assert all(("Chapter" in text) == (source == "textbooks") for source, text in rows)


def test_the_file_format_is_read_document_by_document(changed, texts, tokenizer_folder):
    (changed / "data/guides").mkdir()
    for i in range(70):
        (changed / f"data/guides/{i}.md").write_text(f"# Guide {i}\n" + " ".join(WORDS))
    options = ["--config", "recipes/local/pretrain.yaml", "--tokenizer_name_or_path", tokenizer_folder]
    options += ["--max_seq_length", "64", "--sequences", "40", "--sources.textbooks.path", "data/guides"]
    said = run(changed, "-m", "modeling_pure", "inspect", *options)
    (line,) = [line for line in said.splitlines() if "textbooks" in line and "%" in line]
    assert re.search(r"10\.00% +10\.00%", line)
    assert re.search(r"<\|endoftext\|># Guide \d+", said)


def test_the_reward_is_trained_with_and_logged(changed, texts, model_folder, tmp_path):
    options = ["--config", "recipes/local/grpo.yaml", "--model_name_or_path", model_folder, "--output_dir", tmp_path]
    options += ["--max_steps", "1", "--updates_per_rollout", "1", "--save_steps", "1", "--logging_steps", "1"]
    options += ["--prompts_per_step", "16", "--length_penalty_min_tokens", "8", "--eval_strategy", "no"]
    said = run(changed, "train_grpo.py", *options)
    assert re.search(r"-0\.01 x length_penalty\b.*\b8\b.*\+0\.05 x ", said)
    (line,) = [line for line in metrics(tmp_path) if "reward" in line]
    right, short, verbatim = (line[f"rewards/{name}/mean"] for name in ("correct", "length_penalty", "verbatim"))
    assert 0 < right < 1
    assert 0 < short < 1
    assert 0 < verbatim < 1
    assert line["rewards/verbatim/std"] > 0
    assert line["reward"] == pytest.approx(right - 0.01 * short + 0.05 * verbatim, abs=1e-6)


def test_the_reward_has_its_documented_values():
    (change,) = [change for change in CHANGES if "--- modeling_pure/medqa/rewards.py" in change]
    added = "\n".join(re.findall(r"^\+(.*)", change.split("--- modeling_pure/grpo")[0], re.M))
    names = {"Any": Any}
    exec(added.replace("from .", "from modeling_pure.medqa."), names)
    options = ["aspirin", "heparin", "insulin", "statin"]
    cases = {" B. heparin": 1.0, " B. aspirin": 0.0, " B": 0.0, "B. heparin": 0.0, "": 0.0, " B. heparin or": 0.0}
    assert names["verbatim"](completions=list(cases), options=[options] * len(cases), answer=[1]) == [*cases.values()]


def test_the_evaluation_set_has_the_prompts_of_lm_eval(changed, model_folder, tokenizer, questions, tmp_path):
    rows = [
        {"question": one.question, "cop": one.answer + 1, "category": ("Nursing", "Biology")[i % 2]}
        | {f"op{number}": option for number, option in enumerate(one.options, 1)}
        for i, one in enumerate(questions[:20])
    ]
    path = write_jsonl(tmp_path / "careqa.jsonl", rows)
    options = ["--task", "careqa_en", "--questions", path, "--split", "all", "--output_dir", tmp_path / "eval"]
    run(changed, "eval_medqa.py", "--model_name_or_path", model_folder, *options)
    lines = [json.loads(line) for line in (tmp_path / "eval/predictions.jsonl").read_text().splitlines()]
    stock = Path(find_spec("lm_eval").origin).parent / "tasks/careqa/utils.py"
    spec = spec_from_file_location("careqa", stock)
    spec.loader.exec_module(theirs := module_from_spec(spec))
    assert [line["gold"] for line in lines] == ["ABCD"[theirs.doc_to_target(row)] for row in rows]
    model = PureForCausalLM.from_pretrained(model_folder).eval()
    letters = tokenizer([" A", " B", " C", " D"], return_tensors="pt").input_ids[:, 0]
    for line, row in zip(lines, rows, strict=True):
        with torch.no_grad():
            logits = model(tokenizer(theirs.doc_to_text(row), return_tensors="pt").input_ids).logits[0, -1]
        expected = logits.log_softmax(-1)[letters].tolist()
        assert line["log_likelihoods"] == pytest.approx(expected, abs=1e-5)
    results = json.loads((tmp_path / "eval/eval.json").read_text())
    assert results["data"]["task"] == "careqa_en"
    assert results["data"]["n"] == 20
    assert results["slices"]["meta_info Nursing"]["n"] == 10


def test_version_and_licence_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    newest = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert newest[1] == project["version"]

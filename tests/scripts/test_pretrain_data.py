"""Pretraining and its data from the command line: other workers, pretokenized sequences, faults, output and logs."""

import gzip
import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.conftest import numbers_in
from tests.processes import run
from tests.scripts.conftest import kill_once_written, metrics
from tests.scripts.runs import same_weights, start_from, train


def test_tokens_and_epochs_of_every_source_are_logged(pretrained, sources):
    line = [line for line in metrics(pretrained) if "loss" in line][-1]
    tokens = {name: line[f"tokens/{name}"] for name in sources}
    assert sum(tokens.values()) == line["tokens"] == 12 * 256
    for name, source in sources.items():
        assert abs(tokens[name] - source["weight"] * line["tokens"]) < 64
        assert line[f"epochs/{name}"] == 0
        assert f"skipped/{name}" in line


def test_the_start_up_block_states_the_epochs_of_each_source(pretrain_recipe, sources, tmp_path):
    output = train(pretrain_recipe, tmp_path, "--max_steps", "1", "--max_seq_length", "8").stdout
    for name in sources:
        line = next(line for line in output.splitlines() if line.strip().startswith(name))
        assert re.search(rf"\b0\.0 .*{re.escape(sources[name]['path'])}", line)
        if sources[name].get("format") != "medqa":
            assert re.search(rf"\bfiles of {name}\b.*\b1 file, \d", output)


def test_another_number_of_workers_resumes_and_is_reported(pretrained, pretrain_recipe, sources, tmp_path):
    folder = start_from(pretrained, tmp_path, 8)
    output = train(pretrain_recipe, folder, "--dataloader_num_workers", "3").stdout
    # Ranks and workers before and after.
    assert ["1", "1", "1", "3"] in [numbers_in(line) for line in output.splitlines()]
    line = [line for line in metrics(folder) if "loss" in line][-1]
    assert sum(line[f"tokens/{name}"] for name in sources) == line["tokens"] == 12 * 256


def test_a_run_records_its_answer_formats(pretrained, pretokenized, pretrain_recipe, tmp_path, train_here):
    assert json.loads((pretrained / "config.json").read_text())["answer_formats"] == ["letter"]
    options = ["--config", pretrain_recipe, "--output_dir", tmp_path, "--max_steps", "1"]
    options += ["--sources.usmle.answer_formats", "{text: 0.75, letter: 0.25}"]
    output, _ = train_here(*options)
    assert re.search(r"\busmle\b.*\bletter 25\b.*\btext 75\b", output)
    assert json.loads((tmp_path / "config.json").read_text())["answer_formats"] == ["letter", "text"]
    assert "| letter, text |" in (tmp_path / "README.md").read_text()
    _, error = train_here(
        *options, "--output_dir", tmp_path / "pretokenized", "--pretokenized_dir", pretokenized, expect=2
    )
    assert re.search(r"error: pretokenized_dir: .*\bsources\b", error)


@pytest.fixture(scope="module")
def pretokenized(tmp_path_factory, pretrain_recipe):
    folder = tmp_path_factory.mktemp("pretokenized")
    run("-m", "modeling_pure", "pretokenize", "--config", pretrain_recipe, "--out", folder)
    return folder


def test_pretokenized_sequences_train_the_same_model(pretokenized, pretrained, pretrain_recipe, tmp_path):
    output = train(pretrain_recipe, tmp_path, "--pretokenized_dir", pretokenized).stdout
    assert re.search(rf"\b48\b.*{pretokenized}", output)
    assert same_weights(pretrained, tmp_path)


def test_a_pretokenized_run_resumes_exactly_with_other_workers(pretokenized, pretrained, pretrain_recipe, tmp_path):
    train(pretrain_recipe, tmp_path, "--pretokenized_dir", pretokenized, "--dataloader_num_workers", "2")
    shutil.rmtree(tmp_path / "checkpoint-12")
    (tmp_path / "model.safetensors").unlink()
    train(pretrain_recipe, tmp_path, "--pretokenized_dir", pretokenized, "--dataloader_num_workers", "0")
    assert same_weights(pretrained, tmp_path)


def test_a_run_that_needs_more_than_was_pretokenized_is_refused(pretokenized, pretrain_recipe, tmp_path):
    error = train(pretrain_recipe, tmp_path, "--pretokenized_dir", pretokenized, "--max_steps", "13", expect=2).stderr
    assert re.search(r"error: pretokenized_dir: .*\b48\b.*\b52\b", error)


@pytest.fixture(scope="module")
def mixed_recipe(tmp_path_factory, corpus, pretrain_recipe):
    """The recipe with a parquet folder, a .jsonl.gz and a list of files as sources, and two workers."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [json.loads(line) for line in (corpus / "finepdfs.jsonl").read_text().splitlines()]
    for part in range(3):
        pq.write_table(pa.Table.from_pylist(rows[part::3]), folder / f"{part}.parquet", row_group_size=30)
    (folder / "web.jsonl.gz").write_bytes(gzip.compress((corpus / "fineweb_edu.jsonl").read_bytes()))
    lines = (corpus / "c4.jsonl").read_text().splitlines(keepends=True)
    for part in range(2):
        (folder / f"c4_{part}.jsonl").write_text("".join(lines[part::2]))
    recipe = yaml.safe_load(pretrain_recipe.read_text())
    recipe["sources"]["finepdfs"]["path"] = str(folder / "*.parquet")
    recipe["sources"]["fineweb_edu"]["path"] = str(folder / "web.jsonl.gz")
    recipe["sources"]["c4"]["path"] = [str(folder / "c4_0.jsonl"), str(folder / "c4_1.jsonl")]
    recipe["dataloader_num_workers"] = 2
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def test_files_of_all_kinds_and_a_kill_with_two_workers(mixed_recipe, tmp_path):
    train(mixed_recipe, tmp_path / "straight")
    killed = tmp_path / "killed"
    command = ["train_pretrain.py", "--config", mixed_recipe, "--output_dir", killed]
    kill_once_written(killed / "checkpoint-4" / "trainer_state.json", *command)
    assert not (killed / "model.safetensors").exists()
    train(mixed_recipe, killed)
    assert same_weights(tmp_path / "straight", killed)
    losses = [[line["loss"] for line in metrics(run) if "loss" in line] for run in (tmp_path / "straight", killed)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


def test_a_source_that_goes_bad_stops_the_run_after_a_checkpoint(pretrain_recipe, tmp_path):
    good = [json.dumps({"text": f"fever {i}"}) + "\n" for i in range(512)]
    path = tmp_path / "c4.jsonl"
    path.write_text("".join(good + ['{"text": "cut\n'] * 300))
    recipe = yaml.safe_load(pretrain_recipe.read_text())
    recipe["sources"] = {"c4": {"path": str(path), "weight": 1, "validation_documents": 100}}
    recipe_file = tmp_path / "recipe.yaml"
    recipe_file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    options = ["--max_steps", "20", "--save_steps", "100", "--eval_steps", "100"]
    result = train(recipe_file, tmp_path / "run", *options, expect=3)
    (error,) = [line for line in result.stderr.splitlines() if "train_pretrain.py: error: sources.c4: " in line]
    assert "max_skipped" in error
    assert f"'{path}'" in error
    assert "Traceback" not in result.stderr
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert 1 <= step < 20
    train(recipe_file, tmp_path / "run", *options, "--max_skipped", "1")
    steps = [line["step"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert steps == list(range(1, 21))


def test_a_mixture_is_inspected(pretrain_recipe, tmp_path):
    picture = tmp_path / "mixture.png"
    command = [
        "-m",
        "modeling_pure",
        "inspect",
        "--config",
        pretrain_recipe,
        "--sequences",
        "200",
        "--picture",
        picture,
    ]
    output = run(*command).stdout
    for name, share in (("finepdfs", "45.00%"), ("fineweb_edu", "25.00%"), ("c4", "20.00%"), ("usmle", "10.00%")):
        (line,) = [line for line in output.splitlines() if line.startswith(f"{name} ")]
        assert line.count(share) == 2
        assert ("40" in numbers_in(line)) == (name != "usmle")  # validation documents
        assert re.search(rf"^{name}\b.*:$", output, re.M)  # and a text of it
    assert "tokens/s" in output
    assert picture.read_bytes().startswith(b"\x89PNG")

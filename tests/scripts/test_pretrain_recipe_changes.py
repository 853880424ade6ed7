"""What a run folder records, what may change on resume, and non-finite losses."""

import json
import re
import shutil

import pytest
import torch
import yaml
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from modeling_pure.training.checkpoint import STATE_FILE
from tests.conftest import numbers_in
from tests.scripts.conftest import metrics
from tests.scripts.runs import assert_same_run, checkpoints, contents, launches, lines_of_training, start_from, train

SECRET = "hf_this_must_not_be_written_down"


# ---- another recipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "differences"),
    [
        (["--seed", "1"], r"seed: 1\b.*\b0\b"),
        (["--max_seq_length", "32"], r"max_seq_length: 32\b.*\b64\b"),
        (["--gradient_accumulation_steps", "1"], r"sequences_per_step: 2\b.*\b4\b"),
        (
            ["--sources.fineweb_edu.weight", "0.2", "--sources.c4.weight", "0.25"],
            r"sources\.fineweb_edu\.weight: 0\.2\b.*\b0\.25\b.*sources\.c4\.weight: 0\.25\b.*\b0\.2\b",
        ),
        (
            ["--sources.usmle.answer_formats", "{text: 0.5, letter: 0.5}"],
            r"sources\.usmle\.answer_formats\.letter: 0\.5\b.*\b1\.0\b.*sources\.usmle\.answer_formats\.text: 0\.5\b",
        ),
    ],
    ids=["seed", "row length", "batch", "weights", "answer formats"],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    pretrained, pretrain_recipe, tmp_path, train_here, options, differences
):
    before = contents(start_from(pretrained, tmp_path, 8))
    _, error = train_here("--config", pretrain_recipe, "--output_dir", tmp_path, *options, expect=2)
    message = rf"train_pretrain\.py: error: {tmp_path / 'checkpoint-8'} .*{differences}.*--allow_recipe_change true"
    assert re.match(message, error.splitlines()[-1])
    assert contents(tmp_path) == before


def test_a_finished_run_is_checked_against_the_recipe_too(pretrained, pretrain_recipe, tmp_path, train_here):
    for name in ("trainer_state.json", "model.safetensors", "recipe.json"):
        shutil.copy(pretrained / name, tmp_path)
    command = ["--config", pretrain_recipe, "--output_dir", tmp_path]
    _, error = train_here(*command, "--seed", "1", expect=2)
    assert re.match(rf"train_pretrain\.py: error: {tmp_path} .*\bseed: 1, was 0\b", error.splitlines()[-1])
    output, _ = train_here(*command)
    assert re.search(rf"^{tmp_path}: .*\b12\b", output)


def test_books_may_move_and_their_share_stays(corpus, pretrain_recipe, tmp_path, train_here):
    for name in ("books", "moved"):
        (tmp_path / name).mkdir()
        shutil.copy(corpus / "c4.jsonl", tmp_path / name)
    options = ["--config", pretrain_recipe, "--output_dir", tmp_path / "run", "--save_steps", "1"]
    books = ["--sources.usmle.passages", tmp_path / "books"]
    output, _ = train_here(*options, "--max_steps", "1", *books)
    assert {"50", "300", "0"} <= {*numbers_in(re.search(r"answers of usmle (.*)", output)[1])}
    options += ["--max_steps", "2"]
    for other in (
        [],
        [*books, "--sources.usmle.passages_share", "0.25"],
        [*books, "--sources.usmle.num_passages", "2"],
    ):
        _, error = train_here(*options, *other, expect=2)
        assert re.search(r"checkpoint-1 .*sources\.usmle\.(passages_share|num_passages): ", error.splitlines()[-1])
    train_here(*options, "--sources.usmle.passages", tmp_path / "moved")
    assert checkpoints(tmp_path / "run") == [1, 2]


def test_the_sequences_of_a_step_may_be_divided_differently(pretrained, pretrain_recipe, tmp_path, train_here):
    options = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"]
    train_here("--config", pretrain_recipe, "--output_dir", start_from(pretrained, tmp_path, 8), *options)
    losses = [[line["loss"] for line in metrics(folder) if "loss" in line] for folder in (pretrained, tmp_path)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(losses[1]) == 12


def test_a_run_may_be_extended(pretrained, pretrain_recipe, tmp_path, train_here, first_steps):
    start_from(pretrained, tmp_path, 12)
    train_here("--config", pretrain_recipe, "--output_dir", tmp_path, "--max_steps", "14")
    first, longer = ([line for line in lines_of_training(run) if "loss" in line] for run in (pretrained, tmp_path))
    assert longer[:12] == first
    assert [line["tokens"] for line in longer[12:]] == [13 * 256, 14 * 256]
    assert first_steps == [12]
    weight = torch.nn.Parameter(torch.zeros(()))
    schedule = get_cosine_with_min_lr_schedule_with_warmup(torch.optim.SGD([weight], 0.003), 2, 14, min_lr=3e-5)
    rates = [0.003 * schedule.lr_lambdas[0](step) for step in (12, 13)]
    assert [line["learning_rate"] for line in longer[12:]] == pytest.approx(rates)


def test_another_recipe_can_be_allowed_and_its_data_restart(pretrained, pretrain_recipe, tmp_path, train_here):
    start_from(pretrained, tmp_path, 8)
    options = ["--seed", "1", "--allow_recipe_change", "true"]
    output, _ = train_here("--config", pretrain_recipe, "--output_dir", tmp_path, *options)
    assert f"from {tmp_path / 'checkpoint-8'}" in output
    last = [line for line in lines_of_training(tmp_path) if "loss" in line][-1]
    assert sum(tokens for name, tokens in last.items() if name.startswith("tokens/")) == 4 * 256
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["seed"] == 1


def test_an_allowed_learning_rate_is_the_one_that_is_used(pretrained, pretrain_recipe, tmp_path, train_here):
    options = ["--learning_rate", "0.0001", "--lr_scheduler_kwargs", "{min_lr: 0.0001}"]
    start_from(pretrained, tmp_path, 8)
    train_here("--config", pretrain_recipe, "--output_dir", tmp_path, *options, "--allow_recipe_change", "true")
    rates = {line["step"]: line["learning_rate"] for line in metrics(tmp_path) if "loss" in line}
    assert all(rates[step] > 0.0003 for step in range(2, 9))
    assert [rates[step] for step in range(9, 13)] == pytest.approx([0.0001] * 4)


def test_other_intervals_apply_after_resuming(pretrained, pretrain_recipe, tmp_path, train_here):
    options = ["--save_steps", "3", "--eval_steps", "3", "--logging_steps", "2"]
    train_here("--config", pretrain_recipe, "--output_dir", start_from(pretrained, tmp_path, 4), *options)
    assert checkpoints(tmp_path) == [6, 9, 12]
    lines = [line for line in metrics(tmp_path) if line["step"] > 4]
    assert [line["step"] for line in lines if "loss" in line] == [6, 8, 9, 10, 12]  # 9: a checkpoint writes a log line
    assert [line["step"] for line in lines if "eval_loss" in line] == [6, 9, 12, 12]


def test_resuming_earlier_sets_later_checkpoints_aside(pretrained, pretrain_recipe, tmp_path, train_here):
    shutil.copytree(pretrained / "checkpoint-4", tmp_path / "checkpoint-4")
    start_from(pretrained, tmp_path, 8)
    options = ["--config", pretrain_recipe, "--output_dir", tmp_path, "--max_steps", "6", "--save_steps", "2"]
    train_here(*options, "--eval_steps", "2", "--resume_from_checkpoint", tmp_path / "checkpoint-4")
    assert checkpoints(tmp_path) == [4, 6]
    assert (tmp_path / "_left-checkpoint-8" / STATE_FILE).exists()


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (("--optimizer", "muon"), r"\boptimizer: muon\b.*\badamw\b"),
        (("--model_overrides.hidden_size", "64"), r"hidden_size\b.* 64\b.*\b32\b"),
    ],
)
def test_changes_to_the_tensors_cannot_be_allowed(pretrained, pretrain_recipe, tmp_path, train_here, option, line):
    options = [*option, "--allow_recipe_change", "true"]
    start_from(pretrained, tmp_path, 8)
    _, error = train_here("--config", pretrain_recipe, "--output_dir", tmp_path, *options, expect=2)
    assert re.search(line, error.splitlines()[-1])
    assert "--allow_recipe_change" not in error.splitlines()[-1]


def test_stating_a_default_is_not_a_change(pretrained, pretrain_recipe, tmp_path, train_here):
    options = ["--adam_beta1", "0.9", "--sources.usmle.validation_documents", "64", "--learning_rate", "3e-3"]
    options += ["--sources.usmle.answer_formats", "letter"]
    train_here("--config", pretrain_recipe, "--output_dir", start_from(pretrained, tmp_path, 8), *options)
    assert_same_run(pretrained, tmp_path, 12)


# ---- losses that are not finite -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blown_up(tmp_path_factory, pretrain_recipe):
    """A run whose learning rate ruins the weights in step 7, and its output; it saved at 3, 6 and 9."""
    folder = tmp_path_factory.mktemp("blown_up")
    schedule = ["--lr_scheduler_kwargs", "{min_lr: 1e30}", "--warmup_steps", "5", "--max_grad_norm", "0"]
    return folder, train(pretrain_recipe, folder, *schedule, "--save_steps", "3", expect=3).stderr


def last_bad_step(error: str) -> int:
    """The last of the five steps that stopped the run, by its error."""
    return int(re.search(r"max_nonfinite_steps: \D*\b5\b\D*(\d+)", error)[1])


def strict_metrics(folder) -> list[dict]:
    """The lines of metrics.jsonl, parsed as strict JSON."""

    def refuse(constant):
        pytest.fail(f"metrics.jsonl: {constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_non_finite_loss_stops_the_run(blown_up):
    folder, error = blown_up
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if "error: " in line]
    assert re.match(r"train_pretrain\.py: error: max_nonfinite_steps: .*\b5\b", line)
    assert str(folder / "not-finite-rank-0.jsonl") in line
    assert line.endswith(f" {folder / 'checkpoint-6'}")
    assert checkpoints(folder) == [3, 6, 9]


def test_the_sequences_of_non_finite_steps_are_written(blown_up, corpus, tokenizer):
    folder, error = blown_up
    last = last_bad_step(error)
    rows = [json.loads(line) for line in (folder / "not-finite-rank-0.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [step for step in range(last - 4, last + 1) for _ in range(4)]
    assert all(len(row["input_ids"]) == 64 and row["text"] == tokenizer.decode(row["input_ids"]) for row in rows)
    tokens = {line["step"]: line for line in strict_metrics(folder) if "tokens" in line}
    for name in ("finepdfs", "fineweb_edu", "c4"):
        of_source = [row for row in rows if row["source"] == name]
        read = tokens[last - 1][f"tokens/{name}"] - tokens[last - 5][f"tokens/{name}"]
        assert 64 * len([row for row in of_source if row["step"] < last]) == read
        documents = (corpus / f"{name}.jsonl").read_text()
        assert all(piece in documents for row in of_source for piece in row["text"].split("<|endoftext|>"))


def test_the_log_of_non_finite_steps_is_json(blown_up):
    folder, error = blown_up
    last = last_bad_step(error)
    skipped = [line for line in strict_metrics(folder) if "skipped_steps" in line]
    assert [(line["step"], line["skipped_steps"], line["grad_norm"]) for line in skipped] == [
        (step, 1, None) for step in range(last - 4, last)
    ]


# ---- what the folder says -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, pretrained, pretrain_recipe):
    """A run resumed from step 8, with a Hub token on the command line in both spellings."""
    folder = start_from(pretrained, tmp_path_factory.mktemp("resumed"), 8)
    (folder / "launches.jsonl").write_text((pretrained / "launches.jsonl").read_text())
    train(pretrain_recipe, folder, "--hub_token", SECRET, f"--hub_token={SECRET}", "--hub-token", SECRET)
    return folder


def test_every_launch_is_recorded(resumed, pretrain_recipe):
    first, second = launches(resumed)
    assert (first["from_step"], second["from_step"]) == (0, 8)
    assert first["time"] < second["time"]
    assert second["command"].startswith(f"train_pretrain.py --config {pretrain_recipe} --output_dir {resumed} ")
    assert re.fullmatch(r"[0-9a-f]{40}\+?", second["git"])
    assert second["packages"]["torch"] == torch.__version__
    assert second["packages"]["transformers"]


def test_a_hub_token_is_never_written(resumed):
    files = contents(resumed)
    assert {"recipe.yaml", "launches.jsonl", "checkpoint-12/recipe.json"} <= files.keys()
    assert [name for name, content in files.items() if SECRET.encode() in content] == []


def test_the_recipe_in_the_folder_gives_the_same_run(pretrained, tmp_path):
    train(pretrained / "recipe.yaml", tmp_path)
    assert_same_run(pretrained, tmp_path, 12)

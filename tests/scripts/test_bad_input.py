"""Bad input: one line that names the key or file, exit code 2, nothing written."""

import json
import shutil
import sys

import pytest

import eval_medqa
import train_grpo
import train_pretrain
from modeling_pure.errors import run_script
from tests.conftest import write_jsonl
from tests.processes import run


def refuse(script, argv, tmp_path, monkeypatch, capsys) -> str:
    """Run a script's main with `argv`; it has to exit with 2 after one line. Returns that line."""
    output = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["script", *map(str, argv), "--output_dir", str(output)])
    with pytest.raises(SystemExit) as stop:
        run_script(script.main, "script")
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("script: error: ")]
    assert stop.value.code == 2
    assert len(lines) == 1
    assert captured.err.rstrip().endswith(lines[0]), "the error is the last thing said, and one line"
    assert not output.exists(), "something was written"
    return lines[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sources.c4.path", "/no/such/file.parquet"], "sources.c4: no file matches '/no/such/file.parquet'"),
        (["--sources.c4.weight", "heavy"], "sources.c4.weight: expected a number between 0 and 1, found 'heavy'"),
        (["--sources.c4.weight", "0.9"], "sources: the weights add up to 1.7, expected 1"),
        (["--sources.c4.column", "body"], "no text: it has no 'body', only ['text']"),
        (["--sources.c4.format", "medqa"], "is not a question"),
        (["--sources.c4.colum", "x"], "sources.c4.colum: unknown key"),
        (["--model_overrides", "{vocab_size: 300}"], "vocab_size: the tokenizer has 401 tokens"),
        (["--model_overrides", "{hiden_size: 64}"], "model_overrides.hiden_size: PureConfig has no such field"),
        (["--model_overrides", "{vocab_size: 512, hidden_size: 33}"], "preset: hidden_size (33) must be"),
        (["--model_overrides", "{vocab_size: 512, hidden_size: wide}"], "preset: "),
        (["--preset", "huge"], "preset: Unknown preset 'huge'"),
        (["--max_seq_length", "4096"], "max_seq_length: 4096 is longer than the model's 256"),
        (["--grpo_holdout", "1.5"], "grpo_holdout: expected a share"),
        (["--sources.c4.path", "*.parquet"], "sources.c4: no file matches '*.parquet'"),
        (["--sources.c4.path", "5"], "sources.c4.path: expected text or a list of texts, found 5"),
        (["--sources.c4.validation_documents", "many"], "expected a whole number above 0, found 'many'"),
        (["--sources.c4.validation_documents", "100000"], "has no more than 300 documents, and validation_documents"),
        (["--sources.c4.validation_documents", "300"], "sources.c4: c4.jsonl: no text"),
        (["--sources.c4.path", "foo://x.parquet"], "sources.c4: cannot list 'foo://x.parquet'"),
        (["--sources.c4.max_epochs", "-1"], "sources.c4.max_epochs: expected a whole number above 0, found -1"),
        (["--decontaminate", "/nowhere.jsonl"], "decontaminate: no file matches '/nowhere.jsonl'"),
        (["--on_source_failure", "shrug"], "on_source_failure: expected one of ['stop', 'redistribute']"),
        (["--max_skipped", "2"], "max_skipped: expected a share from 0 to 1, found 2.0"),
        (["--streaming_timeout", "0"], "streaming_timeout: expected seconds above 0"),
        (["--packed_dir", "/nowhere"], "packed_dir: '/nowhere' holds no packed rows"),
        (["--sources.c4.weight", "1/0"], "sources.c4.weight: expected a number between 0 and 1, found '1/0'"),
        (["--model_overrides", "{vocab_size: 300"], "argument --model_overrides: expected a mapping"),
        (["--model_overrides", "{vocab_size: big}"], "preset: "),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor: Trainer would not shift the labels"),
        (["--use_liger_kernel", "true"], "use_liger_kernel: Liger does not know this model"),
        (["--tokenizer_name_or_path", "/nowhere"], "tokenizer_name_or_path: cannot load the tokenizer of '/nowhere'"),
        (["--resume_from_checkpoint", "."], "resume_from_checkpoint: '.' is not a complete checkpoint"),
        (["--max_steps", "few"], "argument --max_steps: invalid int value: 'few'"),
    ],
)
def test_pretraining_refuses(options, message, pretrain_recipe, tmp_path, monkeypatch, capsys):
    assert message in refuse(train_pretrain, ["--config", pretrain_recipe, *options], tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize("content", ['{"text": "a"', "\x80\x81 not utf-8", ""])
def test_pretraining_refuses_a_broken_file(content, pretrain_recipe, tmp_path, monkeypatch, capsys):
    path = tmp_path / "broken.jsonl"
    path.write_bytes(content.encode("latin-1"))
    argv = ["--config", pretrain_recipe, "--sources.c4.path", path]
    assert "broken.jsonl" in refuse(train_pretrain, argv, tmp_path, monkeypatch, capsys)


def test_pretraining_refuses_a_truncated_parquet(pretrain_recipe, tmp_path, monkeypatch, capsys):
    path = tmp_path / "cut.parquet"
    path.write_bytes(b"PAR1\x00\x00")
    argv = ["--config", pretrain_recipe, "--sources.c4.path", path]
    assert "cut.parquet" in refuse(train_pretrain, argv, tmp_path, monkeypatch, capsys)


def test_grpo_and_evaluation_refuse_a_folder_without_a_model(tmp_path, corpus, monkeypatch, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    argv = ["--model_name_or_path", empty, "--questions", corpus / "questions.jsonl"]
    for script in (train_grpo, eval_medqa):
        line = refuse(script, argv, tmp_path, monkeypatch, capsys)
        assert f"model_name_or_path: '{empty}' is not a model folder" in line


def test_grpo_refuses_questions_that_are_none(pretrained, tmp_path, monkeypatch, capsys):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "hello"}])
    argv = ["--model_name_or_path", pretrained, "--questions", path]
    assert "row 0 of" in refuse(train_grpo, argv, tmp_path, monkeypatch, capsys)


def test_evaluation_refuses_an_unknown_split(pretrained, corpus, tmp_path, monkeypatch, capsys):
    argv = ["--model_name_or_path", pretrained, "--questions", corpus / "questions.jsonl", "--split", "train"]
    assert "split: expected one of" in refuse(eval_medqa, argv, tmp_path, monkeypatch, capsys)


def copy_model(pretrained, folder, **changes):
    """A copy of a model's folder whose configuration says something else."""
    shutil.copytree(pretrained, folder, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("script", [train_grpo, eval_medqa], ids=["grpo", "eval"])
def test_damaged_weights_are_refused(script, pretrained, corpus, tmp_path, monkeypatch, capsys):
    folder = copy_model(pretrained, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"12345678{}")
    argv = ["--model_name_or_path", folder, "--questions", corpus / "questions.jsonl"]
    line = refuse(script, argv, tmp_path, monkeypatch, capsys)
    assert f"model_name_or_path: '{folder / 'model.safetensors'}' is damaged" in line


@pytest.mark.parametrize("changes", [{"intermediate_size": 32}, {"hidden_size": "wide"}], ids=["shape", "type"])
def test_evaluation_refuses_weights_that_do_not_fit(changes, pretrained, corpus, tmp_path, monkeypatch, capsys):
    folder = copy_model(pretrained, tmp_path / "other", **changes)
    argv = ["--model_name_or_path", folder, "--questions", corpus / "questions.jsonl", "--split", "all"]
    assert "model_name_or_path: cannot load" in refuse(eval_medqa, argv, tmp_path, monkeypatch, capsys)


def test_grpo_refuses_a_configuration_that_contradicts_itself(pretrained, corpus, tmp_path, monkeypatch, capsys):
    folder = copy_model(pretrained, tmp_path / "odd", hidden_size=33)
    argv = ["--model_name_or_path", folder, "--questions", corpus / "questions.jsonl"]
    assert "model_name_or_path: cannot load" in refuse(train_grpo, argv, tmp_path, monkeypatch, capsys)


def test_grpo_refuses_a_tokenizer_that_is_too_large(pretrained, corpus, tmp_path, monkeypatch, capsys):
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "num_real_tokens": None}
    folder = copy_model(pretrained, tmp_path / "small", vocab_size=300, **ids)
    argv = ["--model_name_or_path", folder, "--questions", corpus / "questions.jsonl"]
    assert "vocab_size: the tokenizer has 401 tokens" in refuse(train_grpo, argv, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grpo_holdout", "1.5"], "grpo_holdout: expected a share"),
        (["--questions", "/no/such/file.jsonl"], "questions: no file matches '/no/such/file.jsonl'"),
        (["--model_name_or_path", "/nowhere"], "model_name_or_path: '/nowhere' is not a model folder"),
        (["--resume_from_checkpoint", "."], "resume_from_checkpoint: '.' is not a complete checkpoint"),
        (["--max_step", "3"], "unknown option '--max_step'; did you mean '--max_steps'?"),
    ],
)
def test_grpo_refuses(options, message, grpo_recipe, tmp_path, monkeypatch, capsys):
    assert message in refuse(train_grpo, ["--config", grpo_recipe, *options], tmp_path, monkeypatch, capsys)


def test_a_checkpoint_of_another_mixture_is_refused(
    pretrained, pretrain_recipe, sources, tmp_path, monkeypatch, capsys
):
    other = {("pdf" if name == "finepdfs" else name): entry for name, entry in sources.items()}
    argv = ["--config", pretrain_recipe, "--sources", json.dumps(other)]
    argv += ["--resume_from_checkpoint", pretrained / "checkpoint-8"]
    line = refuse(train_pretrain, argv, tmp_path, monkeypatch, capsys)
    assert "was written with another recipe: sources.finepdfs: gone; sources.pdf: new. Put it back" in line


def test_a_checkpoint_of_another_kind_of_run_is_refused(pretrained, grpo_recipe, tmp_path, monkeypatch, capsys):
    argv = ["--config", grpo_recipe, "--resume_from_checkpoint", pretrained / "checkpoint-8"]
    line = refuse(train_grpo, argv, tmp_path, monkeypatch, capsys)
    assert "was not written by this kind of run (no TokenBudget state)" in line


def test_the_process_exits_with_two_and_one_line(tmp_path):
    result = run("train_pretrain.py", "--config", tmp_path / "none.yaml", expect=2)
    assert result.stderr.splitlines()[-1].startswith("train_pretrain.py: error: --config: no such recipe")
    assert "Traceback" not in result.stderr

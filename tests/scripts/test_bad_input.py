"""Bad input: one line that names the key or file, exit code 2, nothing written."""

import json
import re
import shutil
import sys

import pytest
from transformers import ByT5Tokenizer

import eval_medqa
import train_grpo
import train_pretrain
from modeling_pure.errors import run_script
from tests.conftest import write_jsonl
from tests.processes import run


def refuse(script, argv, tmp_path, monkeypatch, capsys) -> str:
    """Run a script's main with `argv`; it has to exit with 2 after one line. Returns that line's message."""
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
    return lines[0].removeprefix("script: error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sources.c4.path", "/no/such/file.parquet"], r"sources\.c4: .*'/no/such/file\.parquet'"),
        (["--sources.c4.weight", "heavy"], r"sources\.c4\.weight: .*'heavy'"),
        (["--sources.c4.weight", "0.9"], r"sources: .*\b1\.7\b"),
        (["--sources.c4.column", "body"], r"sources\.c4: .*'body'.*\['text'\]"),
        (["--sources.c4.format", "medqa"], r"sources\.c4: .*\b0\b.*c4\.jsonl'.*\bquestion: "),
        (["--sources.c4.colum", "x"], r"sources\.c4\.colum: .*'column'"),
        (["--model_overrides", "{vocab_size: 300}"], r"vocab_size: .*\b401\b.*\b300\b"),
        (["--model_overrides", "{hiden_size: 64}"], r"model_overrides\.hiden_size: "),
        (["--model_overrides", "{vocab_size: 512, hidden_size: 33}"], r"preset: hidden_size .*\b33\b"),
        (["--model_overrides", "{vocab_size: 512, hidden_size: wide}"], "preset: .*'hidden_size'.*'wide'"),
        (["--preset", "huge"], "preset: .*'huge'"),
        (["--max_seq_length", "4096"], r"max_seq_length: .*\b4096\b.*\b256\b"),
        (["--grpo_holdout", "1.5"], r"grpo_holdout: .*\b1\.5"),
        (["--sources.c4.path", "*.parquet"], r"sources\.c4: .*'\*\.parquet'"),
        (["--sources.c4.path", "5"], r"sources\.c4\.path: .*\b5$"),
        (["--sources.c4.validation_documents", "many"], r"sources\.c4\.validation_documents: .*'many'"),
        (["--sources.c4.validation_documents", "100000"], r"sources\.c4: .*\b300\b.*\b100000\b"),
        (["--sources.c4.validation_documents", "300"], r"sources\.c4: c4\.jsonl: "),
        (["--sources.c4.path", "foo://x.parquet"], r"sources\.c4: .*'foo://x\.parquet'"),
        (["--sources.c4.max_epochs", "-1"], r"sources\.c4\.max_epochs: .*-1$"),
        (["--decontaminate", "/nowhere.jsonl"], r"decontaminate: .*'/nowhere\.jsonl'"),
        (["--on_source_failure", "shrug"], r"on_source_failure: .*\['stop', 'redistribute'\]"),
        (["--max_skipped", "2"], r"max_skipped: .*\b2\.0$"),
        (["--streaming_timeout", "0"], r"streaming_timeout: .*\b0\b"),
        (["--pretokenized_dir", "/nowhere"], "pretokenized_dir: '/nowhere' "),
        (["--sources.c4.weight", "1/0"], r"sources\.c4\.weight: .*'1/0'"),
        (["--model_overrides", "{vocab_size: 300"], ".*--model_overrides: "),
        (["--model_overrides", "{vocab_size: big}"], "preset: .*'vocab_size'.*'big'"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor: "),
        (["--use_liger_kernel", "true"], "use_liger_kernel: "),
        (["--tokenizer_name_or_path", "/nowhere"], "tokenizer_name_or_path: .*'/nowhere'"),
        (["--resume_from_checkpoint", "."], r"resume_from_checkpoint: '\.' "),
        (["--max_steps", "few"], ".*--max_steps: .*'few'"),
        (
            ["--metric_for_best_model", "eval_medqa_accuracy"],
            r"metric_for_best_model: .*\beval_loss\b",
        ),
        (["--metric_for_best_model", "loss/usmle"], "metric_for_best_model: .*'loss/usmle'.*eval_loss/c4"),
    ],
)
def test_pretraining_refuses(options, message, pretrain_recipe, tmp_path, monkeypatch, capsys):
    line = refuse(train_pretrain, ["--config", pretrain_recipe, *options], tmp_path, monkeypatch, capsys)
    assert re.match(message, line), line


def test_pretraining_refuses_a_tokenizer_written_in_python(pretrain_recipe, tmp_path, monkeypatch, capsys):
    ByT5Tokenizer().save_pretrained(tmp_path / "slow")
    argv = ["--config", pretrain_recipe, "--tokenizer_name_or_path", tmp_path / "slow"]
    line = refuse(train_pretrain, argv, tmp_path, monkeypatch, capsys)
    assert re.match(r"tokenizer_name_or_path: .*\bByT5Tokenizer\b", line)


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
        assert re.match(rf"model_name_or_path: '{empty}' .*config\.json", line)


def test_grpo_refuses_questions_that_are_none(pretrained, tmp_path, monkeypatch, capsys):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "hello"}])
    argv = ["--model_name_or_path", pretrained, "--questions", path]
    assert re.match(rf"questions: .*\b0\b.*'{path}'", refuse(train_grpo, argv, tmp_path, monkeypatch, capsys))


def test_evaluation_refuses_an_unknown_split(pretrained, corpus, tmp_path, monkeypatch, capsys):
    argv = ["--model_name_or_path", pretrained, "--questions", corpus / "questions.jsonl", "--split", "train"]
    assert re.match("split: .*'train'$", refuse(eval_medqa, argv, tmp_path, monkeypatch, capsys))


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
    assert line.startswith(f"model_name_or_path: '{folder / 'model.safetensors'}' ")


@pytest.mark.parametrize("changes", [{"intermediate_size": 32}, {"hidden_size": "wide"}], ids=["shape", "type"])
def test_evaluation_refuses_weights_that_do_not_fit(changes, pretrained, corpus, tmp_path, monkeypatch, capsys):
    folder = copy_model(pretrained, tmp_path / "other", **changes)
    argv = ["--model_name_or_path", folder, "--questions", corpus / "questions.jsonl", "--split", "all"]
    line = refuse(eval_medqa, argv, tmp_path, monkeypatch, capsys)
    assert re.match(f"model_name_or_path: [^']+ '{folder}': ", line), line


def test_grpo_refuses_a_configuration_that_contradicts_itself(pretrained, corpus, tmp_path, monkeypatch, capsys):
    folder = copy_model(pretrained, tmp_path / "odd", hidden_size=33)
    argv = ["--model_name_or_path", folder, "--questions", corpus / "questions.jsonl"]
    line = refuse(train_grpo, argv, tmp_path, monkeypatch, capsys)
    assert re.match(rf"model_name_or_path: [^']+ '{folder}': .*hidden_size .*\b33\b", line), line


def test_grpo_refuses_a_tokenizer_that_is_too_large(pretrained, corpus, tmp_path, monkeypatch, capsys):
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "num_real_tokens": None}
    folder = copy_model(pretrained, tmp_path / "small", vocab_size=300, **ids)
    argv = ["--model_name_or_path", folder, "--questions", corpus / "questions.jsonl"]
    line = refuse(train_grpo, argv, tmp_path, monkeypatch, capsys)
    assert re.match(r"vocab_size: .*\b401\b.*\b300\b", line), line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grpo_holdout", "1.5"], r"grpo_holdout: .*\b1\.5"),
        (["--questions", "/no/such/file.jsonl"], r"questions: .*'/no/such/file\.jsonl'"),
        (["--model_name_or_path", "/nowhere"], r"model_name_or_path: '/nowhere' .*config\.json"),
        (["--resume_from_checkpoint", "."], r"resume_from_checkpoint: '\.' "),
        (["--max_step", "3"], ".*'--max_step'.*'--max_steps'"),
        (["--metric_for_best_model", "accuracy"], "metric_for_best_model: .*'accuracy'.*eval_medqa_accuracy"),
        (["--algorithm", "sft", "--metric_for_best_model", "eval_reward"], "metric_for_best_model: .*'eval_reward'"),
        (["--use_vllm", "1", "--keep_sampling_mask", "0", "--top_p", "1", "--top_k", "0"], ".*use_vllm"),  # TRL's
    ],
)
def test_grpo_refuses(options, message, grpo_recipe, tmp_path, monkeypatch, capsys):
    line = refuse(train_grpo, ["--config", grpo_recipe, *options], tmp_path, monkeypatch, capsys)
    assert re.match(message, line), line


def test_a_checkpoint_of_another_mixture_is_refused(
    pretrained, pretrain_recipe, sources, tmp_path, monkeypatch, capsys
):
    other = {("pdf" if name == "finepdfs" else name): entry for name, entry in sources.items()}
    argv = ["--config", pretrain_recipe, "--sources", json.dumps(other)]
    argv += ["--resume_from_checkpoint", pretrained / "checkpoint-8"]
    line = refuse(train_pretrain, argv, tmp_path, monkeypatch, capsys)
    assert re.match(rf"{pretrained}/checkpoint-8 .*\bsources\.finepdfs: .*\bsources\.pdf: ", line), line


def test_a_checkpoint_of_another_kind_of_run_is_refused(pretrained, grpo_recipe, tmp_path, monkeypatch, capsys):
    argv = ["--config", grpo_recipe, "--resume_from_checkpoint", pretrained / "checkpoint-8"]
    line = refuse(train_grpo, argv, tmp_path, monkeypatch, capsys)
    assert re.match(rf"{pretrained}/checkpoint-8: .*\balgorithm\b", line), line


def test_the_process_exits_with_two_and_one_line(tmp_path):
    result = run("train_pretrain.py", "--config", tmp_path / "none.yaml", expect=2)
    message = rf"train_pretrain\.py: error: --config: .*'{tmp_path / 'none.yaml'}'"
    assert re.match(message, result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr

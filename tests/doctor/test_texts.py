"""Findings about sources, tokenizer and Hub, with each kind of failure provoked."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from modeling_pure.data.arguments import fixed_settings
from modeling_pure.data.mixture import Mixture
from modeling_pure.data.pretokenized import FACTS_FILE, SEQUENCES_PER_FILE, sequences_file, write_mixture
from modeling_pure.doctor import context as context_module
from modeling_pure.doctor.command import checks
from modeling_pure.doctor.context import FAIL, PASS, SKIPPED, WARN, on_hub
from tests.conftest import numbers_in, write_jsonl
from tests.data.http_server import Failure, FileServer
from tests.doctor.conftest import find
from tests.hub_server import HubServer

TOKEN = "hf_not_to_be_seen"


@pytest.mark.parametrize(("name", "validation"), [("finepdfs", "40"), ("usmle", "13")])
def test_a_source_is_read_as_in_training(name, validation, context):
    finding = find(f"sources.{name}", context())
    assert finding.status == PASS
    assert validation in numbers_in(finding.found.split(": ")[1])


def test_exam_text_has_the_formats_and_passages_of_the_recipe(context, tmp_path):
    finding = find("sources.usmle", context("--sources.usmle.answer_formats", "{text: 0.75, letter: 0.25}"))
    assert finding.status == PASS
    assert {"75", "25"} <= {*numbers_in(finding.found)}
    for key, value in (("answer_formats", "reasoned"), ("passages", str(tmp_path))):
        finding = find("sources.usmle", context(f"--sources.usmle.{key}", value))
        assert finding.status == FAIL
        assert finding.found.startswith(f"sources.usmle.{key}: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sources.c4.path", "/no/such/file.parquet"], r"sources\.c4: .*'/no/such/file\.parquet'"),
        (["--sources.c4.column", "body"], r"sources\.c4: .*'body'.*\['text'\]"),
        (["--sources.c4.format", "medqa"], r"sources\.c4: .*\b0\b.*c4\.jsonl' .*\bquestion: "),
        (["--sources.c4.validation_documents", "300"], r"sources\.c4: c4\.jsonl: "),
        (["--sources.c4.validation_path", "/none.jsonl"], r"sources\.c4\.validation_path: .*'/none\.jsonl'"),
        (["--sources.c4.path", "http://127.0.0.1:9/x.jsonl"], r"sources\.c4: .*'http://127\.0\.0\.1:9/x\.jsonl'"),
    ],
)
def test_a_source_that_cannot_be_read_is_named_by_its_key(options, message, context):
    broken = context(*options, "--streaming_timeout", "0.1")
    finding = find("sources.c4", broken)
    assert finding.status == FAIL
    assert re.match(message, finding.found)
    assert "\n" not in finding.found
    assert finding.cure.startswith("--sources.c4.path PATH")
    assert find("sources.fineweb_edu", broken).status == PASS


def test_a_file_shared_by_two_sources_fails(context, corpus):
    assert find("files", context()).status == PASS
    finding = find("files", context("--sources.c4.validation_path", corpus / "finepdfs.jsonl"))
    assert finding.status == FAIL
    assert re.match(r"sources\.c4\.validation_path: .*finepdfs\.jsonl' of sources\.finepdfs", finding.found)


def test_server_timeouts_are_shorter_than_in_a_run(context):
    assert context().data.streaming_timeout == 5
    assert context("--streaming_timeout", 2).data.streaming_timeout == 2


def test_validation_sources_and_decontamination_questions_are_read(context, corpus, tmp_path):
    outside = write_jsonl(tmp_path / "outside.jsonl", [{"text": "fever"}, {"text": "cough"}])
    questions = corpus / "questions.jsonl"
    good = context("--validation_sources", f"{{wiki: {{path: {outside}}}}}", "--decontaminate", questions)
    assert find("validation_sources.wiki", good).found.startswith(f"{outside}: 2 ")
    assert find("decontaminate", good).found.startswith(f"{questions}: 120 ")
    assert {"validation_sources.wiki", "decontaminate"} <= {check.name for check in checks(good)}
    bad = context("--validation_sources", "{wiki: {path: /none.jsonl}}", "--decontaminate", questions, outside)
    finding = find("validation_sources.wiki", bad)
    assert finding.status == FAIL
    assert re.match(r"validation_sources\.wiki: .*'/none\.jsonl'", finding.found)
    finding = find("decontaminate", bad)
    assert finding.status == FAIL
    assert re.match(rf"decontaminate: .*\b0\b.*'{outside}'", finding.found)


def test_a_vocabulary_that_is_too_small_fails_and_the_model_is_still_checked(context):
    assert numbers_in(find("tokenizer", context()).found)[-2:] == ["401", "512"]  # tokens, vocabulary
    small = context("--model_overrides", "{vocab_size: 400}")
    finding = find("tokenizer", small)
    assert finding.status == FAIL
    assert finding.found.startswith("vocab_size: ")
    assert numbers_in(finding.found) == ["401", "400"]
    assert small.blueprint.lm_head.out_features == 400
    finding = find("tokenizer", context("--tokenizer_name_or_path", "/nowhere"))
    assert finding.status == FAIL
    assert re.match("tokenizer_name_or_path: .*'/nowhere'", finding.found)


def test_pretokenized_sequences_replace_the_sources(context, tmp_path):
    unpacked = context("--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 1)
    mixture = Mixture(unpacked.data, unpacked.tokenizer)
    facts = fixed_settings(unpacked.data, unpacked.tokenizer, 0)
    (tmp_path / FACTS_FILE).write_text(json.dumps({"settings": facts, "sequences_per_file": SEQUENCES_PER_FILE}))
    write_mixture(tmp_path, mixture, 12)
    options = ["--pretokenized_dir", tmp_path, "--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 1]
    pretokenized = context(*options)
    assert numbers_in(find("pretokenized_dir", pretokenized).found.replace(str(tmp_path), "")) == ["12"]
    names = [check.name for check in checks(pretokenized)]
    assert "pretokenized_dir" in names
    assert not [name for name in names if name.startswith("sources.")]
    with_dev = [check.name for check in checks(context(*options, "--medqa_dev_questions", 5))]
    assert [name for name in with_dev if name.startswith("sources.")] == ["sources.usmle"]
    finding = find("pretokenized_dir", context(*options, "--max_steps", 13))
    assert finding.status == FAIL
    assert re.match(r"pretokenized_dir: .*\b12\b.*\b13\b", finding.found)
    sequences_file(tmp_path, 0).write_bytes(b"no arrow")
    finding = find("pretokenized_dir", pretokenized)
    assert finding.status == FAIL
    assert finding.found.startswith("pretokenized_dir: ")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A server in place of the Hub for this process, without a token."""
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "whoami-v2").write_text('{"name": "somebody"}')
    server = FileServer(tmp_path)
    use_as_hub(server.url, tmp_path, monkeypatch)
    yield server
    server.stop()


def use_as_hub(url: str, tmp_path: Path, monkeypatch) -> None:
    """Make this process use a server as the Hub, without a token."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


PUSH = ["--push_to_hub", "true", "--hub_model_id", "user/pure"]
READ = ["--sources.c4.path", "owner/c4"]


def test_a_missing_or_invalid_token_is_a_warning_for_a_run_that_reads(context, hub, monkeypatch):
    options, bad = READ, WARN
    finding = find("token", context(*options))
    assert finding.status == bad
    assert "hf auth login" in finding.cure
    assert "--force" not in finding.cure
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    finding = find("token", context(*options))
    assert finding.status == PASS
    assert "somebody" in finding.found
    for status, invalid in ((401, True), (500, False)):
        hub.failures = lambda method, path, status=status: Failure(status) if "whoami" in path else None
        finding = find("token", context(*options))
        assert finding.status == bad
        assert ("hf auth login --force" in finding.cure) == invalid
        assert TOKEN not in str(finding)
    hub.failures = lambda method, path: Failure(drop=True) if "whoami" in path else None
    finding = find("token", context(*options))
    assert finding.status == bad
    assert "hf auth login" not in finding.cure


def test_a_run_that_pushes_fails_without_permission(context, tmp_path, monkeypatch):
    hub = HubServer()
    use_as_hub(hub.url, tmp_path, monkeypatch)
    assert find("token", context(*PUSH)).status == FAIL
    finding = find("token", context(*PUSH, "--hub_token", "hf_writes"))
    assert finding.status == PASS
    assert "user/pure" in finding.found
    faults = set()
    for token in ("hf_reads", TOKEN):
        finding = find("token", context(*PUSH, "--hub_token", token))
        assert finding.status == FAIL
        assert finding.found.startswith("push_to_hub: ")
        assert token not in str(finding)
        faults.add(finding.found)
    assert len(faults) == 2
    hub.stop()


def test_an_unavailable_or_disabled_hub_is_reported_once(context, hub, monkeypatch):
    finding = find("Hub", context(*READ))
    assert finding.status == PASS
    assert hub.url in finding.found
    for status in (403, 503):
        hub.failures = lambda method, path, status=status: Failure(status)
        finding = find("Hub", context(*READ))
        assert finding.status == WARN
        assert re.match(rf"{hub.url} .*\b{status}\b", finding.found)
    monkeypatch.setattr(context_module, "HUB_SECONDS", 0.05)
    hub.failures = lambda method, path: Failure(delay=0.5)
    for _ in range(2):  # an answer that is too late, and none
        finding = find("Hub", context(*READ))
        assert finding.status == WARN
        assert f"{hub.url}: " in finding.found
        hub.stop()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = context(*READ)
    assert "HF_HUB_OFFLINE" in find("Hub", offline).found
    assert find("sources.c4", offline).status == SKIPPED
    assert find("sources.usmle", offline).status == PASS
    assert find("Hub", context()).status == find("token", context()).status == PASS


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("allenai/c4", True),
        ("gpt2", True),
        ("hf://datasets/allenai/c4/en/*.json.gz", True),
        ("https://example.org/a.jsonl", False),
        ("data/c4.parquet", False),
        ("data/*.jsonl", False),
        ("./c4", False),
        ("/data/c4", False),
        ("runs/demo/world/tokenizer", False),
    ],
)
def test_which_paths_are_on_the_hub(path, expected):
    assert on_hub(path) is expected

"""Pretokenized sequences are those of the mixture for any number of workers, and refused if they do not fit a run."""

import re
import signal
import subprocess
import time
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import yaml
from torch.utils.data import DataLoader

from modeling_pure.commands.pretokenize import main
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.mixture import collate_sequences
from modeling_pure.data.pretokenized import PretokenizedMixture, open_table, token_ids, write_mixture
from modeling_pure.data.training_data import open_training_data
from modeling_pure.errors import InputError, RunStopped
from tests.conftest import numbers_in, through_checkpoint
from tests.processes import Program, run

SEQUENCES = 150


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, sources, tokenizer_folder):
    """A recipe whose run takes 150 sequences."""
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    facts = {"max_seq_length": 32, "max_steps": 25, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    file.write_text(
        yaml.dump({**facts, "sources": sources, "tokenizer_name_or_path": str(tokenizer_folder)}, sort_keys=False)
    )
    return file


def pretokenize(recipe, folder, *options) -> subprocess.CompletedProcess:
    return run("-m", "modeling_pure", "pretokenize", "--config", recipe, "--out", folder, *options, expect=None)


@pytest.fixture(scope="module")
def pretokenized(recipe, tmp_path_factory):
    """The folder that the command wrote."""
    folder = tmp_path_factory.mktemp("pretokenized")
    result = pretokenize(recipe, folder)
    assert result.returncode == 0, result.stderr
    assert {str(SEQUENCES), "32"} <= {*numbers_in(result.stdout)}
    assert re.search(r"^answers of usmle: .*\bletter 100\b", result.stdout, re.MULTILINE)
    return folder


@pytest.fixture
def open_pretokenized(pretokenized, sources, tokenizer):
    """Opens the pretokenized sequences for one rank."""

    def open_for(seed=0, batch_size=1, rank=0, world_size=1, folder=pretokenized, **changes) -> PretokenizedMixture:
        given = {"sources": sources, "max_seq_length": 32, "pretokenized_dir": str(folder), **changes}
        return PretokenizedMixture(DataArguments(**given), tokenizer, seed, batch_size, rank, world_size)

    return open_for


def straight(make_mixture, count: int = SEQUENCES) -> np.ndarray:
    return np.stack([sequence["input_ids"] for sequence in islice(make_mixture(), count)])


def test_pretokenized_sequences_are_those_of_the_mixture(open_pretokenized, make_mixture):
    sequences = []
    with pytest.raises(RunStopped, match=r"^pretokenized_dir: .*\b150\b"):
        sequences.extend(sequence["input_ids"] for sequence in open_pretokenized())
    np.testing.assert_array_equal(sequences, straight(make_mixture))
    assert sequences[0].dtype == np.int32


def test_validation_sequences_are_written_too(open_pretokenized, make_mixture):
    from modeling_pure.data.validation import validation_mixture

    mixture = make_mixture()
    expected = validation_mixture(mixture.data.sources, mixture.tokenize, 32, 200)
    sequences = open_pretokenized().validation_sequences()
    np.testing.assert_array_equal([r["input_ids"] for r in sequences], [r["input_ids"] for r in expected])


def test_a_copy_of_a_text_outside_the_mixture_is_not_written(recipe, corpus, tokenizer, tmp_path, monkeypatch):
    given = yaml.safe_load(recipe.read_text())
    copied = (corpus / "c4.jsonl").read_text().splitlines()[100:300]
    (tmp_path / "outside.jsonl").write_text("\n".join(copied))
    given |= {"max_steps": 100, "validation_sources": {"outside": {"path": f"{tmp_path}/outside.jsonl"}}}
    given["validation_sources"]["outside"]["validation_documents"] = 200
    (tmp_path / "recipe.yaml").write_text(yaml.dump(given, sort_keys=False))
    monkeypatch.setattr("sys.argv", ["pretokenize", "--config", f"{tmp_path}/recipe.yaml", "--out", f"{tmp_path}/out"])
    main()
    opened = DataArguments(**{key: given[key] for key in ("sources", "max_seq_length", "validation_sources")})
    opened.pretokenized_dir = f"{tmp_path}/out"
    validation = PretokenizedMixture(opened, tokenizer).validation_sequences()
    assert {one["source"] for one in validation} == {*given["sources"], "outside"}
    table = open_table(tmp_path / "out" / "sequences-00000.arrow")
    sequences = token_ids(table)[table.column("source").to_numpy() == list(given["sources"]).index("c4")]
    found = {int(number) for number in re.findall(r"c4 (\d+):", tokenizer.decode(sequences.reshape(-1)))}
    assert len(found & set(range(40, 100))) > 50
    assert not found & set(range(100, 300))


def test_a_run_opens_the_folder_as_it_opens_the_sources(pretokenized, sources, tokenizer):
    arguments = DataArguments(sources=sources, max_seq_length=32, medqa_dev_questions=3)
    data, validation, questions = open_training_data(arguments, tokenizer, 0)
    written = replace(arguments, pretokenized_dir=str(pretokenized))
    again, same_validation, same_questions = open_training_data(written, tokenizer, 0)
    assert questions == same_questions
    assert len(questions) == 3
    for one, other in ((islice(data, 20), islice(again, 20)), (validation, same_validation)):
        for left, right in zip(one, other, strict=True):
            assert left["source"] == right["source"]
            np.testing.assert_array_equal(left["input_ids"], right["input_ids"])
    assert set(again.describe(1000)) >= {f"  {name}" for name in sources} | {"answers of usmle"}
    assert set(data.describe(1000)) >= {f"  {name}" for name in sources} | {"answers of usmle", "decontaminated"}


def batches(open_pretokenized, steps: int, ranks=None, world_size: int = 1, workers: int = 0):
    """The sequences of all ranks step by step, and the states they end with."""
    loaders, states = [], [{"workers": {}, "last_worker": 0} for _ in range(world_size)]
    for rank in range(world_size):
        mixture = open_pretokenized(batch_size=3, rank=rank, world_size=world_size)
        if ranks:
            assert mixture.resume(ranks, max(1, workers)) is None
        loaders.append(iter(DataLoader(mixture, batch_size=3, collate_fn=collate_sequences, num_workers=workers)))
    sequences = []
    for _ in range(steps):
        for rank, loader in enumerate(loaders):
            batch = next(loader)
            sequences.append(batch["input_ids"])
            state = batch["data_state"]
            states[rank]["workers"][str(state["worker"])] = state
            states[rank]["last_worker"] = state["worker"]
    return np.concatenate(sequences), through_checkpoint(states)


def test_any_number_of_workers_shares_the_sequences_in_their_order(open_pretokenized, make_mixture):
    seen, states = [], None
    for steps, world_size, workers in ((4, 1, 0), (3, 2, 2), (5, 2, 0), (4, 3, 1), (8, 1, 3)):
        sequences, states = batches(open_pretokenized, steps, states, world_size, workers)
        seen.append(sequences)
    seen = np.concatenate(seen)
    np.testing.assert_array_equal(seen, straight(make_mixture)[: len(seen)])
    assert len(seen) == 120
    drawn = open_pretokenized().progress(list(states[0]["workers"].values()))
    assert {name: done["sequences"] for name, done in drawn.items()} == {
        "finepdfs": 54,
        "fineweb_edu": 30,
        "c4": 24,
        "usmle": 12,
    }


def test_progress_counts_the_sequences_of_all_ranks(open_pretokenized):
    """Two ranks have trained on two batches of three sequences each."""
    _, states = batches(open_pretokenized, 2, world_size=2)
    drawn = open_pretokenized().progress([state for rank in states for state in rank["workers"].values()])
    assert sum(done["sequences"] for done in drawn.values()) == 12


def test_a_second_run_keeps_full_files_and_rewrites_the_others(make_mixture, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_pure.data.pretokenized.SEQUENCES_PER_FILE", 20)
    write_mixture(tmp_path, make_mixture(), count=50)
    first = (tmp_path / "sequences-00000.arrow").stat().st_mtime_ns
    write_mixture(tmp_path, make_mixture(), count=90)
    assert (tmp_path / "sequences-00000.arrow").stat().st_mtime_ns == first
    sequences = np.concatenate([token_ids(open_table(file)) for file in sorted(tmp_path.glob("*.arrow"))])
    np.testing.assert_array_equal(sequences, straight(make_mixture, 90))


def test_pretokenizing_resumes_after_a_kill(recipe, make_mixture, tmp_path, open_pretokenized):
    process = Program(
        "-m", "modeling_pure", "pretokenize", "--config", recipe, "--out", tmp_path, "--sequences", "60000"
    )
    while process.poll() is None and not (tmp_path / "sequences-00001.arrow").exists():
        time.sleep(0.01)
    assert process.poll() is None, "pretokenizing was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    result = pretokenize(recipe, tmp_path, "--sequences", "20000")
    assert result.returncode == 0, result.stderr
    sequences = [sequence["input_ids"] for sequence in islice(open_pretokenized(folder=tmp_path), 20000)]
    np.testing.assert_array_equal(sequences, straight(make_mixture, 20000))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 64}, r"max_seq_length \(32\b.*\b64\)"),
        ({"seed": 1}, r"seed \(0\b.*\b1\)"),
        ({"grpo_holdout": 0.5}, r"grpo_holdout \(0\.0\b.*\b0\.5\)"),
        ({"decontaminate": ["x.jsonl"]}, r"decontaminate \(.*x\.jsonl"),
        ({"validation_sources": {"b": {"path": "x.jsonl"}}}, r"validation_sources \(.*x\.jsonl"),
    ],
)
def test_sequences_of_other_settings_are_refused(open_pretokenized, changes, message):
    with pytest.raises(InputError, match=rf"^pretokenized_dir: .*\b{message}"):
        open_pretokenized(**changes)


def test_sequences_with_answers_in_other_formats_are_refused(pretokenized, sources, tokenizer):
    given = {**sources, "usmle": {**sources["usmle"], "answer_formats": "text"}}
    arguments = DataArguments(sources=given, max_seq_length=32, pretokenized_dir=str(pretokenized))
    with pytest.raises(InputError, match=r"^pretokenized_dir: .*\bsources\b"):
        PretokenizedMixture(arguments, tokenizer)


def test_what_cannot_be_written_or_read_is_refused(open_pretokenized, pretokenized, recipe, tmp_path):
    with pytest.raises(InputError, match=f"^pretokenized_dir: .*'{tmp_path}'"):
        open_pretokenized(folder=tmp_path)
    with pytest.raises(InputError, match=r"^pretokenized_dir: .*\b150\b.*\b151\b"):
        open_pretokenized().check_length(151)
    with pytest.raises(InputError, match="^pretokenized_dir: [^']*$"):
        open_pretokenized().resume([{"workers": {"0": {"drawn": {}}}, "last_worker": 0}], 1)
    result = pretokenize(recipe, pretokenized, "--seed", "1")
    assert result.returncode == 2
    assert re.search(r"error: pretokenized_dir: .*\bseed \(0\b.*\b1\)", result.stderr)
    result = pretokenize(recipe, pretokenized, "--sequences", "20")
    assert result.returncode == 0
    assert "150" in numbers_in(result.stdout)
    result = pretokenize(recipe, tmp_path, "--sequences", "0")
    assert result.returncode == 2
    assert re.search(r"error: sequences: .*\b0$", result.stderr.rstrip())
    result = pretokenize(recipe, "")
    assert result.returncode == 2
    assert "error: out: " in result.stderr

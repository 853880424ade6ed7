"""Accelerate reads the launch files; processes, precision and engine follow launcher and options."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from modeling_pure.errors import InputError, RankLost
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.training.arguments import PureTrainingArguments
from modeling_pure.training.launch import (
    LOCK_FILE,
    check_engine,
    describe_precision,
    describe_processes,
    lock_folder,
    lost_ranks,
    naming_lost_ranks,
    run_lock,
)
from tests.processes import free_port, hold

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted(ROOT.glob("accelerate_configs/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_launch_file(path):
    config = load_config_from_file(str(path))
    assert (config.num_processes == 1) == (config.distributed_type == "NO")
    assert config.num_processes % config.num_machines == 0
    assert (config.num_machines > 1) == ("node" in path.stem)
    assert config.mixed_precision == "no"  # the scripts choose bf16 themselves


def test_accelerate_starts_a_script():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    result = subprocess.run([*command, "eval_medqa.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    assert "usage: eval_medqa.py" in result.stdout


# ---- processes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def group_of_one(monkeypatch):
    """The environment of plain torchrun with one process, on a machine without an accelerator."""
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "OMP_NUM_THREADS": 1}
    for name, value in {**names, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: False)
    yield
    dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("kind", [PureTrainingArguments, PureGRPOConfig])
def test_torchrun_starts_a_group_on_cpus_with_the_timeout_of_the_run(group_of_one, tmp_path, kind):
    args = kind(output_dir=str(tmp_path), ddp_timeout=77)
    assert (
        args.distributed_state.distributed_type == DistributedType.MULTI_CPU
    )  # a group that accelerate takes part in
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    assert backend.name() == "gloo"
    assert backend.options._timeout == timedelta(seconds=77)


@pytest.mark.parametrize("kind", [PureTrainingArguments, PureGRPOConfig])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_processes_that_would_each_be_a_run_are_refused(monkeypatch, tmp_path, kind, name):
    monkeypatch.setenv(name, "2")
    with pytest.raises(InputError, match=r"^WORLD_SIZE: .*\b2\b.*\b1\b"):
        kind(output_dir=str(tmp_path))


def test_lost_ranks_are_named(group_of_one, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_pure.training.launch.ANSWER_SECONDS", 0.1)
    PureTrainingArguments(output_dir=str(tmp_path))
    args = SimpleNamespace(process_index=0, world_size=3, ddp_timeout=77)
    store = dist.distributed_c10d._get_default_store()
    store.set("pure/process/1", "host far, process 12")
    store.set("pure/answer/2", "")
    with pytest.raises(RankLost, match=r"\brank 1 \(host far, process 12\) ") as lost, naming_lost_ranks(args):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer")
    assert "\n" not in str(lost.value)
    assert "rank 2" not in str(lost.value)
    with pytest.raises(RuntimeError, match="^size mismatch$"), naming_lost_ranks(args):
        raise RuntimeError("size mismatch")
    monkeypatch.setattr(dist.PrefixStore, "check", lambda *_: time.sleep(60))  # rank 0, which holds the store, hangs
    assert [line.split(",")[0] for line in lost_ranks(1, 3)] == ["rank 0"]


# ---- precision and engine -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PureTrainingArguments, PureGRPOConfig])
@pytest.mark.parametrize(
    ("launched", "stated", "bf16"),
    [
        ("bf16", None, True),
        ("bf16", True, True),
        ("no", True, True),
        ("no", False, False),
        ("bf16", False, "bf16"),
        ("fp16", None, "mixed_precision"),
        ("fp8", True, "mixed_precision"),
    ],
)
def test_the_launcher_can_set_the_precision(monkeypatch, tmp_path, kind, launched, stated, bf16):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    if isinstance(bf16, str):
        with pytest.raises(InputError, match=f"^{bf16}: "):
            kind(output_dir=str(tmp_path), bf16=stated)
    else:
        assert kind(output_dir=str(tmp_path), bf16=stated).bf16 is bf16


def test_the_start_up_block_shows_accelerates_precision(monkeypatch, make_trainer):
    assert describe_precision(make_trainer().accelerator) == "fp32"
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    assert "aot_eager" in describe_precision(make_trainer().accelerator)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trainer = make_trainer()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert describe_precision(trainer.accelerator).startswith("bf16")
    trainer.args.bf16 = False
    with pytest.raises(InputError, match="^bf16: "):
        check_engine(trainer.args, trainer.accelerator)


def test_an_engine_that_accelerate_does_not_start_is_refused(monkeypatch, make_trainer):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=r"^fsdp: .*\bNO\b"):
        make_trainer()


@pytest.mark.parametrize("kind", [PureTrainingArguments, PureGRPOConfig])
@pytest.mark.parametrize("by", ["option", "launcher"])
def test_deepspeed_on_a_cpu_machine_is_refused(monkeypatch, tmp_path, kind, by):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: False)
    if by == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="^deepspeed: "):
        kind(output_dir=str(tmp_path), **({"deepspeed": {"zero_optimization": {}}} if by == "option" else {}))


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP", "MEGATRON_LM"])
@pytest.mark.parametrize("has", [DistributedType.MULTI_CPU, DistributedType.DEEPSPEED, DistributedType.FSDP])
def test_an_engine_is_in_use_or_refused(monkeypatch, kind, has):
    args = SimpleNamespace(deepspeed=None, fsdp=[], bf16=False, device=torch.device("cpu"), world_size=2)
    accelerator = SimpleNamespace(distributed_type=has, mixed_precision="no")
    assert has.value in describe_processes(args, accelerator)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    if has.value == kind:
        check_engine(args, accelerator)
    else:
        with pytest.raises(InputError, match=f"^{kind.lower()}: .*{has.value}"):
            check_engine(args, accelerator)


# ---- one run in a folder --------------------------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path):
    """A folder that another process has locked, and that process."""
    program = hold(tmp_path / "run")
    yield tmp_path / "run", program
    program.kill_group(signal.SIGKILL)  # and any children


def test_a_second_run_is_refused_but_a_killed_run_frees_its_lock(held):
    folder, program = held
    with pytest.raises(InputError, match=rf"^output_dir: .*\b{socket.gethostname()}\b.*\b{program.pid}\b"):
        lock_folder(folder)
    assert [file.name for file in folder.iterdir()] == [LOCK_FILE]
    program.send_signal(signal.SIGKILL)
    program.wait()
    with lock_folder(folder) as lock:
        lock.seek(0)
        assert str(os.getpid()) in lock.read()


def test_every_rank_of_a_second_run_is_refused(held, monkeypatch):
    folder, _ = held
    said: list[list[str]] = []

    def broadcast(found: list[str]) -> list[str]:
        said.append(found)
        return said[0]

    monkeypatch.setattr("modeling_pure.training.launch.broadcast_object_list", broadcast)
    for rank in (0, 1):
        args = SimpleNamespace(output_dir=str(folder), process_index=rank)
        with pytest.raises(InputError), run_lock(args):
            pytest.fail("two runs in a folder")


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("wrote", [True, False])
def test_a_run_removes_its_lock_and_its_empty_folder(tmp_path, existed, wrote):
    folder = tmp_path / "run"
    if existed:
        folder.mkdir()
    args = SimpleNamespace(output_dir=str(folder), process_index=0)

    def run() -> None:
        with run_lock(args):
            (folder / "completions").mkdir()
            if wrote:
                (folder / "metrics.jsonl").touch()
            raise InputError

    with pytest.raises(InputError):
        run()
    assert folder.exists() == (existed or wrote)
    assert not (folder / LOCK_FILE).exists()
    assert (folder / "metrics.jsonl").exists() == wrote
    with run_lock(args):  # the next run can lock it
        assert (folder / LOCK_FILE).exists()


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    lock_folder(tmp_path).close()
    assert capsys.readouterr().out.startswith("output_dir: ")


def test_a_lock_on_a_removed_file_does_not_count(tmp_path, monkeypatch):
    lock_it, removed = fcntl.lockf, []

    def end_the_other_run_first(file, operation) -> None:
        if not removed:
            (tmp_path / LOCK_FILE).unlink()
            removed.append(1)
        lock_it(file, operation)

    monkeypatch.setattr(fcntl, "lockf", end_the_other_run_first)
    with lock_folder(tmp_path) as lock:
        assert os.path.samestat(os.fstat(lock.fileno()), (tmp_path / LOCK_FILE).stat())

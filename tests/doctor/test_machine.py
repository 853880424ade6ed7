"""Findings about the machine, with each kind of failure provoked."""

import re
import shutil
from collections import namedtuple
from importlib.metadata import version

import pytest
import torch
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from modeling_pure.doctor import machine
from modeling_pure.doctor.context import FAIL, PASS, SKIPPED, WARN
from modeling_pure.errors import InputError
from modeling_pure.training.arguments import PureTrainingArguments
from tests.conftest import numbers_in
from tests.doctor.conftest import find

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def gpu(monkeypatch):
    """Pretend that the device is a GPU with a name and free memory in bytes."""

    def gpu(free: float, name: str = "NVIDIA A100-SXM4-80GB") -> None:
        monkeypatch.setattr(PureTrainingArguments, "device", torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(85e9)))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)

    return gpu


def full_size(context, *options):
    """The recipe with the real model, batch and steps, in bf16."""
    real = ["--preset", "medium-large", "--model_overrides", "{}", "--max_seq_length", 2048, "--max_steps", 61035]
    context = context(*real, "--per_device_train_batch_size", 16, "--gradient_accumulation_steps", 1, *options)
    context.training.bf16 = True
    return context


def test_gpu_memory_is_compared_with_the_estimate(context, gpu):
    full = full_size(context)
    for free, status, cure in (
        (84e9, PASS, ""),
        (31.3e9, PASS, ""),
        (31.1e9, WARN, "--per_device_train_batch_size 8 --gradient_accumulation_steps 2"),
        (6.5e9, WARN, "--gradient_checkpointing true"),
        (6.4e9, FAIL, "nvidia-smi"),
    ):
        gpu(free)
        finding = find("GPU", full)
        assert finding.status == status, finding
        assert cure in finding.cure
        assert {f"{free / 1e9:.1f}", "85.0", "31.2", "6.4"} <= {*numbers_in(finding.found)}
    gpu(84e9)
    full.training.bf16 = False
    assert find("GPU", full).status == WARN
    assert "54.3" in numbers_in(find("GPU", full).found)


def test_a_run_without_a_gpu_fails_only_if_a_cpu_is_too_slow(context):
    finding = find("GPU", context())
    assert finding.status == WARN
    assert "cpu" in finding.found
    finding = find("GPU", full_size(context))
    # 2.0e9 tokens x 2.626e9 FLOP, at 1e12 a second
    assert finding.status == FAIL
    assert {"31.2", "5,252", "61"} <= {*numbers_in(finding.found)}


def test_cpu_torch_on_a_machine_with_an_nvidia_driver_is_reported(context, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    driver = tmp_path / "version"
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", driver)
    finding = find("torch", context())
    assert finding.status == WARN
    assert "CUDA" in finding.found
    assert "NVIDIA" not in finding.found
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54")
    finding = find("torch", context())
    assert finding.status == WARN
    assert "NVIDIA" in finding.found
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    finding = find("torch", context())
    assert finding.status == WARN
    assert "13.0" in numbers_in(finding.found)


def test_packages_outside_their_ranges_and_missing_ones_fail(context, monkeypatch, tmp_path):
    assert find("packages", context()).status == PASS
    file = tmp_path / "pyproject.toml"
    file.write_text(
        '[project]\nrequires-python = "<3.9"\ndependencies = ["torch>=99", "transformers"]\n'
        '[project.optional-dependencies]\ntrain = ["no-such-package>=1"]\neval = ["none-either"]\n'
    )
    monkeypatch.setattr(machine, "PROJECT", file)
    finding = find("packages", context())
    assert finding.status == FAIL
    assert "requirements.txt" in finding.cure
    python, torch_, missing = finding.found.split("; ")
    assert re.fullmatch(r"python 3\..*<3\.9", python)
    assert re.fullmatch(rf"torch {re.escape(version('torch'))}\b.*>=99", torch_)
    assert re.fullmatch("no-such-package .*>=1", missing)


def test_packages_of_an_installed_project_are_those_of_its_metadata(context, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "PROJECT", tmp_path / "none")
    lines = ["torch>=2", 'no-such-package>=1; extra == "train"', 'none-either; extra == "eval"']
    monkeypatch.setattr(machine, "requires", lambda name: lines)
    monkeypatch.setattr(machine, "metadata", lambda name: {"Requires-Python": ">=3.11"})
    finding = find("packages", context())
    assert finding.status == FAIL
    assert re.fullmatch("no-such-package [^;]*>=1", finding.found)

    def not_installed(name):
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "requires", not_installed)
    assert find("packages", context()).status == SKIPPED


def test_a_folder_that_is_not_writable_is_named(context, tmp_path):
    finding = find("output_dir", context("--output_dir", tmp_path / "new" / "run"))
    assert finding.status == PASS
    assert "MB/s" in finding.found
    assert not list(tmp_path.iterdir())
    folders = (tmp_path / "file", tmp_path / "file" / "run")
    contexts = [context("--output_dir", folder) for folder in folders]
    (tmp_path / "file").write_text("")
    for folder, given in zip(folders, contexts, strict=True):
        finding = find("output_dir", given)
        assert finding.status == FAIL
        assert finding.found.startswith("output_dir: ")
        assert f"'{folder}'" in finding.found
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_disk_space_for_retained_best_and_unfinished_checkpoints(context, monkeypatch):
    for options, count in (
        (["--save_total_limit", 3], 5),
        (["--save_total_limit", 1], 3),
        (["--save_steps", 4], 5),  # default save_total_limit: 3
    ):
        with_limit = context(*options)
        needed = count * 12 * with_limit.parameters
        for free, status in ((needed, PASS), (needed - 1, FAIL)):
            monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(2 * free, free, free))
            finding = find("disk", with_limit)
            assert finding.status == status
            assert str(count) in numbers_in(finding.found)
    unlimited = context("--save_steps", 5)
    unlimited.training.save_total_limit = None
    assert str(3 + 2) in numbers_in(find("disk", unlimited).found)
    unlimited.training.save_steps = 0.1
    assert str(10 + 2) in numbers_in(find("disk", unlimited).found)


def test_trackers_must_be_installed(context):
    assert find("monitoring", context()).found.startswith("report_to: tensorboard")
    assert find("monitoring", context("--report_to", "none")).status == PASS
    missing = min(set(INTEGRATION_TO_CALLBACK) - set(get_available_reporting_integrations()))
    for name in (missing, "nobody"):
        with pytest.raises(InputError, match=f"^report_to: .*{name}"):
            context("--report_to", name)


def test_data_workers_need_cores_and_shared_memory(context, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: range(4), raising=False)
    for workers, status in ((0, PASS), (3, PASS), (4, WARN)):
        assert find("data workers", context("--dataloader_num_workers", workers)).status == status
    finding = find("data workers", context("--dataloader_num_workers", 4))
    assert numbers_in(finding.found) == ["4", "4"]  # workers, cores
    assert "--dataloader_num_workers 3" in finding.cure
    monkeypatch.setattr(machine, "SHARED_MEMORY", machine.Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 1000))
    finding = find("data workers", context("--dataloader_num_workers", 1))
    assert finding.status == FAIL
    assert "--shm-size" in finding.cure
    assert find("data workers", context("--dataloader_num_workers", 0)).status == PASS

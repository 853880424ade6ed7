"""The GPU benchmark keeps its results however a step ends, and all of its steps run on a CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import prepare
from benchmarks.gpu.profile import CATEGORIES, ELEMENTWISE, OTHER, PRODUCTS, summarize
from benchmarks.gpu.steps import MODULES, STEPS
from modeling_pure.errors import InputError
from tests.benchmarks import faulty_steps

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not yet waited for does not."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(") ", 1)[1][0] != "Z"


# ---- steps that end in other ways -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> dict[str, dict]:
    """What is written down of `faulty_steps`, by step."""
    out = tmp_path_factory.mktemp("faulty")
    result = run("tests.benchmarks.faulty_steps", str(out))
    assert result.returncode == 0, result.stderr[-3000:]
    steps = json.loads((out / "gpu.json").read_text())["steps"]
    assert [step["name"] for step in steps] == [step.name for step in faulty_steps.STEPS]
    return {step["name"]: step for step in steps}


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("raises", "failed", "ValueError: the reason"),
        ("leaves", "failed", "exit code 3"),
        ("hangs", "killed", "1 s"),
        ("deaf", "killed", "1 s"),
        ("is killed", "killed", "SIGKILL"),
        ("out of memory", "failed", "OutOfMemoryError: tried to allocate 2 TiB"),
    ],
)
def test_a_failed_step_reports_its_error_and_keeps_its_rows(faulty, name, status, error):
    step = faulty[name]
    assert step["status"] == status
    assert error in step["error"]
    assert [row["what"] for row in step["rows"]] == ["before"]
    assert all(not is_alive(row["pid"]) for row in step["rows"] if "pid" in row)


def test_all_other_steps_have_their_results(faulty):
    for name, rows in (("first", 2), ("second", 2), ("reads its own row", 2), ("last", 3)):
        assert faulty[name]["status"] == "ok"
        assert faulty[name]["error"] is None
        assert len(faulty[name]["rows"]) == rows


def test_the_log_shows_where_a_step_failed_or_hung(faulty):
    assert any("ValueError: the reason" in line for line in faulty["raises"]["log_tail"])
    assert any("in hangs" in line for line in faulty["hangs"]["log_tail"])
    assert faulty["no module"]["status"] == "failed"
    assert "tests.no_such_module" in faulty["no module"]["error"]


def test_a_step_without_enough_time_left_is_reported_as_skipped(faulty):
    assert faulty["too long"]["status"] == "skipped"
    assert "1e+06 s" in faulty["too long"]["error"]


def test_what_a_step_has_started_ends_with_it(faulty):
    assert not is_alive(faulty["starts a process"]["rows"][0]["pid"])


def test_a_broken_start_ends_the_command_at_once(tmp_path):
    assert run("tests.benchmarks.faulty_steps", str(tmp_path), "raises").returncode == 0
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert [(step["name"], step["status"]) for step in steps] == [("first", "failed")]


def test_where_forked_processes_cannot_use_cuda_others_are_started(tmp_path):
    assert run("tests.benchmarks.faulty_steps", str(tmp_path), "needs_a_process_of_its_own").returncode == 0
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert [(step["name"], step["status"], len(step["rows"])) for step in steps] == [
        ("first", "failed", 1),
        ("first, spawned", "ok", 1),
        ("second", "ok", 2),
        ("raises", "failed", 1),
    ]
    assert "CUDA" in steps[0]["error"]
    assert steps[1]["error"] is None


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_stopped_ends_its_step_and_keeps_what_it_has(tmp_path, number):
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--seconds", "300", "--out", str(tmp_path), "checks"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file, deadline = tmp_path / "gpu.json", time.monotonic() + 120
    while not (file.exists() and "two compiled steps" in file.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    steps = json.loads(file.read_text())["steps"]
    assert [step["status"] for step in steps] == ["ok", "killed"]
    assert steps[0]["rows"]
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and is_alive(int(pid)) and names(pid, tmp_path)]


def names(pid: str, folder: Path) -> bool:
    """Whether a process was started with this folder among its arguments."""
    try:
        return str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_runs_on_a_cpu(tmp_path):
    """Also the test of `tests.gpu.checks`, as far as a CPU can tell."""
    result = run("benchmarks.gpu", "--tiny", "--seconds", "600", "--out", str(tmp_path), *MODULES)
    content = json.loads((tmp_path / "gpu.json").read_text())
    failed = [step for step in content["steps"] if step["status"] != "ok"]
    assert (result.returncode, failed) == (0, []), result.stderr[-2000:]
    assert {"versions", "device", "commit", "command", "steps"} == set(content)
    assert [step["name"] for step in content["steps"]] == [step.name for step in STEPS]
    rows = {step["name"]: step["rows"] for step in content["steps"]}
    assert rows["validation, checkpoint, resume"][0]["difference"] == 0
    assert rows["out of memory"][0] == {"what": "sequences of a micro-batch", "before": 2, "after": 1}
    assert rows["attention kernels"][0]["gradients"] < 0.01
    speed = [step.name for step in STEPS if step.part == "speed"]
    assert all(rows[name][0]["steps"] == 2 and rows[name][0]["tokens_per_second"] > 0 for name in speed)
    assert [row["what"] for row in rows["rollouts"] if "ratio" in row] == [
        f"rollout of 8 x {tokens} tokens" for tokens in (8, 4)
    ]
    assert rows["line: pretraining"][0]["steps"] == 20
    assert rows["line: GRPO"][0]["steps"] == 4
    assert rows["line: questions after GRPO"][0]["n"] == 64
    for part in ("pretraining", "a rollout", "scoring"):
        (row,) = rows[f"profile of {part}"]
        assert sum(row[kind] for kind in CATEGORIES) == pytest.approx(1, abs=1e-3)
        assert row[PRODUCTS] > 0
    files = list(tmp_path.iterdir())
    assert len(files) <= 8
    assert max(file.stat().st_size for file in files) < 16e6
    assert len(result.stdout.splitlines()) < 80
    assert all(name in result.stdout for name in rows)


def test_the_size_of_a_training_row_is_that_of_the_original_recipe():
    from benchmarks.step import Scale

    assert (Scale().sequences, Scale().length, Scale().preset) == (16, 2048, "medium-large")
    assert Scale().steps >= 25


@pytest.mark.parametrize("options", [["line"], ["--tiny", "line"]])
def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, options):
    out = tmp_path / "out"
    if "--tiny" in options:
        out.mkdir()
        (out / "gpu.json").write_text("another run's")
    result = run("benchmarks.gpu", "--seconds", "60", "--out", str(out), *options)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert ("gpu.json" if "--tiny" in options else "--tiny") in result.stderr or "out:" in result.stderr
    assert not out.exists() or (out / "gpu.json").read_text() == "another run's"


def test_prepare_gathers_what_the_line_reads(tmp_path, monkeypatch, capsys, tokenizer_folder):
    commands = []
    monkeypatch.setattr(prepare, "run_python", lambda *arguments: commands.append(list(map(str, arguments))))
    questions = tmp_path / "questions"
    given = [str(tmp_path / "offline"), "--tokenizer", str(tokenizer_folder), "--questions", str(questions)]
    with pytest.raises(InputError, match=r"train\.jsonl"):
        prepare.prepare(given)
    assert not (tmp_path / "offline").exists()
    questions.mkdir()
    for name in ("train", "dev"):
        (questions / f"{name}.jsonl").write_text("{}\n")
    assert prepare.prepare(given) == 0
    assert {path.name for path in (tmp_path / "offline").iterdir()} == {"train.jsonl", "dev.jsonl", "tokenizer"}
    packing, wheels = commands
    assert packing[:3] == ["-m", "modeling_pure", "pretokenize"]
    assert str(tmp_path / "offline/rows") in packing
    assert wheels[:3] == ["-m", "pip", "download"]
    assert "trl==1.16.0" in wheels
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition("-m benchmarks.gpu ")[2].split()[0] for line in printed[-2:]] == ["checks", "line"]


# ---- the profile ----------------------------------------------------------------------------------------------------

NAMES = {  # as an H100's traces have them
    "nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNT": PRODUCTS,
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nt_align8>(...)": PRODUCTS,
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>": PRODUCTS,
    "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<96, 64, cutlass>>": (
        "attention"
    ),
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1": "attention",
    "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)": "attention",
    "triton_poi_fused__scaled_dot_product_cudnn_attention_mm_view_3": ELEMENTWISE,
    "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0": ELEMENTWISE,
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >": ELEMENTWISE,
    "triton_red_fused__to_copy_logsumexp_0": "loss",
    "void at::native::(anonymous namespace)::cunn_SoftMaxForward<4, float, LogSoftMaxForwardEpilogue>": "loss",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4> >": "optimizer",
    "Memcpy HtoD (Pinned -> Device)": "copies and casts",
    "void at::native::unrolled_elementwise_kernel<at::native::bfloat16_copy_kernel_cuda>": "copies and casts",
    "void at::native::index_elementwise_kernel<128, 4, at::native::index_copy_kernel_impl>": "indexing",
    "a_kernel_that_nobody_knows": OTHER,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_of_its_kind(name):
    row = summarize([(name, 5.0, 1)], 10.0, 1)
    assert {kind: row[kind] for kind in CATEGORIES if row[kind]} == {NAMES[name]: 1.0}
    assert row["idle"] == 0.5


def test_a_profile_is_stated_by_step_and_longest_first():
    row = summarize([("nvjet", 60.0, 4), ("unknown", 20.0, 2)], 100.0, 2)
    assert (row["ms_recorded"], row["kernel_ms"], row["kernels"], row["idle"]) == (0.05, 0.04, 3, 0.2)
    assert row[PRODUCTS] == 0.75
    assert row[OTHER] == 0.25
    assert row["top"][0] == {"kernel": "nvjet", "kind": PRODUCTS, "calls": 2.0, "ms": 0.03}
    with pytest.raises(RuntimeError, match="no kernel"):
        summarize([], 100.0, 2)


def test_no_test_sees_a_gpu():
    assert not torch.cuda.is_available()

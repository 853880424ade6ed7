"""A profile names every kernel, loses none, and knows when there was none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.kernel_times import CATEGORIES, ELEMENTWISE, ON_GPU, OTHER, PRODUCTS, operators, spans_of, summarize

ROOT = Path(__file__).parents[1]
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


def kernel(name: str, start: float, duration: float, category: str = "kernel", thread: int = 7) -> dict:
    """An event as a trace has it."""
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "tid": thread}


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_of_its_kind(name):
    row = summarize(spans_of([kernel(name, 0.0, 5.0)], *ON_GPU), 1e-5, 1)
    assert {kind: row[kind] for kind in CATEGORIES if row[kind]} == {NAMES[name]: 1.0}
    assert row["idle"] == 0.5


def test_time_without_a_kernel_is_idle_and_time_of_two_is_counted_once():
    events = [
        kernel("nvjet", 0.0, 40.0),
        kernel("unknown", 30.0, 20.0, thread=8),  # at the same time for 10 microseconds
        kernel("nvjet", 80.0, 20.0),
        kernel("Memset (Device)", 90.0, 5.0, "gpu_memset"),
        kernel("ProfilerStep#1", 0.0, 100.0, "gpu_user_annotation"),
        kernel("aten::mm", 0.0, 100.0, "cpu_op"),
    ]
    row = summarize(spans_of(events, *ON_GPU), 100e-6, 2)
    assert row["idle"] == 0.3 and row["kernels"] == 2 and row["kernel_ms"] == round(85e-3 / 2, 3)
    assert row[PRODUCTS] == round(60 / 85, 4) and row[OTHER] == round(20 / 85, 4)
    assert sum(row[kind] for kind in CATEGORIES) == pytest.approx(1, abs=1e-3)
    assert row["top"][0] == {"kernel": "nvjet", "kind": PRODUCTS, "calls": 1.0, "ms": 0.03}


def test_an_operator_is_counted_without_those_it_calls():
    events = [
        kernel("aten::linear", 0.0, 10.0, "cpu_op"),
        kernel("aten::t", 1.0, 2.0, "cpu_op"),
        kernel("aten::transpose", 1.0, 1.5, "cpu_op"),
        kernel("aten::mm", 3.0, 6.0, "cpu_op"),
        kernel("aten::add", 10.0, 1.0, "cpu_op"),
        kernel("aten::mul", 2.0, 4.0, "cpu_op", thread=8),
    ]
    own = {span.name: span.own for span in operators(events)}
    assert own == {
        "aten::linear": 2.0,
        "aten::t": 0.5,
        "aten::transpose": 1.5,
        "aten::mm": 6.0,
        "aten::add": 1.0,
        "aten::mul": 4.0,
    }


def test_the_profile_runs_in_small(tmp_path):
    command = [sys.executable, "-m", "benchmarks.profile_steps", "--tiny", "--out", str(tmp_path)]
    result = subprocess.run([*command, "--trace", str(tmp_path / "traces")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    line = json.loads(result.stdout)
    assert {"name", "unit", "ours", "peer", "peer_name", "ratio", "device", "versions"} <= set(line)
    rows = json.loads((tmp_path / "profile-tiny.json").read_text())
    assert [row["what"] for row in rows] == list(line["idle"])
    assert len(rows) == 5 == len(list((tmp_path / "traces").glob("*.json")))
    for row in rows:
        assert sum(row[kind] for kind in CATEGORIES) == pytest.approx(1, abs=1e-3)
        assert row[PRODUCTS] > 0 and row["attention"] > 0 and 0 < row["idle"] < 1
        assert len(row["top"]) == 10 and sum(kernel["ms"] for kernel in row["top"]) <= row["kernel_ms"]
    pretraining = {row["what"]: row for row in rows[:3]}
    assert all(row["optimizer"] > 0 and row["loss"] > 0 for row in pretraining.values())
    products = {  # the calls of a step, from the table of kernels
        what: next(kernel["calls"] for kernel in row["top"] if kernel["kernel"] == "aten::mm")
        for what, row in pretraining.items()
    }
    # A layer has seven weights, each in three products, and the head is one more; recomputed layers run forward again.
    assert products == {"ours": 87, "HF Llama": 87, "HF Llama, checkpointing": 87 + 4 * 7}
    assert (tmp_path / "profile-tiny.md").read_text().count("\n| `") == 5 * 10

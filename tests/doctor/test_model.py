"""Findings about the model: size, first loss and speed, with each kind of failure provoked."""

import re
from types import SimpleNamespace

import pytest
import torch
from rich.filesize import decimal

from modeling_pure import PureForCausalLM
from modeling_pure.doctor import model
from modeling_pure.doctor.context import FAIL, PASS, SKIPPED, WARN, Check
from modeling_pure.errors import InputError
from modeling_pure.modeling_pure import PureRMSNorm
from tests.conftest import numbers_in
from tests.doctor.conftest import find


def test_the_full_model_must_have_its_number_of_parameters(context, monkeypatch):
    full = context("--preset", "medium-large", "--model_overrides", "{}")
    assert {"401,227,776", "20", "1152"} <= {*numbers_in(find("model", full).found)}
    monkeypatch.setattr(model, "FULL_SIZE", 1)
    assert find("model", full).status == FAIL
    assert find("model", context()).status == PASS


@pytest.mark.parametrize("spread", [0.001, 0.1, 0.3])
def test_the_first_loss_is_that_of_uniform_predictions(spread, context):
    small = context("--model_overrides.head_initializer_range", spread)
    finding = find("forward pass", small)
    assert finding.status == PASS
    sequences, length, loss, expected = map(float, numbers_in(finding.found))
    assert (sequences, length) == (2, 64)
    assert abs(loss - expected) < 0.2
    assert expected >= round(6.238, 2)


def test_a_model_with_a_wrong_loss_fails(context, monkeypatch):
    forward = PureRMSNorm.forward
    monkeypatch.setattr(PureRMSNorm, "forward", lambda self, states: 1000 * forward(self, states))
    assert find("forward pass", context("--model_overrides.head_initializer_range", 0.1)).status == FAIL
    monkeypatch.setattr(PureRMSNorm, "forward", lambda self, states: torch.nan * states)
    finding = find("forward pass", context())
    assert finding.status == FAIL
    assert re.search(r"\bnan\b", finding.found)


def limit_rows(monkeypatch, most: int) -> None:
    """Let every larger micro-batch run out of memory."""
    forward = PureForCausalLM.forward

    def limited(self, input_ids=None, **kwargs):
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAnd a page more")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(PureForCausalLM, "forward", limited)


def test_running_out_of_memory_is_one_line(context, monkeypatch):
    limit_rows(monkeypatch, 1)
    assert find("forward pass", context()).found.endswith("CUDA out of memory. Tried to allocate 2 GiB.")
    finding = find("throughput", context())
    assert finding.status == WARN
    assert numbers_in(finding.found) == ["2", "64", "1"]  # one sequence fits
    limit_rows(monkeypatch, 0)
    finding = find("throughput", context())
    assert finding.status == FAIL
    assert "--gradient_checkpointing true" in finding.found


def test_a_model_that_exceeds_the_memory_is_not_built(context, monkeypatch):
    small = context()
    there = SimpleNamespace(available=6 * small.parameters)  # enough for a forward pass
    monkeypatch.setattr(model.psutil, "virtual_memory", lambda: there)
    assert find("forward pass", small).status == PASS
    assert find("throughput", small).status == SKIPPED
    there.available = 4 * small.parameters
    finding = find("forward pass", small)
    assert finding.status == SKIPPED
    assert decimal(there.available) in finding.found


def test_steps_are_timed_at_the_run_s_size_or_a_smaller_one_is_reported(context, monkeypatch):
    finding = find("throughput", context("--document_mask", "true", "--optimizer", "muon"))
    assert finding.status == PASS
    assert re.match(r"2 x 64 .* [\d,]+ tokens/s", finding.found)
    monkeypatch.setattr(model, "CPU_FLOPS", 1)
    monkeypatch.setattr(model, "SMALL_LENGTH", 32)
    finding = find("throughput", context())
    assert re.match(r"1 x 32 .*\b2 x 64\b.* [\d,]+ tokens/s", finding.found)
    assert find("throughput", context("--quick")).status == SKIPPED


def test_the_estimated_time_is_that_of_the_whole_run(context):
    run = context("--max_steps", 1_000_000)  # x 256 tokens
    for speed, status, hours in ((1000, WARN, "71.1 h"), (2000, PASS, "35.6 h")):
        line = {"tokens_per_second": speed, "mfu": 0.416, "peak_memory_gb": 31.04}
        finding = Check("speed", lambda run, line=line: model.judge_speed(run, line, "16 x 2048 on cuda")).run(run)
        assert finding.status == status
        assert re.search(rf"\b{speed:,} tokens/s.* 41\.6% .* 31\.0 GB.* 256,000,000 .* {hours}", finding.found)


def test_a_schedule_that_the_trainer_refuses_fails_here(context):
    with pytest.raises(InputError, match=r"^lr_scheduler_kwargs: .*no_such"):
        context("--lr_scheduler_kwargs", "{no_such: 1}")

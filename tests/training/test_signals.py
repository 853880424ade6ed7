"""A signal stops a run at any time; tests/scripts/test_pretrain_faults.py sends signals to complete runs."""

import os
import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from modeling_pure.errors import RunInterrupted
from modeling_pure.training.signals import StopOnSignal


@pytest.fixture
def group(tmp_path):
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_signal_during_the_agreement_stops_the_run_after_the_next_step(group, monkeypatch, world_size):
    timeout = timedelta(seconds=70)
    stop, args = StopOnSignal(), SimpleNamespace(world_size=world_size, ddp_timeout_delta=timeout)
    state = SimpleNamespace(global_step=1, max_steps=9)
    control = SimpleNamespace(should_save=False, should_training_stop=False, should_log=False)
    agree = dist.all_reduce

    def interrupted(*given, **more):
        agree(*given, **more)
        os.kill(os.getpid(), signal.SIGTERM)  # its handler runs at once

    stop.on_train_begin(args, state, control)
    try:
        if world_size > 1:  # a hanging rank is noticed in time
            assert stop.ranks._get_backend(torch.device("cpu")).options._timeout <= timeout
        monkeypatch.setattr(dist, "all_reduce", interrupted)
        if world_size == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        stop.on_step_end(args, state, control)
        monkeypatch.setattr(dist, "all_reduce", agree)
        state.global_step = 2
        stop.on_step_end(args, state, control)
    finally:
        stop.on_train_end(args, state, control)
    assert control.should_save
    assert control.should_training_stop
    assert control.should_log
    with pytest.raises(RunInterrupted, match=r"^SIGTERM: .*\b2\b") as raised:
        stop.raise_if_stopped(state)
    assert raised.value.exit_code == 143

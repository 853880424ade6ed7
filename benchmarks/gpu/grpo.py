"""GRPO's speed compared with stock TRL: rollouts, scoring with update, whole steps, as in `benchmarks.grpo`."""

import statistics
from collections.abc import Iterator
from dataclasses import replace

from benchmarks import grpo
from benchmarks.grpo import OURS, STOCK
from benchmarks.measure import Work, alternate, median_ratio, peak_memory, reset_peak_memory

from .runner import Setting

SEQUENCES, SHORT = 256, 10  # completions of a rollout; tokens of an answer in MedQA's format
ROUNDS = 2


def scale_of(setting: Setting) -> grpo.Scale:
    """The size of the measured step."""
    return replace(grpo.TINY, bf16=True) if setting.tiny else grpo.Scale()


def rollouts(setting: Setting) -> Iterator[dict]:
    """Rollouts with completions of full length, and of the length of an answer."""
    scale, folder = scale_of(setting), str(setting.work)
    grpo.save_model(folder, scale)
    trainer = grpo.build_trainer(OURS, scale, folder)
    sequences, short = (scale.completions_per_step, 4) if setting.tiny else (SEQUENCES, SHORT)
    for tokens in (scale.completion, short):
        works = grpo.samplers(scale, trainer, sequences, tokens)
        yield from beside(f"rollout of {sequences} x {tokens} tokens", works, sequences * tokens)


def scoring(setting: Setting) -> Iterator[dict]:
    """Old and reference log-probabilities, loss and gradient of one optimizer step."""
    scale, folder = scale_of(setting), str(setting.work)
    grpo.save_model(folder, scale)
    works = {side: grpo.scorer(scale, grpo.build_trainer(side, scale, folder)) for side in (OURS, STOCK)}
    yield from beside("scoring and update", works, scale.completions_per_step * scale.completion)


def steps(setting: Setting) -> Iterator[dict]:
    """Whole optimizer steps of `train()`, ours first."""
    scale, folder = scale_of(setting), str(setting.work)
    grpo.save_model(folder, scale)
    times = {}
    for side in (OURS, STOCK):
        reset_peak_memory()
        times[side] = [grpo.step_seconds(side, scale, folder)]
        yield row(f"GRPO step, {side}", times[side], scale.completions_per_step * scale.completion) | peak_memory()
    yield {"what": "GRPO step", "ratio": median_ratio(times[STOCK], times[OURS])}


def beside(what: str, works: dict[str, Work], tokens: int) -> Iterator[dict]:
    """A row for each side, with the ratio."""
    times = alternate(works, ROUNDS)
    yield from (row(f"{what}, {side}", taken, tokens) for side, taken in times.items())
    yield {"what": what, "ratio": median_ratio(times[STOCK], times[OURS])}


def row(what: str, taken: list[float], tokens: int) -> dict:
    """Median seconds, and completion tokens per second."""
    median = statistics.median(taken)
    return {"what": what, "seconds": round(median, 4), "tokens_per_second": round(tokens / median)}

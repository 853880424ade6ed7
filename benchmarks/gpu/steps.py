"""All steps in order: correctness, comparison with the original recipe, kernels, GRPO, a short run, profiles.

Seconds and caps are estimates for an H100 or H200, whose layers compile in 25 to 40 s, once for each kind of batch;
later steps use the compiler's cache on disk.
"""

from typing import Any

from .runner import Step

MODULES = {
    "checks": "tests.gpu.checks",
    **{part: f"benchmarks.gpu.{part}" for part in ("speed", "grpo", "line", "profile")},
}


def step(part: str, name: str, function: str, seconds: float, cap: float, **options: Any) -> Step:
    """A step whose function is in the module of its part."""
    return Step(name, part, f"{MODULES[part]}:{function}", seconds, cap, tuple(options.items()))


STEPS = (
    step("checks", "environment", "environment", 10, 60),
    step("checks", "two compiled steps", "two_compiled_steps", 50, 90),
    step("checks", "attention kernels", "attention_kernels", 8, 20),
    step("checks", "graph capture", "graph_capture", 12, 30),
    step("checks", "failed capture", "failed_capture", 8, 30),
    step("checks", "sampler against scorer", "sampler_against_scorer", 8, 30),
    step("checks", "skipped steps", "skipped_steps", 7, 30),
    step("checks", "validation, checkpoint, resume", "resume", 35, 90),
    step("checks", "out of memory", "out_of_memory", 15, 30),
    step("speed", "ours, compiled", "training", 15, 40),
    step("speed", "original recipe", "training", 12, 30, model="HF Llama", gradient_checkpointing=True),
    step("speed", "ours, flash", "training", 35, 60, attention_kernel="flash"),
    step("speed", "HF Llama", "training", 10, 25, model="HF Llama"),
    step("grpo", "rollouts", "rollouts", 25, 50),
    step("grpo", "scoring and update", "scoring", 30, 60),
    step("grpo", "GRPO steps", "steps", 45, 80),
    step("speed", "ours, document mask", "training", 60, 80, document_mask=True),
    step("speed", "ours, checkpointing", "training", 35, 60, gradient_checkpointing=True),
    step("line", "line: pretraining", "pretraining", 110, 180),
    step("line", "line: questions before GRPO", "questions", 12, 40, model="pretrain"),
    step("line", "line: GRPO", "grpo", 45, 80),
    step("line", "line: questions after GRPO", "questions", 12, 40, model="grpo"),
    step("profile", "profile of pretraining", "pretraining", 20, 60),
    step("profile", "profile of a rollout", "rollout", 20, 70),
    step("profile", "profile of scoring", "scoring", 15, 40),
)

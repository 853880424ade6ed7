"""The division of an optimizer step over processes, and within each process into micro-batches."""

from dataclasses import dataclass
from typing import Self

from ..errors import InputError


@dataclass(frozen=True)
class BatchPlan:
    """The division of a step.

    Attributes:
        micro_batch_size: sequences (in GRPO, completions) per forward pass.
        accumulation: micro-batches per step and process.
        world_size: number of processes.
    """

    micro_batch_size: int
    accumulation: int
    world_size: int

    @property
    def sequences_per_step(self) -> int:
        """Sequences per step over all processes."""
        return self.micro_batch_size * self.accumulation * self.world_size

    @classmethod
    def divide(cls, step: str, sequences: float, world_size: int, at_most: int) -> Self:
        """Divide a step of `sequences` into equal micro-batches, as large as possible, of at most `at_most` sequences.

        Raises `InputError`, with a message that starts with `step`, if the processes cannot divide it equally.
        """
        share = sequences / world_size
        if share < 1 or share % 1:
            raise InputError(f"{step}, not divisible by {world_size} process(es)")
        size = max(size for size in range(1, min(int(share), max(1, at_most)) + 1) if share % size == 0)
        return cls(size, int(share) // size, world_size)


@dataclass(frozen=True)
class RolloutPlan(BatchPlan):
    """The division of a GRPO step and of the rollout that it trains on.

    TRL allows steps that split a group and rollouts that are not a whole number of steps, so `prompts` and `updates`
    can be fractions.

    Attributes:
        num_generations: completions per prompt.
        rollout_size: completions per rollout over all processes.
        micro_batches_per_rollout: micro-batches trained on per rollout.
    """

    num_generations: int
    rollout_size: int
    micro_batches_per_rollout: int

    @property
    def prompts(self) -> float:
        """Prompts per step over all processes."""
        return self.sequences_per_step / self.num_generations

    @property
    def updates(self) -> float:
        """Optimizer steps per rollout."""
        return self.micro_batches_per_rollout / self.accumulation

    def prompts_of_run(self, max_steps: int) -> int:
        """Prompts sampled in a run, counting the last rollout in full even if training stops partway through it."""
        rollouts = -(-max_steps * self.accumulation // self.micro_batches_per_rollout)
        return rollouts * self.rollout_size // self.num_generations

"""How the batch of an optimizer step is divided: over the processes, and on each of them into micro-batches."""

from dataclasses import dataclass
from typing import Self

from ..errors import InputError


@dataclass(frozen=True)
class BatchPlan:
    """The division of a step. A process accumulates gradients over several forward passes of equal size.

    Attributes:
        micro_batch_size: sequences (in GRPO completions) of a forward pass.
        accumulation: forward passes of a process in a step.
        world_size: processes.
    """

    micro_batch_size: int
    accumulation: int
    world_size: int

    @property
    def sequences_per_step(self) -> int:
        """Sequences of a step over all processes."""
        return self.micro_batch_size * self.accumulation * self.world_size

    @classmethod
    def divide(cls, step: str, sequences: float, world_size: int, at_most: int) -> Self:
        """Divide a step into the largest equal micro-batches.

        Args:
            step: the option that states the step, and its size, as an error names them.
            at_most: sequences of a micro-batch.

        Raises:
            InputError: the processes cannot share the step.
        """
        share = sequences / world_size
        if share < 1 or share % 1:
            raise InputError(f"{step}, which {world_size} process(es) cannot share")
        size = max(size for size in range(1, min(int(share), max(1, at_most)) + 1) if share % size == 0)
        return cls(size, int(share) // size, world_size)


@dataclass(frozen=True)
class RolloutPlan(BatchPlan):
    """The division of a GRPO step, and of the rollout whose completions it trains on.

    TRL allows a step to hold parts of groups, and a rollout parts of an update: then these are fractions.

    Attributes:
        num_generations: completions of a prompt.
        rollout_size: completions of a rollout over all processes.
        micro_batches_per_rollout: forward passes of training from one rollout to the next.
    """

    num_generations: int
    rollout_size: int
    micro_batches_per_rollout: int

    @property
    def prompts(self) -> float:
        """Prompts of a step over all processes."""
        return self.sequences_per_step / self.num_generations

    @property
    def updates(self) -> float:
        """Optimizer steps made on the completions of one rollout."""
        return self.micro_batches_per_rollout / self.accumulation

    def prompts_of_run(self, max_steps: int) -> int:
        """Prompts that a run takes; the last rollout is a whole one, even if the run ends inside it."""
        rollouts = -(-max_steps * self.accumulation // self.micro_batches_per_rollout)
        return rollouts * self.rollout_size // self.num_generations

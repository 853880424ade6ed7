"""A sample of answers in each format before the first step, to see whether there is anything to learn from.

GRPO learns from differences within a group of samples. A model whose answers are all right, all wrong or all
unreadable provides none, and the loss, near 0 in every case, does not show it.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from ..console import print_block
from ..medqa.formats import ANSWER_FORMATS
from ..medqa.metrics.medqa_accuracy.medqa_accuracy import wilson_interval
from ..medqa.questions import LETTERS
from ..medqa.rewards import AnswerReward
from .sampling import uniform_numbers
from .trainer import PureGRPOTrainer

PROMPTS = 32  # over all processes and formats; with 16 samples each, an accuracy has a margin of about 4 points
READABLE = {"letter": "start with a letter", "text": "are an option's text", "reasoned": "end in an answer"}


@dataclass
class Sample:
    """One completion.

    Attributes:
        group: identifies its prompt.
        option: the option that it names, or None.
        contradicts: whether its letter and its text name different options.
        answer: the right option.
        length: tokens.
        clipped: whether it has no end-of-text token.
        kept: tokens that could have been sampled, summed over positions.
    """

    answer_format: str
    group: tuple[int, ...]
    option: int | None
    contradicts: bool
    answer: int
    length: int
    clipped: bool
    kept: int


@dataclass
class Preflight:
    """Summary of the completions in one format; shares are from 0 to 1.

    Attributes:
        letters: number of answers per option.
        no_spread: share of groups whose samples all earn the same reward, so that nothing is learned from them.
    """

    answer_format: str
    groups: int
    completions: int
    parsed: float
    contradictions: float
    correct: int
    always_a: float
    letters: dict[str, int]
    no_spread: float
    clipped: float
    mean_length: float
    kept_tokens: float

    @classmethod
    def of(cls, answer_format: str, samples: list[Sample]) -> "Preflight":
        """Summarise all samples of a format."""
        n, tokens = len(samples), sum(sample.length for sample in samples)
        groups: defaultdict[tuple[int, ...], list[bool]] = defaultdict(list)
        for sample in samples:
            groups[sample.group].append(sample.option == sample.answer)
        counts = Counter(sample.option for sample in samples)
        return cls(
            answer_format=answer_format,
            groups=len(groups),
            completions=n,
            parsed=1 - counts[None] / n,
            contradictions=sum(sample.contradicts for sample in samples) / n,
            correct=sum(map(sum, groups.values())),
            always_a=sum(sample.answer == 0 for sample in samples) / n,
            letters={letter: counts[i] for i, letter in enumerate(LETTERS)},
            no_spread=sum(len({*right}) == 1 for right in groups.values()) / len(groups),
            clipped=sum(sample.clipped for sample in samples) / n,
            mean_length=tokens / n,
            kept_tokens=sum(sample.kept for sample in samples) / tokens,
        )

    @property
    def accuracy(self) -> float:
        """Share of right completions."""
        return self.correct / self.completions

    def facts(self) -> dict[str, str]:
        """The lines to print."""
        low, high = wilson_interval(self.correct, self.completions)
        answers = ", ".join(f"{letter} {count}" for letter, count in self.letters.items())
        return {
            "sampled": f"{self.completions} completions to {self.groups} prompts, {self.mean_length:.1f} tokens each"
            + (f", from {self.kept_tokens:.1f} kept tokens per position" if self.kept_tokens else ""),
            "readable": f"{self.parsed:.1%} {READABLE[self.answer_format]}; {answers}",
            "contradictions": f"{self.contradictions:.1%} name one option by letter and another by text",
            "right": f"{self.accuracy:.1%} ({low:.1%} to {high:.1%}); always A: {self.always_a:.1%}, chance: 25.0%",
            "groups with equal rewards": f"{self.no_spread:.1%}, from which nothing is learned",
            "clipped": f"{self.clipped:.1%} have no end of text",
        }

    def warnings(self) -> list[str]:
        """Obstacles to learning."""
        cases = {
            "most completions are unreadable; pretrain on questions in this format first": self.parsed < 0.5,
            "most completions are cut off; raise max_completion_length, or teach the end of text": self.clipped > 0.5,
            "no sample is right, so that nothing can be learned": self.correct == 0,
            "nearly all samples are right, so that little can be learned": self.accuracy > 0.95,
            "in most groups all samples earn the same, so that most steps will change nothing": self.no_spread > 0.8,
        }
        return [f"WARNING: {text}" for text, holds in cases.items() if holds]


def print_preflight(trainer: PureGRPOTrainer) -> None:
    """Sample before the first step, and print a summary of each format."""
    summaries = preflight(trainer)
    for found in summaries if trainer.is_world_process_zero() else []:
        print_block(f"Before the first step, {found.answer_format}", found.facts())
        print(*found.warnings(), sep="\n")


def preflight(trainer: PureGRPOTrainer) -> list[Preflight]:
    """Sample for the run's first prompts of each format, without changing what the run samples.

    The processes divide the prompts. Rewards are whether an answer is right, without the length penalty.
    """
    rank, world, number = trainer.args.process_index, trainer.args.world_size, trainer.args.num_generations
    prompts = first_prompts(trainer.train_dataset)
    shape = len(prompts), number, trainer.args.max_completion_length
    uniform = uniform_numbers(f"preflight {trainer.args.seed}", shape[0] * number, shape[2]).view(shape)[rank::world]
    rows = prompts[rank::world]
    devices = [trainer.args.device.index or 0] if trainer.args.device.type == "cuda" else []
    together = max(1, trainer.args.generation_batch_size // world // number)  # as in training
    samples: list[Sample] = []
    with torch.random.fork_rng(devices):
        for start in range(0, len(rows), together):
            batch = slice(start, start + together)
            samples += sample_groups(trainer, rows[batch], (rank, start), uniform[batch].flatten(0, 1))
    return summarise(gather_object(samples))


def first_prompts(prompts: Dataset) -> list[dict[str, Any]]:
    """`PROMPTS` prompts, equally many of each format."""
    formats = prompts["answer_format"]
    share = PROMPTS // len({*formats})
    first = [[i for i, name in enumerate(formats) if name == one][:share] for one in sorted({*formats})]
    return [prompts[i] for places in first for i in places]


def sample_groups(
    trainer: PureGRPOTrainer, rows: list[dict[str, Any]], name: tuple[int, int], uniform: torch.Tensor
) -> list[Sample]:
    """Sample completions for some prompts; `name` makes their groups unique."""
    size = trainer.args.num_generations
    prompt_ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
    rollout = trainer.sample([ids for ids in prompt_ids for _ in range(size)], uniform)
    texts = trainer._tokenizer.batch_decode(rollout.completion_ids, skip_special_tokens=True)
    asked = [row for row in rows for _ in range(size)]
    chat = not isinstance(rows[0]["prompt"], str)
    answers = AnswerReward(trainer._tokenizer, trainer.eos_token_ids).answers(
        [[{"role": "assistant", "content": text}] if chat else text for text in texts],
        rollout.completion_ids,
        [row["options"] for row in asked],
        [row["answer_format"] for row in asked],
    )
    return [
        Sample(
            answer_format=row["answer_format"],
            group=(*name, i // size),
            option=found.option,
            contradicts=found.contradicts,
            answer=row["answer"],
            length=len(ids),
            clipped=ids[-1] not in trainer.eos_token_ids,
            kept=sum(rollout.kept[i]) if rollout.kept else 0,
        )
        for i, (found, row, ids) in enumerate(zip(answers, asked, rollout.completion_ids, strict=True))
    ]


def summarise(samples: list[Sample]) -> list[Preflight]:
    """Summarise the samples of each format."""
    of_format = {name: [one for one in samples if one.answer_format == name] for name in ANSWER_FORMATS}
    return [Preflight.of(name, group) for name, group in of_format.items() if group]

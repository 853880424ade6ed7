"""Before the first step: what the model answers now in each format, and whether there is anything to learn from.

GRPO learns from differences within a group of samples. A model that is always right, never right or never readable
gives none, and the loss alone would not tell: it is near 0 in every case.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, TypedDict

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

PROMPTS = 32  # over all processes and formats; with 16 samples each an accuracy is known to about 4 points
READABLE = {
    "letter": "start with a letter",
    "text": "are an option's text",
    "reasoned": "end in an answer",
}


@dataclass
class Preflight:
    """What a sample of completions in one format looks like; shares are from 0 to 1.

    Attributes:
        letters: how often each option was answered.
        contradictions: share of completions whose letter and text name different options.
        no_spread: share of groups in which all samples earn the same, from which nothing is learned.
        clipped: share of completions that reached no end of text.
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

    @property
    def accuracy(self) -> float:
        """Share of completions whose answer is right."""
        return self.correct / self.completions

    def facts(self) -> dict[str, str]:
        """Lines for people."""
        low, high = wilson_interval(self.correct, self.completions)
        answers = ", ".join(f"{letter} {count}" for letter, count in self.letters.items())
        return {
            "sampled": f"{self.completions} completions to {self.groups} prompts, {self.mean_length:.1f} tokens each"
            + (f", from {self.kept_tokens:.1f} likely tokens a position" if self.kept_tokens else ""),
            "readable": f"{self.parsed:.1%} {READABLE[self.answer_format]}; {answers}",
            "contradictions": f"{self.contradictions:.1%} name one option by letter and another by text",
            "right": f"{self.accuracy:.1%} ({low:.1%} to {high:.1%}); always A: {self.always_a:.1%}, chance: 25.0%",
            "groups with no spread": f"{self.no_spread:.1%}: all samples earn the same, nothing is learned from them",
            "clipped": f"{self.clipped:.1%} reach no end of text",
        }

    def warnings(self) -> list[str]:
        """In plain words, what stands in the way of learning."""
        cases = [
            (self.parsed < 0.5, "most completions are no answer; pretrain on questions in this format first"),
            (
                self.clipped > 0.5,
                "most completions are cut off: raise max_completion_length, or teach the end of text",
            ),
            (self.correct == 0, "no sample is right, so no reward tells one from another: nothing can be learned"),
            (
                self.accuracy > 0.95,
                "nearly all samples are right: the questions are known by heart, little is learned",
            ),
            (self.no_spread > 0.8, "in most groups all samples earn the same, so most steps will move nothing"),
        ]
        return [f"WARNING: {text}" for holds, text in cases if holds]


class Sample(TypedDict):
    """One completion: its group, the option that it names and the right one, and its length in tokens."""

    answer_format: str
    group: tuple[int, int, int]
    option: int | None
    contradicts: bool
    answer: int
    length: int
    clipped: bool
    kept: int  # tokens that could have been drawn, summed over positions


def look_before(trainer: PureGRPOTrainer) -> None:
    """Sample before the first step, and print what there is to learn from."""
    summaries = preflight(trainer)
    for found in summaries if trainer.is_world_process_zero() else []:
        print_block(f"Before the first step, {found.answer_format}", found.facts())
        print(*found.warnings(), sep="\n")


def preflight(trainer: PureGRPOTrainer) -> list[Preflight]:
    """Sample the run's first prompts in each format, equally many; the run draws what it would have drawn.

    The processes share the prompts out. A group earns the same where all its samples are right or all are wrong; the
    length penalty is left out.
    """
    rank, world, number = trainer.args.process_index, trainer.args.world_size, trainer.args.num_generations
    prompts = first_prompts(trainer.train_dataset)
    shape = len(prompts), number, trainer.args.max_completion_length
    uniform = uniform_numbers(f"preflight {trainer.args.seed}", shape[0] * number, shape[2]).view(shape)[rank::world]
    rows = prompts[rank::world]
    devices = [trainer.args.device.index or 0] if trainer.args.device.type == "cuda" else []
    at_once = max(1, trainer.args.generation_batch_size // world // number)  # as in training
    samples: list[Sample] = []
    with torch.random.fork_rng(devices):
        for start in range(0, len(rows), at_once):
            batch = slice(start, start + at_once)
            samples += sample_groups(trainer, rows[batch], (rank, start), uniform[batch].flatten(0, 1))
    return summarise(gather_object(samples))


def first_prompts(prompts: Dataset) -> list[dict[str, Any]]:
    """`PROMPTS` prompts, as many of each format as of any other."""
    formats = prompts["answer_format"]
    share = PROMPTS // len({*formats})
    first = [[i for i, name in enumerate(formats) if name == one][:share] for one in sorted({*formats})]
    return [prompts[i] for places in first for i in places]


def sample_groups(
    trainer: PureGRPOTrainer, rows: list[dict[str, Any]], name: tuple[int, int], uniform: torch.Tensor
) -> list[Sample]:
    """What is to be known of each completion to some prompts; `name` tells their groups from all others."""
    prompt_ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows])
    rollout = trainer.sample([ids for ids in prompt_ids for _ in range(trainer.args.num_generations)], uniform)
    texts = trainer._tokenizer.batch_decode(rollout.completion_ids, skip_special_tokens=True)
    of_group = [i // trainer.args.num_generations for i in range(len(texts))]
    asked = [rows[group] for group in of_group]
    chat = not isinstance(rows[0]["prompt"], str)
    answers = AnswerReward(trainer._tokenizer, trainer.eos_token_ids).answers(
        [[{"role": "assistant", "content": text}] if chat else text for text in texts],
        rollout.completion_ids,
        [row["options"] for row in asked],
        [row["answer_format"] for row in asked],
    )
    return [
        {
            "answer_format": row["answer_format"],
            "group": (*name, group),
            "option": found.option,
            "contradicts": found.contradicts,
            "answer": row["answer"],
            "length": len(ids),
            "clipped": ids[-1] not in trainer.eos_token_ids,
            "kept": sum(kept),
        }
        for found, row, group, ids, kept in zip(
            answers, asked, of_group, rollout.completion_ids, rollout.kept or [[]] * len(asked), strict=True
        )
    ]


def summarise(samples: list[Sample]) -> list[Preflight]:
    """A summary of the samples of each format."""
    formats = {sample["answer_format"] for sample in samples}
    return [
        summarise_format(name, [sample for sample in samples if sample["answer_format"] == name])
        for name in ANSWER_FORMATS
        if name in formats
    ]


def summarise_format(answer_format: str, samples: list[Sample]) -> Preflight:
    """The summary of all samples of a format."""
    n = len(samples)
    groups: dict[tuple[int, int, int], list[bool]] = {}
    for sample in samples:
        groups.setdefault(sample["group"], []).append(sample["option"] == sample["answer"])
    answers = [sample["option"] for sample in samples if sample["option"] is not None]
    counts, tokens = Counter(answers), sum(sample["length"] for sample in samples)
    return Preflight(
        answer_format=answer_format,
        groups=len(groups),
        completions=n,
        parsed=len(answers) / n,
        contradictions=sum(sample["contradicts"] for sample in samples) / n,
        correct=sum(sum(right) for right in groups.values()),
        always_a=sum(sample["answer"] == 0 for sample in samples) / n,
        letters={letter: counts[i] for i, letter in enumerate(LETTERS)},
        no_spread=sum(len(set(right)) == 1 for right in groups.values()) / len(groups),
        clipped=sum(sample["clipped"] for sample in samples) / n,
        mean_length=tokens / n,
        kept_tokens=sum(sample["kept"] for sample in samples) / tokens,
    )

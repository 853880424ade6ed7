"""The three ways of asking a model. Each takes questions and gives a record of each, batch by batch.

    letter     log-likelihoods of the labels after the prompt, as lm-evaluation-harness scores: the default
    cloze      log-likelihoods of the options' texts after the question, which does not show them
    generate   what the model writes after the prompt, greedily or sampled several times, as GRPO sees it

Records are plain JSON, so that they can be written down as they come. None depends on the batch it came in but for
rounding in the last bits of fp32; sampled completions are drawn question by question for that reason.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from .formats import format_stem, parse_answer
from .questions import Question
from .rewards import REWARD_WEIGHTS, Correct, LengthPenalty
from .scoring import context_length, continuation_log_likelihoods, label_log_likelihoods, sorted_batches
from .tasks import Task

Record = dict[str, Any]  # the result of one question, as plain JSON; each scorer documents its keys
Records = Iterator[tuple[int, Record]]  # with the question's index
PREMISE = "Answer:"


class NotFinite(Exception):
    """The model's numbers for question `index` are none: an argmax over them would be an answer."""

    def __init__(self, index: int) -> None:
        super().__init__(f"question {index}")
        self.index = index


@dataclass(frozen=True)
class Asked:
    """A model, and how it is asked.

    Args:
        batch_size: rows in a forward pass; of sampled completions always those of one question.
        num_samples: completions of each prompt for `generate`; 0 takes the likeliest token at each step.
        temperature, top_p: of sampled completions.
        max_new_tokens: of a completion.
        length_penalty_min_tokens: of the reward, as GRPO has it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    batch_size: int = 16
    num_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 32
    length_penalty_min_tokens: int = 4
    seed: int = 0

    def encode(self, texts: list[str], room: int = 0) -> tuple[list[list[int]], list[bool]]:
        """Token ids, cut from the left to the model's context less `room`, and which were cut."""
        limit = context_length(self.model.config, self.tokenizer) - room
        ids = self.tokenizer(texts).input_ids if texts else []
        return [row[-limit:] for row in ids], [len(row) > limit for row in ids]


def score_letters(asked: Asked, questions: list[Question]) -> Records:
    """`log_likelihoods`: of each label after the prompt, in nats.

    A forward pass a question where each label is one token; where one is not, a pass for each label.
    """
    labels, texts = asked.task.labels, [asked.task.prompt(question) for question in questions]
    prompts, cut = asked.encode(texts)
    single = all(len(asked.tokenizer(f" {label}", add_special_tokens=False).input_ids) == 1 for label in labels)
    for batch in sorted_batches(list(map(len, prompts)), asked.batch_size):
        if single:
            scores = label_log_likelihoods(asked.model, asked.tokenizer, [prompts[i] for i in batch], labels).tolist()
        else:
            contexts = [texts[i] for i in batch for _ in labels]
            of_label = continuation_log_likelihoods(
                asked.model, asked.tokenizer, contexts, [f" {label}" for label in labels] * len(batch)
            ).sums
            scores = [of_label[start : start + len(labels)] for start in range(0, len(of_label), len(labels))]
        require_finite(batch, scores)
        for i, row in zip(batch, scores, strict=True):
            yield i, {"log_likelihoods": row, "cut": cut[i]}


def score_cloze(asked: Asked, questions: list[Question]) -> Records:
    """`log_likelihoods`: of each option's text after the question, in nats; `characters` of each; `unconditional`.

    The last is that after "Answer:" alone. What it leaves of the first is how much the question makes an option
    likelier (domain-conditional PMI: Holtzman et al. 2021, "Surface Form Competition").
    """
    stems, _ = asked.encode([format_stem(question) for question in questions])
    for batch in sorted_batches(list(map(len, stems)), max(1, asked.batch_size // len(asked.task.labels))):
        options = [option for i in batch for option in questions[i].options]
        stem_of_option = [format_stem(questions[i]) for i in batch for _ in questions[i].options]
        texts = [f" {option}" for option in options]
        given = continuation_log_likelihoods(asked.model, asked.tokenizer, stem_of_option, texts)
        alone = continuation_log_likelihoods(asked.model, asked.tokenizer, [PREMISE] * len(options), texts)
        owners = [i for i in batch for _ in questions[i].options]
        require_finite(owners, list(zip(given.sums, alone.sums, strict=True)))
        start = 0
        for i in batch:
            of_question = slice(start, start := start + len(questions[i].options))
            yield (
                i,
                {
                    "log_likelihoods": given.sums[of_question],
                    "unconditional": alone.sums[of_question],
                    "characters": [len(option) for option in questions[i].options],
                    "cut": any(given.cut[of_question]),
                },
            )


def require_finite(owners: list[int], rows: Sequence[Sequence[float]]) -> None:
    """Raise `NotFinite` for the first row that holds a number which is none."""
    for owner, row in zip(owners, rows, strict=True):
        if not all(map(math.isfinite, row)):
            raise NotFinite(owner)


@torch.inference_mode()
def score_generations(asked: Asked, questions: list[Question]) -> Records:
    """Of each completion `answers` (index of the option, null where none can be read), `lengths` and `rewards`.

    Lengths are tokens without the end-of-text token; rewards are GRPO's, weighted and summed; `completions` the texts.
    """
    prompts, cut = asked.encode([asked.task.prompt(question) for question in questions], asked.max_new_tokens)
    batches = sorted_batches(list(map(len, prompts)), 1 if asked.num_samples else asked.batch_size)
    eos = asked.tokenizer.eos_token_id
    right = Correct(asked.tokenizer, [eos])
    penalty = LengthPenalty(asked.length_penalty_min_tokens, asked.tokenizer, [eos])
    for batch in batches:
        torch.manual_seed(asked.seed + int(questions[batch[0]].digest[:12], 16))
        try:
            of_batch = generate(asked, [prompts[i] for i in batch])
        except NotFinite as error:
            raise NotFinite(batch[error.index // max(1, asked.num_samples)]) from error
        for i, completions in zip(batch, of_batch, strict=True):
            texts = asked.tokenizer.batch_decode(completions, skip_special_tokens=True)
            n = len(texts)
            options, formats = [questions[i].options] * n, ["letter"] * n
            parts = (
                right(texts, completions, [questions[i].answer] * n, options, formats),
                penalty(texts, completions, options, formats),
            )
            yield (
                i,
                {
                    "answers": [parse_answer(text, questions[i].options).option for text in texts],
                    "lengths": [sum(token != eos for token in ids) for ids in completions],
                    "rewards": [
                        sum(w * part for w, part in zip(REWARD_WEIGHTS, of_one, strict=True))
                        for of_one in zip(*parts, strict=True)
                    ],
                    "completions": texts,
                    "cut": cut[i],
                },
            )


def generate(asked: Asked, prompts: list[list[int]]) -> list[list[list[int]]]:
    """Completions of each prompt: token ids up to and including the end-of-text token."""
    eos = asked.tokenizer.eos_token_id
    longest, number = max(map(len, prompts)), max(1, asked.num_samples)
    input_ids = torch.tensor([[eos] * (longest - len(row)) + row for row in prompts])
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    sampling: dict[str, Any] = {"do_sample": False}
    if asked.num_samples:
        sampling = {"do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0}
    model: Any = asked.model  # PreTrainedModel declares no `generate`
    output = model.generate(
        input_ids=input_ids.to(asked.model.device),
        attention_mask=attention_mask.to(asked.model.device),
        logits_processor=[RefuseNaN()],
        generation_config=GenerationConfig(
            max_new_tokens=asked.max_new_tokens,
            num_return_sequences=number,
            eos_token_id=eos,
            pad_token_id=eos,
            # What is not said here the model's own generation_config would say.
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **sampling,
        ),
    )
    completions = [upto(row, eos) for row in output[:, longest:].tolist()]
    return [completions[start : start + number] for start in range(0, len(completions), number)]


class RefuseNaN(LogitsProcessor):
    """Raises `NotFinite` with the number of the row whose logits are no numbers (-inf only forbids a token)."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores as they are."""
        bad = scores.isnan().any(-1)
        if bad.any():
            raise NotFinite(int(bad.nonzero()[0]))
        return scores


def upto(ids: list[int], eos_token_id: int) -> list[int]:
    """Token ids up to and including the first end of text."""
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids


SCORERS = {"letter": score_letters, "cloze": score_cloze, "generate": score_generations}

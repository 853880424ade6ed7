"""The scorers: each takes questions and gives their batches, with the function that makes the records of one.

    letter     log-likelihoods of the labels after the prompt, as lm-evaluation-harness scores
    text       log-likelihoods of the options' texts after the same prompt
    cloze      log-likelihoods of the options' texts after the question, which does not show them
    generate   what the model writes after the prompt, greedily or sampled several times, as in GRPO

Records are plain JSON, so that the journal can hold them. None depends on the batch it came in but for rounding in the
last bits of fp32; sampled completions are drawn question by question for that reason.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ..tokenizer import prompt_ids, text_ids
from .formats import chat_prompt, end_tokens, format_prompt, format_stem, from_chat, text_continuation
from .formulations import BY_LETTER, Formulation
from .log_likelihood import context_length, continuation_log_likelihoods, label_log_likelihoods, sorted_batches
from .questions import Question
from .rewards import REWARD_WEIGHTS, Correct, LengthPenalty
from .tasks import Task

PREMISE = "Answer:"

Record = dict[str, Any]  # the result of one question, as plain JSON; each scorer documents its keys
Item = tuple[int, Record]  # with the question's index


class NotFinite(Exception):
    """Logits or log-likelihoods of question `index` are not finite: an argmax over them would look like an answer."""

    def __init__(self, index: int) -> None:
        super().__init__(f"question {index}")
        self.index = index


@dataclass(frozen=True)
class Batches:
    """Questions in batches by their indices, and the function that scores one batch.

    Rounding depends on the other rows of a forward pass, so a batch is never split: not between the processes that
    share the batches, and not when an unfinished evaluation resumes.
    """

    indices: list[list[int]]
    score: Callable[[list[int]], list[Record]]

    def __iter__(self) -> Iterator[Item]:
        return self.records(self.indices)

    def records(self, indices: list[list[int]]) -> Iterator[Item]:
        """Records of some batches, in their order, or `NotFinite`, on every process; each scores one batch a round."""
        rank, world = PartialState().process_index, PartialState().num_processes
        for start in range(0, len(indices), world):
            of_round = indices[start : start + world]
            found: list[list[Record] | int] = gather_object([self._try(batch) for batch in of_round[rank : rank + 1]])
            for batch, records in zip(of_round, found, strict=True):
                if isinstance(records, int):
                    raise NotFinite(records)
                yield from zip(batch, records, strict=True)

    def _try(self, batch: list[int]) -> list[Record] | int:
        try:
            return self.score(batch)
        except NotFinite as error:
            return error.index


@dataclass(frozen=True)
class Sampling:
    """How `generate` writes and rewards completions.

    Args:
        num_samples: completions of each prompt; 0 is one greedy completion.
        temperature, top_p: of sampled completions.
        max_new_tokens: of a completion.
        length_penalty_min_tokens: of the GRPO reward.
    """

    num_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 32
    length_penalty_min_tokens: int = 4
    seed: int = 0


@dataclass(frozen=True)
class ScorerSettings:
    """A model and how it is prompted.

    Args:
        batch_size: prompts in a forward pass; sampled completions are always those of one question.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    batch_size: int = 16
    formulation: Formulation = BY_LETTER
    sampling: Sampling = Sampling()

    def prompt(self, question: Question) -> str:
        """What the model reads before it answers."""
        if self.formulation.answer_format is None:
            return format_stem(question)
        text = format_prompt(question, self.formulation.answer_format, self.task.prompt)
        return chat_prompt(self.tokenizer, text) if self.formulation.chat else text

    def encode(self, texts: list[str], room: int = 0) -> tuple[list[list[int]], list[bool]]:
        """Token ids, cut from the left to the model's context less `room`, and which were cut."""
        limit = context_length(self.model.config, self.tokenizer) - room
        ids = prompt_ids(self.tokenizer, texts, templated=self.formulation.chat)
        return [row[-limit:] for row in ids], [len(row) > limit for row in ids]

    def longest_prompt(self, question: Question) -> int:
        """The number of tokens that a question's prompt may have without being cut."""
        context = context_length(self.model.config, self.tokenizer)
        if self.formulation.scorer == "generate":
            return context - self.sampling.max_new_tokens
        ids = text_ids(self.tokenizer, self.continuations(question))
        return context + 1 - max(map(len, ids))  # the last token is predicted, not read

    def continuations(self, question: Question) -> list[str]:
        """The text of each option that is scored after the prompt."""
        if self.formulation.scorer == "letter":
            return [f" {label}" for label in self.task.labels]
        if self.formulation.scorer == "text":
            return [text_continuation(option) for option in question.options]
        return [f" {option}" for option in question.options]


def score_letters(settings: ScorerSettings, questions: list[Question]) -> Batches:
    """`log_likelihoods`: of each label after the prompt, in nats."""
    prompts = [settings.prompt(question) for question in questions]
    ids, cut = settings.encode(prompts)

    def score(batch: list[int]) -> list[Record]:
        of_batch = [prompts[i] for i in batch]
        scores = label_log_likelihoods(settings.model, settings.tokenizer, of_batch, settings.task.labels).tolist()
        require_finite(batch, scores)
        return [{"log_likelihoods": row, "cut": cut[i]} for i, row in zip(batch, scores, strict=True)]

    return Batches(sorted_batches(list(map(len, ids)), settings.batch_size), score)


def score_texts(settings: ScorerSettings, questions: list[Question]) -> Batches:
    """`log_likelihoods`: of each option's text after the prompt, in nats, and its `tokens`.

    `characters` are those of the option. `unconditional` is the log-likelihood after "Answer:" alone: the difference
    is how much the question makes an option likelier (domain-conditional PMI: Holtzman et al. 2021, "Surface Form
    Competition").
    """
    prompts = [settings.prompt(question) for question in questions]
    model, tokenizer = settings.model, settings.tokenizer

    def score(batch: list[int]) -> list[Record]:
        owners = [i for i in batch for _ in questions[i].options]
        texts = [text for i in batch for text in settings.continuations(questions[i])]
        given = continuation_log_likelihoods(model, tokenizer, [prompts[i] for i in owners], texts)
        different = [*dict.fromkeys(texts)]  # other orders of a question repeat its texts
        alone = continuation_log_likelihoods(model, tokenizer, [PREMISE] * len(different), different)
        by_text = dict(zip(different, alone.sums, strict=True))
        require_finite(owners, [(total, by_text[text]) for total, text in zip(given.sums, texts, strict=True)])
        records: list[Record] = []
        start = 0
        for i in batch:
            of_question = slice(start, start := start + len(questions[i].options))
            record: Record = {
                "log_likelihoods": given.sums[of_question],
                "unconditional": [by_text[text] for text in texts[of_question]],
                "tokens": given.lengths[of_question],
                "characters": [len(option) for option in questions[i].options],
                "cut": any(given.cut[of_question]),
            }
            records.append(record)
        return records

    lengths = list(map(len, settings.encode(prompts)[0]))
    return Batches(sorted_batches(lengths, max(1, settings.batch_size // len(settings.task.labels))), score)


def require_finite(owners: list[int], rows: Sequence[Sequence[float]]) -> None:
    """Raise `NotFinite` for the first question with a number that is not finite."""
    for owner, row in zip(owners, rows, strict=True):
        if not all(map(math.isfinite, row)):
            raise NotFinite(owner)


def score_generations(settings: ScorerSettings, questions: list[Question]) -> Batches:
    """A list over the completions of a question for each key but `cut`: see `Grader`."""
    sampling = settings.sampling
    prompts, cut = settings.encode([settings.prompt(question) for question in questions], sampling.max_new_tokens)
    grader = Grader(settings)

    @torch.inference_mode()
    def score(batch: list[int]) -> list[Record]:
        torch.manual_seed(sampling.seed + int(questions[batch[0]].digest[:12], 16))
        try:
            of_batch = generate(settings, [prompts[i] for i in batch], grader.ends)
        except NotFinite as error:
            raise NotFinite(batch[error.index // max(1, sampling.num_samples)]) from error
        return [
            {**grader.record(questions[i], completions), "cut": cut[i]}
            for i, completions in zip(batch, of_batch, strict=True)
        ]

    return Batches(sorted_batches(list(map(len, prompts)), 1 if sampling.num_samples else settings.batch_size), score)


class Grader:
    """Parses and rewards the completions of a question, as GRPO does."""

    def __init__(self, settings: ScorerSettings) -> None:
        self.settings, tokenizer = settings, settings.tokenizer
        self.ends = end_tokens(settings.model, tokenizer)
        self.correct = Correct(tokenizer, self.ends)
        self.penalty = LengthPenalty(settings.sampling.length_penalty_min_tokens, tokenizer, self.ends)

    def record(self, question: Question, completions: list[list[int]]) -> Record:
        """The record of completions, which are token ids up to and including the end.

        Returns:
            `answers` (index of the option, null if unparsed), `contradicts` (letter and text name different options),
            `finished` (by an end token), `lengths` in tokens without the end, `rewards` (GRPO's, weighted and summed),
            the texts as `completions`; in the format `reasoned` also `reasoning_lengths` in tokens.
        """
        formulation, n = self.settings.formulation, len(completions)
        finished = [bool(ids) and ids[-1] in self.ends for ids in completions]
        written = [ids[:-1] if ended else ids for ids, ended in zip(completions, finished, strict=True)]
        texts = [str(self.settings.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
        shown = [from_chat(text) if formulation.chat else text for text in texts]
        options, formats = [question.options] * n, [str(formulation.answer_format)] * n
        answers = self.correct.answers(shown, completions, options, formats)
        right = self.correct(shown, completions, [question.answer] * n, options, formats)
        short = self.penalty(shown, completions, options, formats)
        record: Record = {
            "answers": [answer.option for answer in answers],
            "contradicts": [answer.contradicts for answer in answers],
            "finished": finished,
            "lengths": [self.correct.tokens(ids) for ids in completions],
            "rewards": [
                REWARD_WEIGHTS[0] * first + REWARD_WEIGHTS[1] * second
                for first, second in zip(right, short, strict=True)
            ],
            "completions": texts,
        }
        if formulation.answer_format == "reasoned":
            pairs = zip(answers, completions, strict=True)
            record["reasoning_lengths"] = [self.penalty.reasoning_tokens(answer, ids) for answer, ids in pairs]
        return record


def generate(settings: ScorerSettings, prompts: list[list[int]], ends: list[int]) -> list[list[list[int]]]:
    """Completions of each prompt: token ids up to and including the first of `ends`."""
    sampling, pad = settings.sampling, ends[0] if ends else 0
    longest, number = max(map(len, prompts)), max(1, sampling.num_samples)
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts])
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    drawing: dict[str, Any] = {"do_sample": False}
    if sampling.num_samples:
        drawing = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    model: Any = settings.model  # PreTrainedModel declares no `generate`
    output = model.generate(
        input_ids=input_ids.to(settings.model.device),
        attention_mask=attention_mask.to(settings.model.device),
        logits_processor=[RefuseNaN()],
        generation_config=GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            num_return_sequences=number,
            eos_token_id=ends or None,
            pad_token_id=pad,
            # What is not set here would be taken from the model's own generation_config.
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **drawing,
        ),
    )
    completions = []
    for ids in output[:, longest:].tolist():
        end = next((place for place, token in enumerate(ids) if token in ends), len(ids))
        completions.append(ids[: end + 1])
    return [completions[start : start + number] for start in range(0, len(completions), number)]


class RefuseNaN(LogitsProcessor):
    """Raises `NotFinite` with the number of the row whose logits are nan (-inf only forbids a token)."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores unchanged."""
        bad = scores.isnan().any(-1)
        if bad.any():
            raise NotFinite(int(bad.nonzero()[0]))
        return scores


SCORERS = {"letter": score_letters, "text": score_texts, "cloze": score_texts, "generate": score_generations}

"""Scorers: each turns questions into batches, with the function that scores a batch.

    letter     log-likelihoods of the labels after the prompt, as lm-evaluation-harness scores
    text       log-likelihoods of the options' texts after the same prompt
    cloze      log-likelihoods of the options' texts after the question, which does not show them
    generate   completions of the prompt, greedy or several samples, as in GRPO

Records are plain JSON, which the journal stores. Apart from rounding in the last bits of fp32 they do not depend on
the batch; sampled completions are therefore drawn question by question.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
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
    """Logits or log-likelihoods of question `index` are not finite, so their argmax is not an answer."""

    def __init__(self, index: int) -> None:
        super().__init__(f"question {index}")
        self.index = index


@dataclass(frozen=True)
class Batches:
    """Batches of question indices, and the function that scores a batch.

    Rounding depends on the other rows of a forward pass, so batches are never split: neither between processes nor
    when an unfinished evaluation resumes.
    """

    indices: list[list[int]]
    score: Callable[[list[int]], list[Record]]

    def __iter__(self) -> Iterator[Item]:
        return self.records(self.indices)

    def records(self, indices: list[list[int]]) -> Iterator[Item]:
        """Yield the records of some batches, in their order, on every process; each scores one batch a round.

        Raises:
            NotFinite: on every process, if one of them cannot score its batch.
        """
        rank, world = PartialState().process_index, PartialState().num_processes
        for start in range(0, len(indices), world):
            batches = indices[start : start + world]
            results: list[list[Record] | int] = gather_object([self._try(batch) for batch in batches[rank : rank + 1]])
            for batch, records in zip(batches, results, strict=True):
                if isinstance(records, int):
                    raise NotFinite(records)
                yield from zip(batch, records, strict=True)

    def _try(self, batch: list[int]) -> list[Record] | int:
        try:
            records = self.score(batch)
        except NotFinite as error:
            return error.index
        for index, record in zip(batch, records, strict=True):
            if not all(map(isfinite, (*record.get("log_likelihoods", ()), *record.get("unconditional", ())))):
                return index
        return records


@dataclass(frozen=True)
class Sampling:
    """How `generate` samples and rewards completions: the options of `EvalArguments` with these names."""

    num_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 32
    length_penalty_min_tokens: int = 4
    seed: int = 0


@dataclass(frozen=True)
class ScorerSettings:
    """A model and how it is prompted; `batch_size` is in prompts, but sampling takes one question at a time."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    batch_size: int = 16
    formulation: Formulation = BY_LETTER
    sampling: Sampling = Sampling()

    def prompt(self, question: Question) -> str:
        """The prompt of a question in the formulation."""
        if self.formulation.answer_format is None:
            return format_stem(question)
        text = format_prompt(question, self.formulation.answer_format, self.task.prompt)
        return chat_prompt(self.tokenizer, text) if self.formulation.chat else text

    def encode(self, texts: list[str], room: int = 0) -> tuple[list[list[int]], list[bool]]:
        """Token ids, truncated on the left to the model's context less `room`, and whether each was truncated."""
        limit = context_length(self.model.config, self.tokenizer) - room
        ids = prompt_ids(self.tokenizer, texts, templated=self.formulation.chat)
        return [row[-limit:] for row in ids], [len(row) > limit for row in ids]

    def longest_prompt(self, question: Question) -> int:
        """The number of tokens that a question's prompt may have without being truncated."""
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
    """Records with the `log_likelihoods` of the labels after the prompt, in nats."""
    prompts = [settings.prompt(question) for question in questions]
    ids, cut = settings.encode(prompts)

    def score(batch: list[int]) -> list[Record]:
        texts = [prompts[i] for i in batch]
        scores = label_log_likelihoods(settings.model, settings.tokenizer, texts, settings.task.labels).tolist()
        return [{"log_likelihoods": row, "cut": cut[i]} for i, row in zip(batch, scores, strict=True)]

    return Batches(sorted_batches(list(map(len, ids)), settings.batch_size), score)


def score_texts(settings: ScorerSettings, questions: list[Question]) -> Batches:
    """Records with the `log_likelihoods` of the options' texts after the prompt, in nats.

    They also hold the lengths of the options in `tokens` and `characters`, and their `unconditional` log-likelihoods,
    after "Answer:" alone. The difference of the two log-likelihoods is how much the question makes an option likelier
    (domain-conditional PMI: Holtzman et al. 2021, "Surface Form Competition").
    """
    prompts = [settings.prompt(question) for question in questions]
    model, tokenizer = settings.model, settings.tokenizer

    def score(batch: list[int]) -> list[Record]:
        texts = [settings.continuations(questions[i]) for i in batch]
        scored = continuation_log_likelihoods(model, tokenizer, [prompts[i] for i in batch], texts)
        unique = [*dict.fromkeys(text for own in texts for text in own)]  # other orders of a question repeat its texts
        (alone,) = continuation_log_likelihoods(model, tokenizer, [PREMISE], [unique])
        unconditional = dict(zip(unique, alone.sums, strict=True))
        return [
            {
                "log_likelihoods": one.sums,
                "unconditional": [unconditional[text] for text in own],
                "tokens": one.lengths,
                "characters": [len(option) for option in questions[i].options],
                "cut": one.cut,
            }
            for i, own, one in zip(batch, texts, scored, strict=True)
        ]

    lengths = list(map(len, settings.encode(prompts)[0]))
    return Batches(sorted_batches(lengths, max(1, settings.batch_size // len(settings.task.labels))), score)


def score_generations(settings: ScorerSettings, questions: list[Question]) -> Batches:
    """Records of completions, which are parsed and rewarded as in GRPO; each key but `cut` holds a list over them.

    `answers` are indices of options (null if not parsed), `contradicts` whether letter and text name different
    options, `finished` whether an end token was generated, `lengths` in tokens without the end, `rewards` GRPO's
    weighted sums, `completions` the texts. The format `reasoned` adds `reasoning_lengths` in tokens.
    """
    sampling, tokenizer, formulation = settings.sampling, settings.tokenizer, settings.formulation
    prompts, cut = settings.encode([settings.prompt(question) for question in questions], sampling.max_new_tokens)
    ends = end_tokens(settings.model, tokenizer)
    correct, penalty = Correct(tokenizer, ends), LengthPenalty(sampling.length_penalty_min_tokens, tokenizer, ends)

    def grade(question: Question, completions: list[list[int]]) -> Record:
        n = len(completions)
        finished = [bool(ids) and ids[-1] in ends for ids in completions]
        written = [ids[:-1] if ended else ids for ids, ended in zip(completions, finished, strict=True)]
        texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
        shown = [from_chat(text) if formulation.chat else text for text in texts]
        options, formats = [question.options] * n, [str(formulation.answer_format)] * n
        answers = correct.answers(shown, completions, options, formats)
        rewards = zip(
            correct(shown, completions, [question.answer] * n, options, formats),
            penalty(shown, completions, options, formats),
            strict=True,
        )
        record: Record = {
            "answers": [answer.option for answer in answers],
            "contradicts": [answer.contradicts for answer in answers],
            "finished": finished,
            "lengths": [correct.tokens(ids) for ids in completions],
            "rewards": [REWARD_WEIGHTS[0] * right + REWARD_WEIGHTS[1] * short for right, short in rewards],
            "completions": texts,
        }
        if formulation.answer_format == "reasoned":
            record["reasoning_lengths"] = list(map(penalty.reasoning_tokens, answers, completions))
        return record

    @torch.inference_mode()
    def score(batch: list[int]) -> list[Record]:
        torch.manual_seed(sampling.seed + int(questions[batch[0]].digest[:12], 16))
        try:
            completions = generate(settings, [prompts[i] for i in batch], ends)
        except NotFinite as error:
            raise NotFinite(batch[error.index // max(1, sampling.num_samples)]) from error
        return [{**grade(questions[i], own), "cut": cut[i]} for i, own in zip(batch, completions, strict=True)]

    return Batches(sorted_batches(list(map(len, prompts)), 1 if sampling.num_samples else settings.batch_size), score)


def generate(settings: ScorerSettings, prompts: list[list[int]], ends: list[int]) -> list[list[list[int]]]:
    """Completions of each prompt: token ids up to and including the first of `ends`."""
    sampling, pad = settings.sampling, ends[0] if ends else 0
    longest, number = max(map(len, prompts)), max(1, sampling.num_samples)
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts])
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    options: dict[str, Any] = {"do_sample": False}
    if sampling.num_samples:
        options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
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
            # The model's own generation_config would supply what is not set here.
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **options,
        ),
    )
    completions = []
    for ids in output[:, longest:].tolist():
        end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        completions.append(ids[: end + 1])
    return [completions[start : start + number] for start in range(0, len(completions), number)]


class RefuseNaN(LogitsProcessor):
    """Raises `NotFinite` with the index of a row whose logits are nan (-inf only forbids a token)."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores unchanged."""
        if (is_nan := scores.isnan().any(-1)).any():
            raise NotFinite(int(is_nan.nonzero()[0]))
        return scores


SCORERS = {"letter": score_letters, "text": score_texts, "cloze": score_texts, "generate": score_generations}

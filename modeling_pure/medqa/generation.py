"""What a model writes after a prompt: completions, their answers, and GRPO's reward for them."""

from collections.abc import Collection
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor

from .asked import Asked, Batches, NotFinite, Record
from .formats import end_tokens, from_chat
from .log_likelihood import sorted_batches
from .questions import Question
from .rewards import REWARD_WEIGHTS, Correct, LengthPenalty


def score_generations(asked: Asked, questions: list[Question]) -> Batches:
    """A record of each question, with a list over its completions for each key but `cut`: see `Judge`."""
    sampling = asked.sampling
    prompts, cut = asked.encode([asked.prompt(question) for question in questions], sampling.max_new_tokens)
    judge = Judge(asked)

    @torch.inference_mode()
    def ask(batch: list[int]) -> list[Record]:
        torch.manual_seed(sampling.seed + int(questions[batch[0]].digest[:12], 16))
        try:
            of_batch = generate(asked, [prompts[i] for i in batch], judge.ends)
        except NotFinite as error:
            raise NotFinite(batch[error.index // max(1, sampling.num_samples)]) from error
        return [
            {**judge.record(questions[i], completions), "cut": cut[i]}
            for i, completions in zip(batch, of_batch, strict=True)
        ]

    return Batches(sorted_batches(list(map(len, prompts)), 1 if sampling.num_samples else asked.batch_size), ask)


class Judge:
    """Reads and rewards the completions of a question, as GRPO does."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.ends = end_tokens(asked.model, asked.tokenizer)
        self.correct = Correct(asked.tokenizer, self.ends)
        self.penalty = LengthPenalty(asked.sampling.length_penalty_min_tokens, asked.tokenizer, self.ends)

    def record(self, question: Question, completions: list[list[int]]) -> Record:
        """What the completions, as token ids up to and including the end, say.

        Returns:
            `answers` (index of the option, null if unparsed), `contradicts` (letter and text name different options),
            `finished` (ended by themselves), `lengths` in tokens without the end, `rewards` (GRPO's, weighted and
            summed), the texts as `completions`; in the format `reasoned` also `reasoning_lengths` in tokens.
        """
        formulation, n = self.asked.formulation, len(completions)
        written = [ids[:-1] if ids and ids[-1] in self.ends else ids for ids in completions]
        texts = [str(self.asked.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
        shown = [from_chat(text) if formulation.chat else text for text in texts]
        options, formats = [question.options] * n, [str(formulation.answer_format)] * n
        answers = self.correct.answers(shown, completions, options, formats)
        parts = (
            self.correct(shown, completions, [question.answer] * n, options, formats),
            self.penalty(shown, completions, options, formats),
        )
        record: Record = {
            "answers": [answer.option for answer in answers],
            "contradicts": [answer.contradicts for answer in answers],
            "finished": [bool(ids) and ids[-1] in self.ends for ids in completions],
            "lengths": [self.correct.tokens(ids) for ids in completions],
            "rewards": [
                sum(weight * part for weight, part in zip(REWARD_WEIGHTS, of_one, strict=True))
                for of_one in zip(*parts, strict=True)
            ],
            "completions": texts,
        }
        if formulation.answer_format == "reasoned":
            pairs = zip(answers, completions, strict=True)
            record["reasoning_lengths"] = [self.penalty.reasoning_tokens(answer, ids) for answer, ids in pairs]
        return record


def generate(asked: Asked, prompts: list[list[int]], ends: list[int]) -> list[list[list[int]]]:
    """Completions of each prompt: token ids up to and including the first of `ends`."""
    sampling, pad = asked.sampling, ends[0] if ends else 0
    longest, number = max(map(len, prompts)), max(1, sampling.num_samples)
    input_ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts])
    attention_mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    drawing: dict[str, Any] = {"do_sample": False}
    if sampling.num_samples:
        drawing = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    model: Any = asked.model  # PreTrainedModel declares no `generate`
    output = model.generate(
        input_ids=input_ids.to(asked.model.device),
        attention_mask=attention_mask.to(asked.model.device),
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
    completions = [upto(row, ends) for row in output[:, longest:].tolist()]
    return [completions[start : start + number] for start in range(0, len(completions), number)]


class RefuseNaN(LogitsProcessor):
    """Raises `NotFinite` with the number of the row whose logits are nan (-inf only forbids a token)."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores as they are."""
        bad = scores.isnan().any(-1)
        if bad.any():
            raise NotFinite(int(bad.nonzero()[0]))
        return scores


def upto(ids: list[int], ends: Collection[int]) -> list[int]:
    """Token ids up to and including the first that ends a completion."""
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]

"""The scorers. Each takes questions and gives their batches, with the function that makes records of one.

    letter     log-likelihoods of the labels after the prompt, as lm-evaluation-harness scores
    text       log-likelihoods of the options' texts after the same prompt
    cloze      log-likelihoods of the options' texts after the question, which does not show them
    generate   what the model writes after the prompt, greedily or sampled several times, as GRPO sees it

Records are plain JSON, so that they can be written down as they come. None depends on the batch it came in but for
rounding in the last bits of fp32; sampled completions are drawn question by question for that reason.
"""

import math
from collections.abc import Sequence

from .asked import Asked, Batches, NotFinite, Record
from .generation import score_generations
from .log_likelihood import continuation_log_likelihoods, label_log_likelihoods, sorted_batches
from .questions import Question

PREMISE = "Answer:"


def score_letters(asked: Asked, questions: list[Question]) -> Batches:
    """`log_likelihoods`: of each label after the prompt, in nats."""
    prompts = [asked.prompt(question) for question in questions]
    ids, cut = asked.encode(prompts)

    def ask(batch: list[int]) -> list[Record]:
        of_batch = [prompts[i] for i in batch]
        scores = label_log_likelihoods(asked.model, asked.tokenizer, of_batch, asked.task.labels).tolist()
        require_finite(batch, scores)
        return [{"log_likelihoods": row, "cut": cut[i]} for i, row in zip(batch, scores, strict=True)]

    return Batches(sorted_batches(list(map(len, ids)), asked.batch_size), ask)


def score_texts(asked: Asked, questions: list[Question]) -> Batches:
    """`log_likelihoods`: of each option's text after the prompt, in nats, and its `tokens`.

    `characters` are those of the option. `unconditional` is the log-likelihood after "Answer:" alone: what it leaves
    of the first is how much the question makes an option likelier (domain-conditional PMI: Holtzman et al. 2021,
    "Surface Form Competition").
    """
    prompts = [asked.prompt(question) for question in questions]

    def ask(batch: list[int]) -> list[Record]:
        owners = [i for i in batch for _ in questions[i].options]
        texts = [text for i in batch for text in asked.continuations(questions[i])]
        given = continuation_log_likelihoods(asked.model, asked.tokenizer, [prompts[i] for i in owners], texts)
        different = [*dict.fromkeys(texts)]  # other orders of a question repeat its texts
        alone = continuation_log_likelihoods(asked.model, asked.tokenizer, [PREMISE] * len(different), different)
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

    lengths = list(map(len, asked.encode(prompts)[0]))
    return Batches(sorted_batches(lengths, max(1, asked.batch_size // len(asked.task.labels))), ask)


def require_finite(owners: list[int], rows: Sequence[Sequence[float]]) -> None:
    """Raise `NotFinite` for the first row that holds a number which is not finite."""
    for owner, row in zip(owners, rows, strict=True):
        if not all(map(math.isfinite, row)):
            raise NotFinite(owner)


SCORERS = {"letter": score_letters, "text": score_texts, "cloze": score_texts, "generate": score_generations}

"""The questions of a GRPO run: its splits, with passages, as far as they fit into the context."""

from dataclasses import replace
from functools import partial

from accelerate import PartialState
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.formats import format_answer
from ..medqa.log_likelihood import context_length
from ..medqa.passages import Library, fit_passages
from ..medqa.questions import Question, read_questions, select_split
from ..tokenizer import prompt_ids, text_ids
from .arguments import GRPOScriptArguments
from .prompts import PromptSettings


def questions_to_ask(
    args: GRPOScriptArguments,
    max_completion_length: int,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    settings: PromptSettings,
) -> tuple[list[Question], list[Question]]:
    """The train and dev questions that fit into the context with a completion, with passages if requested."""
    room = context_length(config, tokenizer) - max_completion_length
    questions = read_questions("questions", args.questions, args.questions_config)
    splits = read_splits(args, questions)
    if args.passages:
        library = Library.read("passages", args.passages, questions)
        PartialState().print(f"passages: {library.describe()}")
        splits = open_books(library, args.num_passages, splits, tokenizer, room, settings)
    train, dev = splits
    fitting = questions_that_fit(train, tokenizer, room, settings)
    return (
        teachable(fitting, tokenizer, max_completion_length, settings),
        dev and questions_that_fit(dev, tokenizer, room, settings),
    )


def read_splits(args: GRPOScriptArguments, questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """The questions to train on, and the dev questions that select the best checkpoint."""
    splits = ["holdout"] if args.holdout_only else ["train", "holdout"]
    selected = select_split(questions, *splits, grpo_holdout=args.grpo_holdout)
    if not selected:
        raise InputError(f"grpo_holdout: {args.grpo_holdout} leaves no training questions")
    return selected, select_split(questions, "dev")[: args.medqa_dev_questions]


def open_books(
    library: Library,
    number: int,
    splits: tuple[list[Question], list[Question]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    settings: PromptSettings,
) -> tuple[list[Question], list[Question]]:
    """Train and dev questions with as many of their best passages as fit into `max_tokens` tokens."""

    def fit(question: Question) -> Question:
        for name in settings.shares:
            text = partial(settings.text, name, tokenizer)
            question = fit_passages(question, tokenizer, max_tokens, text, settings.chat)
        return question

    train, dev = ([fit(question) for question in library.retrieve(split, number)] for split in splits)
    return train, dev


def prompt_length(question: Question, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings) -> int:
    """Number of tokens of a question's longest prompt over all formats."""
    texts = [settings.text(name, tokenizer, question) for name in settings.shares]
    return max(map(len, prompt_ids(tokenizer, texts, templated=settings.chat)))


def questions_that_fit(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, max_tokens: int, settings: PromptSettings
) -> list[Question]:
    """The questions whose prompts have at most `max_tokens` tokens in every format; prints how many do not.

    Raises `InputError` if none remain.
    """
    fitting = [question for question in questions if prompt_length(question, tokenizer, settings) <= max_tokens]
    if not fitting:
        raise InputError(f"max_completion_length: leaves {max_tokens} tokens of context, too few for any prompt")
    if len(fitting) < len(questions):
        PartialState().print(f"left out {len(questions) - len(fitting)} questions of more than {max_tokens} tokens")
    return fitting


def teachable(
    questions: list[Question], tokenizer: PreTrainedTokenizerBase, max_tokens: int, settings: PromptSettings
) -> list[Question]:
    """The questions for cross entropy; prints how many explanations are dropped because they are too long.

    Args:
        max_tokens: limit of an answer with its end-of-text token.

    Raises:
        InputError: only reasoned answers are taught, and no question has a short enough explanation.
    """
    if not settings.with_answers or "reasoned" not in settings.shares:
        return questions
    texts = [format_answer(question, "reasoned") if question.explanation else "" for question in questions]
    too_long = [len(ids) >= max_tokens for ids in text_ids(tokenizer, texts)]
    if any(too_long):
        PartialState().print(f"dropped {sum(too_long)} explanations longer than max_completion_length {max_tokens}")
    kept = [replace(q, explanation="") if cut else q for q, cut in zip(questions, too_long, strict=True)]
    if {*settings.shares} != {"reasoned"}:
        return kept
    explained = [question for question in kept if question.explanation]
    if not explained:
        raise InputError(
            f"answer_formats: no question has an explanation of less than {max_tokens} tokens to teach; use text or "
            "letter, raise max_completion_length, or use --algorithm grpo"
        )
    if len(explained) < len(kept):
        PartialState().print(f"left out {len(kept) - len(explained)} questions without an explanation")
    return explained

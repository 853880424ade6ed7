"""Open the data of a training run: sequences to train on, sequences to validate on, questions to answer."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.questions import Question
from .arguments import DataArguments
from .mixture import Mixture
from .opening import open_outside_sources, open_sources, split_questions
from .pretokenized import PretokenizedMixture
from .states import TokenSequence, TrainingData
from .tokenizer import DocumentTokenizer
from .validation import outside_sequences, validation_mixture


def open_training_data(
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> tuple[TrainingData[Any], list[TokenSequence[Any]], list[Question]]:
    """Open the mixture or the pretokenized sequences of a recipe; `InputError` if any of it cannot be used.

    Args:
        batch_size: sequences of a rank's batch.
        rank, world_size: this process among all that train.
        num_workers: data-loader workers of each rank.

    Returns:
        The sequences of this rank; the validation sequences; the first `medqa_dev_questions` dev questions of the
        medqa sources.
    """
    data: TrainingData[Any]
    validation: list[TokenSequence[Any]]
    place = (seed, batch_size, rank, world_size)
    sizes = (DocumentTokenizer(tokenizer), arguments.max_seq_length, arguments.validation_sequences)
    exams = [source for source in arguments.mixture if source.format == "medqa"]
    if arguments.medqa_dev_questions and not exams:
        raise InputError("medqa_dev_questions: the mixture has no medqa source")
    if arguments.pretokenized_dir:
        data = PretokenizedMixture(arguments, tokenizer, *place)
        validation = data.validation_sequences()
        outside = open_outside_sources(arguments)
        asked = exams if arguments.medqa_dev_questions else []
        dev = [question for source in asked for question in split_questions(source, arguments.grpo_holdout)[1]]
    else:
        opened = open_sources(arguments.mixture, arguments, seed)
        data = Mixture(opened, tokenizer, arguments, *place)
        data.check_workers(num_workers)
        validation = validation_mixture(opened.sources, *sizes)
        outside = opened.outside
        dev = [question for one in opened.sources for question in one.dev]
    return data, validation + outside_sequences(outside, *sizes), dev[: arguments.medqa_dev_questions]

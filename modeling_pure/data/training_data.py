"""Open the data of a training run."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..medqa.questions import Question
from .arguments import DataArguments
from .mixture import Mixture
from .pretokenized import PretokenizedMixture
from .states import TokenSequence, TrainingData


def open_training_data(
    arguments: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    batch_size: int = 1,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> tuple[TrainingData[Any], list[TokenSequence[Any]], list[Question]]:
    """Open the mixture, or the pretokenized sequences, of a recipe.

    Args:
        batch_size, rank, world_size: as for `TrainingData`.
        num_workers: data-loader workers of each rank.

    Returns:
        The sequences of this rank, the validation sequences, and the first `medqa_dev_questions` dev questions.

    Raises:
        InputError: some of the data cannot be used.
    """
    kind: type[TrainingData[Any]] = PretokenizedMixture if arguments.pretokenized_dir else Mixture
    data = kind(arguments, tokenizer, seed, batch_size, rank, world_size)
    data.check_workers(num_workers)
    questions = data.dev_questions() if arguments.medqa_dev_questions else []
    if arguments.medqa_dev_questions and not questions:
        raise InputError("medqa_dev_questions: the mixture has no medqa source")
    return data, data.validation_sequences(), questions[: arguments.medqa_dev_questions]

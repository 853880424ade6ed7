"""Commands on the data of a pretraining recipe: inspect a mixture, pretokenize it, look for evaluation questions."""

import sys
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from transformers import PreTrainedTokenizerBase

from ..data.arguments import DataArguments
from ..recipe import RecipeParser
from ..tokenizer import load_document_tokenizer
from ..training.arguments import ModelArguments, PureTrainingArguments
from ..training.trainer_options import seed_of_data

Options = TypeVar("Options")


@dataclass
class RecipeData(Generic[Options]):
    """A command's own options, and a recipe's data arguments, parsed as in training."""

    options: Options
    arguments: DataArguments
    training: PureTrainingArguments

    @property
    def seed(self) -> int:
        """The seed of the data."""
        return seed_of_data(self.training)

    @property
    def sequences(self) -> int:
        """Number of training sequences in the recipe's run."""
        return self.training.max_steps * self.training.batch_plan(self.arguments.max_seq_length).sequences_per_step

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer."""
        return load_document_tokenizer(self.arguments.tokenizer_name_or_path)


def parse_recipe(options: type[Options], description: str | None) -> RecipeData[Options]:
    """Parse the command line: a recipe and the command's own options."""
    kinds: Any = (options, ModelArguments, DataArguments, PureTrainingArguments)
    own, _, arguments, training = RecipeParser(kinds, description=description or "").parse_recipe(sys.argv[1:])
    return RecipeData(own, arguments, training)

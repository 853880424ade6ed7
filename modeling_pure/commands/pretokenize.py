"""Write the sequences of a recipe's mixture to a folder, so that training reads them without tokenizing.

    pure pretokenize --config RECIPE --out DIR
    pure pretrain --config RECIPE --pretokenized_dir DIR

Writes the sequences that max_steps of the recipe takes, or --sequences, and the validation sequences. The same command
resumes. Training then needs neither the sources nor a network.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from ..atomic import write_atomically
from ..data.arguments import fixed_settings
from ..data.mixture import Mixture
from ..data.pretokenized import (
    FACTS_FILE,
    VALIDATION_FILE,
    check_settings,
    count_sequences,
    write_mixture,
    write_sequences,
)
from ..errors import InputError
from ..options import check_numbers, check_output_folder, check_texts, option
from . import parse_recipe


@dataclass
class PretokenizeArguments:
    """Options of this command, in addition to the recipe."""

    out: str | None = option(None, "folder for the sequences")
    sequences: int | None = option(None, "number of sequences to write; by default, as many as the recipe's run takes")

    def __post_init__(self) -> None:
        check_texts(self)
        check_numbers(self, sequences=1)
        if self.out is not None:
            check_output_folder("out", self.out)


def main() -> None:
    """Write the sequences that the folder does not contain yet."""
    recipe = parse_recipe(PretokenizeArguments, __doc__)
    if not recipe.options.out:
        raise InputError("out: missing; set it to a folder for the sequences")
    folder, count = Path(recipe.options.out), recipe.options.sequences or recipe.sequences
    tokenizer = recipe.tokenizer()
    settings = fixed_settings(recipe.arguments, tokenizer, recipe.seed)
    if (folder / FACTS_FILE).exists():
        check_settings(folder, settings)
    if (written := count_sequences(folder)) >= count:
        print(f"{folder}: already has {written:,} sequences")
        return
    mixture = Mixture(recipe.arguments, tokenizer, recipe.seed)
    validation = mixture.validation_sequences()
    for name, described in mixture.data.describe().items():
        print(f"{name}: {described}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FACTS_FILE, json.dumps({"settings": settings}, indent=2))
    write_sequences(folder / VALIDATION_FILE, validation, mixture.validation_names)
    state = write_mixture(folder, mixture, count)
    print(f"{folder}: {count:,} sequences of {mixture.sequence_length:,} tokens")
    for name, done in mixture.progress([state]).items():
        print(
            f"  {name}: {done['sequences']:,} sequences, {done['epochs']} epochs, {done['skipped']:,} records skipped"
        )

"""Validation sequences: the validation documents of the mixture in its proportions, and those of texts outside it."""

from itertools import islice
from typing import Any

from ..errors import InputError
from .arguments import integer_weights
from .opening import OpenSource
from .packing import pack_in_order
from .schedule import Schedule
from .states import TokenSequence
from .tokenizer import DocumentTokenizer


def validation_mixture(
    opened: list[OpenSource], tokenize: DocumentTokenizer, sequence_length: int, count: int
) -> list[TokenSequence[Any]]:
    """Up to `count` validation sequences in the proportions of the mixture, always the same; no document comes twice.

    They end with the first source that ends.
    """
    packed = {one.source.name: pack_in_order(one.validation_texts, tokenize, sequence_length) for one in opened}
    schedule = Schedule(integer_weights([one.source for one in opened]))
    sequences: list[TokenSequence[Any]] = []
    while len(sequences) < count and (ids := next(packed[name := schedule.next_source()], None)) is not None:
        schedule.draw(name)
        sequences.append({"input_ids": ids, "source": name})
    if not sequences:
        raise InputError(
            f"sources: the validation documents do not fill a sequence of {sequence_length} tokens for each source"
        )
    return sequences


def outside_sequences(
    opened: list[OpenSource], tokenize: DocumentTokenizer, sequence_length: int, count: int
) -> list[TokenSequence[Any]]:
    """Up to `count` validation sequences of each text outside the mixture."""
    sequences: list[TokenSequence[Any]] = []
    for one in opened:
        packed = islice(pack_in_order(one.validation_texts, tokenize, sequence_length), count)
        of_source: list[TokenSequence[Any]] = [{"input_ids": ids, "source": one.source.name} for ids in packed]
        if not of_source:
            raise InputError(f"{one.source.key}: {len(one.validation_texts)} documents do not fill a sequence")
        sequences += of_source
    return sequences

"""Validation sequences: of the mixture, in its proportions, and of the texts outside it."""

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
    """Up to `count` validation sequences in the proportions of the mixture; no document is repeated.

    The first source without another sequence ends them.
    """
    packed = {one.source.name: iter(pack_in_order(one.validation_texts, tokenize, sequence_length)) for one in opened}
    schedule = Schedule(integer_weights([one.source for one in opened]))
    sequences: list[TokenSequence[Any]] = []
    while len(sequences) < count and (ids := next(packed[name := schedule.next_source()], None)) is not None:
        schedule.draw(name)
        sequences.append({"input_ids": ids, "source": name})
    if not sequences:
        raise InputError(
            f"sources: the validation documents of a source do not fill a sequence of {sequence_length} tokens"
        )
    return sequences


def outside_sequences(
    opened: list[OpenSource], tokenize: DocumentTokenizer, sequence_length: int, count: int
) -> list[TokenSequence[Any]]:
    """Up to `count` validation sequences of each text outside the mixture."""
    sequences: list[TokenSequence[Any]] = []
    for one in opened:
        packed = pack_in_order(one.validation_texts, tokenize, sequence_length)[:count]
        if not len(packed):
            raise InputError(f"{one.source.key}: {len(one.validation_texts)} documents do not fill a sequence")
        sequences += [{"input_ids": ids, "source": one.source.name} for ids in packed]
    return sequences

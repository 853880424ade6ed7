"""Inspect a recipe's mixture before spending money on a run.

    pure inspect --config RECIPE [--sequences 400] [--picture mixture.png]

Reads the first sequences as a training run with one worker does, and shows actual proportions, speed, lengths of
documents, epochs of the whole run, skipped records, and a sequence of each source as text.
"""

import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..console import print_table
from ..data.mixture import Mixture
from ..data.states import MixtureState
from ..errors import InputError
from ..options import check_numbers, check_output_file, check_texts, option
from . import parse_recipe


@dataclass
class InspectArguments:
    """Options of this command, in addition to the recipe."""

    sequences: int = option(400, "number of sequences to read")
    sample_characters: int = option(400, "characters to show of one sequence of each source")
    picture: str = option("mixture.png", "file for the picture: .png, .svg or .pdf")

    def __post_init__(self) -> None:
        check_texts(self)
        check_numbers(self, sequences=1, sample_characters=0)
        check_output_file("picture", self.picture)
        if (ending := Path(self.picture).suffix) not in (".png", ".svg", ".pdf"):
            raise InputError(f"picture: expected a file that ends in .png, .svg or .pdf, found '{ending}'")


@dataclass
class Sample:
    """The first sequences of a mixture by source, the time that reading them took, and the state after them."""

    sequences: dict[str, list[np.ndarray]]
    seconds: float
    state: MixtureState
    document_end: int

    def document_lengths(self, name: str) -> list[int]:
        """Numbers of tokens of the documents that end in the consecutive sequences of one source."""
        if name not in self.sequences:
            return []
        ends = np.flatnonzero(np.concatenate(self.sequences[name]) == self.document_end)
        lengths: list[int] = np.diff(ends, prepend=-1).tolist()
        return lengths


def main() -> None:
    """Read, print and plot a sample."""
    recipe = parse_recipe(InspectArguments, __doc__)
    options, mixture = recipe.options, Mixture(recipe.arguments, recipe.tokenizer(), recipe.seed)
    sample = read_sample(mixture, options.sequences)
    print_sample(mixture, sample, recipe.sequences * mixture.sequence_length, options.sample_characters)
    draw_sample(mixture, sample, options.picture)
    print(f"picture: {options.picture}")


def read_sample(mixture: Mixture, count: int) -> Sample:
    """Read the first `count` sequences of one worker."""
    sequences: dict[str, list[np.ndarray]] = defaultdict(list)
    start, stream = time.perf_counter(), islice(mixture.sequences_of_worker(), count)
    for one in tqdm(stream, total=count, unit="seq", desc="reading", disable=None):
        sequences[one["source"]].append(one["input_ids"])
    return Sample(dict(sequences), time.perf_counter() - start, one["data_state"], mixture.tokenizer.eos_token_id)


def print_sample(mixture: Mixture, sample: Sample, run_tokens: int, characters: int) -> None:
    """Print a table of sources, the speed, the files, and a text of each source."""
    total, rows = sum(map(len, sample.sequences.values())), []
    for name, one in mixture.opened.items():
        lengths = sample.document_lengths(name)
        skipped = sample.state["sources"][name]["read"]["skipped"]
        tokens = one.records.tokens_per_epoch(mixture.tokenize, one.validation_texts)
        row = [
            name,
            f"{float(one.source.weight):.2%}",
            f"{len(sample.sequences.get(name, [])) / total:.2%}",
            f"{len(lengths):,}",
            f"{np.median(lengths):,.0f} ({max(lengths):,})" if lengths else "?",
            ", ".join(f"{count:,} {reason}" for reason, count in skipped.items()) or "0",
            f"about {tokens / 1e6:,.2f}M tokens",
            f"about {run_tokens * float(one.source.weight) / tokens:,.2f} epochs",
        ]
        rows.append(row)
    head = ["source", "share", "actual", "documents", "tokens, median (max)", "skipped", "epoch", "run"]
    print_table(f"{total:,} sequences of {mixture.sequence_length:,} tokens", head, rows)
    tokens = total * mixture.sequence_length / sample.seconds
    documents = sum(len(sample.document_lengths(name)) for name in sample.sequences) / sample.seconds
    print(f"{tokens:,.0f} tokens/s, {documents:,.0f} documents/s with one worker, including opening the files")
    for name, described in mixture.data.describe().items():
        print(f"{name}: {described}")
    for name, sequences in sample.sequences.items():
        text = str(mixture.tokenizer.decode(sequences[-1]))[:characters]
        print(f"\n{name}, start of a sequence:\n{text}")


def draw_sample(mixture: Mixture, sample: Sample, picture: str) -> None:
    """Plot the shares of sources, and the lengths of documents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (shares, lengths) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    names = mixture.names
    reached = [len(sample.sequences.get(name, [])) for name in names]
    expected = [float(source.weight) * sum(reached) for source in mixture.sources]
    places = np.arange(len(names))
    shares.bar(places - 0.2, expected, 0.4, label="recipe")
    shares.bar(places + 0.2, reached, 0.4, label="actual")
    shares.set_xticks(places, names)
    shares.set(title="shares", ylabel="sequences")
    shares.legend()
    for name in names:
        if values := sample.document_lengths(name):
            bins = np.geomspace(min(values), max(values) + 1, 30)
            lengths.hist(values, bins=bins, histtype="step", label=name)
    lengths.set(title="documents that end in these sequences", xlabel="tokens", ylabel="documents", xscale="log")
    lengths.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)

"""Look at a recipe's mixture before money is spent on it.

    python -m modeling_pure.data.inspect --config RECIPE [--rows 400] [--picture mixture.png]

Reads the first rows as training would (one reader), and shows the proportions reached, the speed of one core, lengths
of documents, passes of the whole run, what was skipped, and a row of each source as text.
"""

import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

from ..errors import InputError, run_script
from ..options import check_numbers, check_output_file, check_texts
from ..recipe import RecipeParser
from ..tokenizer import load_document_tokenizer
from ..training.arguments import ModelArguments, PureTrainingArguments
from ..training.trainer_options import seed_of_data
from .arguments import DataArguments
from .estimate import tokens_per_epoch
from .held_out import describe_exams, describe_files, open_sources
from .mixture import Mixture
from .sources import parse_sources
from .states import MixtureState


@dataclass
class InspectArguments:
    """What this command is told beside the recipe."""

    rows: int = field(default=400, metadata={"help": "rows to read"})
    sample_characters: int = field(default=400, metadata={"help": "characters shown of a row of each source"})
    picture: str = field(default="mixture.png", metadata={"help": "file for the picture: .png, .svg or .pdf"})

    def __post_init__(self) -> None:
        check_texts(self)
        check_numbers(self, rows=1, sample_characters=0)
        check_output_file("picture", self.picture)
        if (ending := Path(self.picture).suffix) not in (".png", ".svg", ".pdf"):
            raise InputError(f"picture: expected a file that ends in .png, .svg or .pdf, found '{ending}'")


@dataclass
class Sample:
    """The first rows of a mixture: tokens by source, the seconds they took, lengths of documents, a row of each."""

    rows: dict[str, list[np.ndarray]]
    seconds: float
    state: MixtureState
    document_end: int

    def document_lengths(self, name: str) -> list[int]:
        """Tokens of the documents that end in the rows of one source, which follow each other."""
        if name not in self.rows:
            return []
        ends = np.flatnonzero(np.concatenate(self.rows[name]) == self.document_end)
        lengths: list[int] = np.diff(ends, prepend=-1).tolist()
        return lengths


def main() -> None:
    """Arguments, rows, tables and a picture."""
    parser = RecipeParser((InspectArguments, ModelArguments, DataArguments, PureTrainingArguments), __doc__)
    inspect, _, arguments, training = parser.parse_recipe(sys.argv[1:])
    tokenizer = load_document_tokenizer(arguments.tokenizer_name_or_path)
    opened = open_sources(parse_sources(arguments.sources), arguments, seed_of_data(training))
    mixture = Mixture(opened, tokenizer, arguments, seed_of_data(training))
    sample = read_sample(mixture, inspect.rows)
    plan = training.batch_plan(arguments.max_seq_length)
    tokens = training.max_steps * plan.sequences_per_step * mixture.sequence_length
    print_sample(mixture, sample, tokens, inspect.sample_characters)
    draw_sample(mixture, sample, inspect.picture)
    print(f"picture: {inspect.picture}")


def read_sample(mixture: Mixture, count: int) -> Sample:
    """The first `count` rows of the first reader."""
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    start = time.perf_counter()
    for row in tqdm(islice(mixture.rows_of_reader(), count), total=count, unit="row", desc="reading", disable=None):
        rows[row["source"]].append(row["input_ids"])
    return Sample(dict(rows), time.perf_counter() - start, row["data_state"], mixture.tokenizer.eos_token_id)


def print_sample(mixture: Mixture, sample: Sample, run_tokens: int, characters: int) -> None:
    """Two tables and a text of each source."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    total = sum(map(len, sample.rows.values()))
    table = Table(title=f"{total:,} rows of {mixture.sequence_length:,} tokens")
    for heading in (
        "source",
        "share asked",
        "reached",
        "documents",
        "tokens, median (max)",
        "skipped",
        "a pass",
        "run",
    ):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for one in mixture.opened:
        name = one.source.name
        lengths = sample.document_lengths(name)
        skipped = sample.state["sources"][name]["read"]["skipped"]
        tokens = tokens_per_epoch(one, mixture.tokenize)
        table.add_row(
            name,
            f"{float(one.source.weight):.2%}",
            f"{len(sample.rows.get(name, [])) / total:.2%}",
            f"{len(lengths):,}",
            f"{np.median(lengths):,.0f} ({max(lengths):,})" if lengths else "?",
            ", ".join(f"{count:,} {reason}" for reason, count in skipped.items()) or "0",
            f"about {tokens / 1e6:,.2f}M tokens",
            f"about {run_tokens * float(one.source.weight) / tokens:,.2f} passes",
        )
    console.print(table)
    tokens = total * mixture.sequence_length / sample.seconds
    documents = sum(len(sample.document_lengths(name)) for name in sample.rows) / sample.seconds
    console.print(f"{tokens:,.0f} tokens/s, {documents:,.0f} documents/s with one reader, opening the files included")
    for name, described in describe_exams(mixture.opened).items():
        console.print(f"answers of {name}: {described}")
    for name, described in describe_files(mixture.opened).items():
        console.print(f"files of {name}: {escape(described)}")
    for name, rows in sample.rows.items():
        text = str(mixture.tokenizer.decode(rows[-1]))[:characters]
        console.print(f"\n[bold]{name}[/bold], beginning of a row:\n{escape(text)}", highlight=False)


def draw_sample(mixture: Mixture, sample: Sample, picture: str) -> None:
    """Shares over the rows read, and lengths of documents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (shares, lengths) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    names = mixture.names
    reached = [len(sample.rows.get(name, [])) for name in names]
    asked = [float(source.weight) * sum(reached) for source in mixture.sources]
    places = np.arange(len(names))
    shares.bar(places - 0.2, asked, 0.4, label="asked")
    shares.bar(places + 0.2, reached, 0.4, label="reached")
    shares.set_xticks(places, names)
    shares.set(title="rows", ylabel="rows")
    shares.legend()
    for name in names:
        values = sample.document_lengths(name)
        if values:
            bins = np.geomspace(min(values), max(values) + 1, 30)
            lengths.hist(values, bins=bins, histtype="step", label=name)
    lengths.set(title="documents that end in these rows", xlabel="tokens", ylabel="documents", xscale="log")
    lengths.legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main, "modeling_pure.data.inspect")

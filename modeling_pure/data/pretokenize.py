"""Write the rows of a recipe's mixture once, so that training reads them without tokenising.

    python -m modeling_pure.data.pretokenize --config RECIPE --out DIR
    python train_pretrain.py --config RECIPE --pretokenized_dir DIR

Writes as many rows as the recipe's max_steps take on one device (--rows says another number), and the held-out rows.
The same command again continues. The folder needs nothing else: neither the sources nor a network.
"""

import json
import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ..atomic import write_atomically
from ..errors import InputError, run_script
from ..options import check_numbers, check_output_folder, check_texts
from ..recipe import RecipeParser
from ..tokenizer import load_document_tokenizer
from ..training.arguments import ModelArguments, PureTrainingArguments
from ..training.trainer_options import seed_of_data
from .arguments import DataArguments
from .held_out import describe_exams, describe_files, open_sources, outside_documents, validation_mixture
from .mixture import Mixture
from .pretokenized import (
    FACTS_FILE,
    STATE_KEY,
    VALIDATION_FILE,
    PretokenizedFacts,
    count_rows,
    file_state,
    read_facts,
    sequences_file,
    settings,
)
from .sources import parse_sources, parse_validation_sources
from .states import MixtureState, TokenSequence

ROWS_PER_FILE = 4096


@dataclass
class PretokenizeArguments:
    """What this command is told beside the recipe."""

    out: str | None = field(default=None, metadata={"help": "folder for the rows"})
    rows: int | None = field(default=None, metadata={"help": "rows to write; by default what the recipe's run takes"})

    def __post_init__(self) -> None:
        check_texts(self)
        check_numbers(self, rows=1)
        if self.out is not None:
            check_output_folder("out", self.out)


def main() -> None:
    """Arguments, sources, rows."""
    parser = RecipeParser(
        (PretokenizeArguments, ModelArguments, DataArguments, PureTrainingArguments), description=__doc__
    )
    pack, _, arguments, training = parser.parse_recipe(sys.argv[1:])
    if not pack.out:
        raise InputError("out: expected a folder for the rows")
    plan = training.batch_plan(arguments.max_seq_length)
    rows = training.max_steps * plan.sequences_per_step if pack.rows is None else pack.rows
    tokenizer = load_document_tokenizer(arguments.tokenizer_name_or_path)
    sources = parse_sources(arguments.sources)
    folder = Path(pack.out)
    seed = seed_of_data(training)
    made_with = settings(sources, tokenizer, arguments, seed)
    facts: PretokenizedFacts = {"settings": made_with, "sequences_per_file": ROWS_PER_FILE}
    if (folder / FACTS_FILE).exists():
        read_facts(folder, made_with)
    if (there := count_rows(folder, ROWS_PER_FILE)) >= rows:
        print(f"{folder}: has {there:,} rows already")
        return
    mixture = Mixture(open_sources(sources, arguments, seed), tokenizer, arguments, seed)
    mixture.hold_out(outside_documents(parse_validation_sources(arguments.validation_sources, sources), arguments))
    validation = validation_mixture(
        mixture.opened, mixture.tokenize, mixture.sequence_length, arguments.validation_sequences
    )
    for name, described in describe_exams(mixture.opened).items():
        print(f"answers of {name}: {described}")
    for name, described in describe_files(mixture.opened).items():
        print(f"files of {name}: {described}")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FACTS_FILE, json.dumps(facts, indent=2))
    write_batch(folder / VALIDATION_FILE, validation, mixture.names)
    state = write_mixture(folder, mixture, rows)
    print(f"{folder}: {rows:,} rows of {mixture.sequence_length:,} tokens")
    for name, done in mixture.progress([state]).items():
        print(f"  {name}: {done['rows']:,} rows, {done['epochs']} passes completed, {done['skipped']:,} rows skipped")


def write_mixture(folder: Path, mixture: Mixture, rows: int, sequences_per_file: int = ROWS_PER_FILE) -> MixtureState:
    """Write the first `rows` rows of a mixture, of which some files may be there already; returns the last state.

    A file that is not full is written anew, so that what follows it joins on without a gap.
    """
    number = min(rows, count_rows(folder, sequences_per_file)) // sequences_per_file  # files that stay
    state = file_state(sequences_file(folder, number - 1)) if number else None
    stream = islice(mixture.rows_of_reader(state=state), rows - number * sequences_per_file)
    done, tokens = number * sequences_per_file * mixture.sequence_length, rows * mixture.sequence_length
    with tqdm(total=tokens, initial=done, unit="tok", unit_scale=True, desc="packing") as bar:
        batch: list[TokenSequence[MixtureState]] = []
        for row in stream:
            batch.append(row)
            bar.update(mixture.sequence_length)
            if len(batch) == sequences_per_file:
                write_batch(sequences_file(folder, number), batch, mixture.names)
                number, state, batch = number + 1, row["data_state"], []
    if batch:
        write_batch(sequences_file(folder, number), batch, mixture.names)
        state = batch[-1]["data_state"]
    if state is None:
        raise ValueError(f"rows: expected a number above 0, found {rows}")
    return state


def write_batch(file: Path, batch: list[TokenSequence[Any]], names: list[str]) -> None:
    """Write rows of a mixture with their sources, and the state after the last one."""
    sources = [names.index(row["source"]) for row in batch]
    write_rows(file, [row["input_ids"] for row in batch], sources, batch[-1].get("data_state"))


def write_rows(file: Path, rows: list[np.ndarray], sources: list[int], state: MixtureState | None) -> None:
    """Write one table of `input_ids` and `source`, under its name only once it is whole."""
    tokens = np.stack(rows)
    tokens = tokens.astype(np.uint16 if tokens.max() < 1 << 16 else np.int32)
    columns = {
        "input_ids": pa.FixedSizeListArray.from_arrays(tokens.reshape(-1), tokens.shape[1]),
        "source": pa.array(sources, pa.int16()),
    }
    table = pa.table(columns).replace_schema_metadata({STATE_KEY: json.dumps(state)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomically(file, sink.getvalue())


if __name__ == "__main__":
    run_script(main, "modeling_pure.data.pretokenize")

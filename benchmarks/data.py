"""The data path from files to rows, beside the naive way: tokens per second of one core, in the same run.

    python -m benchmarks.data [--million_tokens 20]

The peer mixes documents with `datasets.interleave_datasets` by probability, calls the tokenizer once for each and
packs Python lists. Both read the same generated English text with GPT-2's vocabulary, in turns, on one thread; ours
looks for evaluation questions in it too. Speed is the median over the turns, in tokens per second of CPU time. Memory
is that of a process of its own.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import datasets
import psutil
import tokenizers
import torch
import transformers
from torch.utils.data import DataLoader

from benchmarks.text import SOURCES, write_sources
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.held_out import open_sources
from modeling_pure.data.mixture import Mixture, collate_rows
from modeling_pure.data.pack import main as pack
from modeling_pure.data.packed import PackedMixture
from modeling_pure.data.sources import parse_sources
from modeling_pure.data.tokenizer import load_tokenizer
from tests.gpt2_vocabulary import write_gpt2_tokenizer

ROW = 2048
BATCH = 16
TURNS = 7


def main() -> None:
    """Write text, measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million_tokens", type=float, default=20, help="length of the run whose memory is measured")
    parser.add_argument("--megabytes", type=float, default=20, help="text of each source")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        write_gpt2_tokenizer(folder)
        recipe = write_sources(Path(folder), options.megabytes)
        memory = in_child(memory_over_a_run, recipe, folder, options.million_tokens)
        print(json.dumps(measure(recipe, folder) | memory))


def measure(recipe: dict, folder: str) -> dict:
    """All speeds."""
    mixture = open_mixture(recipe, folder)
    streams = {
        "ours": mixture.rows_of_reader(),
        "peer": naive_rows(recipe, mixture.tokenizer),
        "packed": packed_rows(recipe, folder),
    }
    rows = {"ours": 10 * BATCH, "peer": 4 * BATCH, "packed": 40 * BATCH}  # about a second each, packed a tenth
    speeds: dict[str, list[float]] = {name: [] for name in streams}
    for turn in range(TURNS + 1):
        for name, stream in streams.items():
            start = time.process_time()
            for _ in range(rows[name] // BATCH):
                collate_rows(list(islice(stream, BATCH)))
            if turn:  # the first one opens files
                speeds[name].append(rows[name] * ROW / (time.process_time() - start))
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    ratio = {
        name: statistics.median(a / b for a, b in zip(values, speeds["peer"], strict=True))
        for name, values in speeds.items()
    }
    return {
        "name": "data",
        "unit": "tokens per second and core, read to batch",
        "ours": round(speed["ours"]),
        "peer": round(speed["peer"]),
        "peer_name": "interleave_datasets by probability, tokenizer called per document, list packing",
        "ratio": round(ratio["ours"], 2),
        "packed": round(speed["packed"]),
        "packed_ratio": round(
            statistics.median(a / b for a, b in zip(speeds["packed"], speeds["peer"], strict=True)), 1
        ),
        "two_workers_wall": round(two_workers(recipe, folder)),
        "device": f"{os.cpu_count()} CPU cores",
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, datasets, tokenizers)},
    }


def open_mixture(recipe: dict, folder: str) -> Mixture:
    """Our mixture of the generated sources."""
    arguments = DataArguments(sources=recipe, max_seq_length=ROW, tokenizer_name_or_path=folder)
    opened = open_sources(parse_sources(recipe), arguments, 0)
    return Mixture(opened, load_tokenizer("tokenizer", folder), arguments)


def naive_rows(recipe: dict, tokenizer) -> Iterator[dict]:
    """What one writes first: documents by probability, one tokenizer call each, lists."""
    streams = [
        datasets.load_dataset("parquet", data_files=recipe[name]["path"], split="train", streaming=True)
        for name in SOURCES
    ]
    questions = datasets.load_dataset("json", data_files=recipe["usmle"]["path"], split="train", streaming=True)
    streams.append(questions.map(lambda row: {"text": row["question"]}).select_columns("text"))
    weights = [source["weight"] for source in recipe.values()]
    documents = datasets.interleave_datasets(
        [stream.repeat(None) for stream in streams], probabilities=weights, seed=0, stopping_strategy="all_exhausted"
    )
    tokens: list[int] = []
    for document in documents:
        tokens += [*tokenizer(document["text"])["input_ids"], tokenizer.eos_token_id]
        while len(tokens) >= ROW:
            row, tokens = tokens[:ROW], tokens[ROW:]
            yield {"input_ids": torch.tensor(row).numpy()}


def packed_rows(recipe: dict, folder: str) -> Iterator[dict]:
    """The rows that `modeling_pure.data.pack` writes."""
    out, count = f"{folder}/packed", 40 * BATCH * (TURNS + 2)
    recipe_file = Path(folder) / "recipe.json"
    recipe_file.write_text(json.dumps({"sources": recipe, "tokenizer_name_or_path": folder}))
    sys.argv = ["pack", "--config", str(recipe_file), "--out", out, "--rows", str(count)]
    with contextlib.redirect_stdout(sys.stderr):
        pack()
    arguments = DataArguments(sources=recipe, max_seq_length=ROW, tokenizer_name_or_path=folder, packed_dir=out)
    return iter(PackedMixture(parse_sources(recipe), load_tokenizer("tokenizer", folder), arguments))


def two_workers(recipe: dict, folder: str) -> float:
    """Tokens per second of wall time that two data-loader workers hand over."""
    mixture = open_mixture(recipe, folder)
    batches = iter(DataLoader(mixture, batch_size=BATCH, collate_fn=collate_rows, num_workers=2))
    for _ in range(10):
        next(batches)
    start = time.perf_counter()
    for _ in range(60):
        next(batches)
    return 60 * BATCH * ROW / (time.perf_counter() - start)


def memory_over_a_run(recipe: dict, folder: str, million_tokens: float) -> dict:
    """Resident memory after a million tokens and at the end."""
    stream = open_mixture(recipe, folder).rows_of_reader()
    resident = []
    for tokens in (1e6, (million_tokens - 1) * 1e6):
        for _ in islice(stream, int(tokens / ROW)):
            pass
        resident.append(round(psutil.Process().memory_info().rss / 1e6))
    return {"rss_mb_at_1M_tokens": resident[0], f"rss_mb_at_{million_tokens:g}M_tokens": resident[1]}


def in_child(function, *arguments):
    """Call a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


if __name__ == "__main__":
    main()

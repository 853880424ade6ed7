"""The data path from files to batches, compared with a naive one: tokens per second on one core, in the same run.

    python -m benchmarks.data [--megabytes 20] [--million_tokens 20]

The peer mixes documents with `datasets.interleave_datasets` by probability, calls the tokenizer for each document and
packs Python lists. Both read the same generated English text with GPT-2's vocabulary, alternating, on one thread; ours
also searches it for evaluation questions. Speed is the median over the rounds, in tokens per second of CPU time;
`packed` reads pretokenized sequences. Memory is measured in a separate process.
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
import torch
from torch.utils.data import DataLoader

from benchmarks.measure import median_ratio, print_line
from benchmarks.text import SOURCES, write_sources
from modeling_pure.commands.pretokenize import main as pack
from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.mixture import Mixture, collate_sequences
from modeling_pure.data.pretokenized import PretokenizedMixture
from modeling_pure.tokenizer import load_tokenizer
from tests.gpt2_vocabulary import write_gpt2_tokenizer

LENGTH, BATCH, ROUNDS = 2048, 16, 7
BATCHES = {"ours": 10, "peer": 4, "packed": 40}  # about a second each, `packed` a tenth


def main() -> None:
    """Write text, measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million_tokens", type=float, default=20, help="length of the run for the memory")
    parser.add_argument("--megabytes", type=float, default=20, help="text of each source")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        write_gpt2_tokenizer(folder)
        recipe = write_sources(Path(folder), options.megabytes)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory = pool.apply(memory_over_a_run, (recipe, folder, options.million_tokens))
        speeds = speeds_in_turns(recipe, folder)
        two_workers = speed_of_two_workers(recipe, folder)
    ours, peer, packed = (statistics.median(speeds[name]) for name in BATCHES)
    print_line(
        "data",
        "tokens per second and core, read to batch",
        round(ours),
        round(peer),
        "interleave_datasets by probability, tokenizer called per document, list packing",
        median_ratio(speeds["ours"], speeds["peer"]),
        packages=("torch", "transformers", "datasets", "tokenizers"),
        packed=round(packed),
        packed_ratio=median_ratio(speeds["packed"], speeds["peer"]),
        two_workers_wall=round(two_workers),
        **memory,
    )


def speeds_in_turns(recipe: dict, folder: str) -> dict[str, list[float]]:
    """Tokens per second of CPU time by side, one number per round."""
    mixture = open_mixture(recipe, folder)
    streams = {
        "ours": mixture.sequences_of_worker(),
        "peer": naive_rows(recipe, mixture.tokenizer),
        "packed": packed_rows(recipe, folder),
    }
    speeds: dict[str, list[float]] = {name: [] for name in streams}
    for turn in range(ROUNDS + 1):
        for name, stream in streams.items():
            start = time.process_time()
            for _ in range(BATCHES[name]):
                collate_sequences(list(islice(stream, BATCH)))
            if turn:  # the first one opens files
                speeds[name].append(BATCHES[name] * BATCH * LENGTH / (time.process_time() - start))
    return speeds


def open_mixture(recipe: dict, folder: str) -> Mixture:
    """Our mixture of the generated sources."""
    arguments = DataArguments(sources=recipe, max_seq_length=LENGTH, tokenizer_name_or_path=folder)
    return Mixture(arguments, load_tokenizer("tokenizer", folder))


def naive_rows(recipe: dict, tokenizer) -> Iterator[dict]:
    """The naive way: documents by probability, one tokenizer call each, lists."""
    opened = {
        name: datasets.load_dataset(kind, data_files=recipe[name]["path"], split="train", streaming=True)
        for name, kind in {**dict.fromkeys(SOURCES, "parquet"), "usmle": "json"}.items()
    }
    opened["usmle"] = opened["usmle"].map(lambda record: {"text": record["question"]}).select_columns("text")
    weights = [source["weight"] for source in recipe.values()]
    settings = {"probabilities": weights, "seed": 0, "stopping_strategy": "all_exhausted"}
    documents = datasets.interleave_datasets([stream.repeat(None) for stream in opened.values()], **settings)
    tokens: list[int] = []
    for document in documents:
        tokens += [*tokenizer(document["text"])["input_ids"], tokenizer.eos_token_id]
        while len(tokens) >= LENGTH:
            sequence, tokens = tokens[:LENGTH], tokens[LENGTH:]
            yield {"input_ids": torch.tensor(sequence).numpy()}


def packed_rows(recipe: dict, folder: str) -> Iterator[dict]:
    """The sequences that `pure pretokenize` writes."""
    out, count = f"{folder}/packed", BATCHES["packed"] * BATCH * (ROUNDS + 2)
    recipe_file = Path(folder) / "recipe.json"
    recipe_file.write_text(json.dumps({"sources": recipe, "tokenizer_name_or_path": folder}))
    sys.argv = ["pack", "--config", str(recipe_file), "--out", out, "--sequences", str(count)]
    with contextlib.redirect_stdout(sys.stderr):
        pack()
    arguments = DataArguments(
        sources=recipe, max_seq_length=LENGTH, tokenizer_name_or_path=folder, pretokenized_dir=out
    )
    return iter(PretokenizedMixture(arguments, load_tokenizer("tokenizer", folder)))


def speed_of_two_workers(recipe: dict, folder: str) -> float:
    """Tokens per second of wall time from two data-loader workers."""
    mixture = open_mixture(recipe, folder)
    batches = iter(DataLoader(mixture, batch_size=BATCH, collate_fn=collate_sequences, num_workers=2))
    for _ in range(10):
        next(batches)
    start = time.perf_counter()
    for _ in range(60):
        next(batches)
    return 60 * BATCH * LENGTH / (time.perf_counter() - start)


def memory_over_a_run(recipe: dict, folder: str, million_tokens: float) -> dict[str, int]:
    """Resident memory after a million tokens and at the end."""
    stream, resident = open_mixture(recipe, folder).sequences_of_worker(), []
    for tokens in (1e6, (million_tokens - 1) * 1e6):
        for _ in islice(stream, int(tokens / LENGTH)):
            pass
        resident.append(round(psutil.Process().memory_info().rss / 1e6))
    return {"rss_mb_at_1M_tokens": resident[0], f"rss_mb_at_{million_tokens:g}M_tokens": resident[1]}


if __name__ == "__main__":
    main()

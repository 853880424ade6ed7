"""Any amount of English text without a download: sentences of Python's reference manual in random order."""

import json
import random
import re
from pathlib import Path
from pydoc_data import topics

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Weight in the mixture, and sentences per document, which vary as in real sources.
SOURCES = {"finepdfs": (0.45, 260), "fineweb_edu": (0.25, 42), "c4": (0.20, 21)}


def sentences() -> list[str]:
    """The sentences of the manual."""
    text = " ".join(re.sub(r"\s+", " ", topic) for topic in topics.topics.values())
    return [s for s in re.split(r"(?<=[.!?]) ", text) if 40 < len(s) < 400 and s[0].isupper()]


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A small byte-level BPE like GPT-2's, trained on the manual."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    settings = {"special_tokens": [end], "initial_alphabet": alphabet, "show_progress": False}
    bpe.train_from_iterator(sentences(), trainers.BpeTrainer(vocab_size=vocab_size, **settings))
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, bos_token=end).save_pretrained(folder)


def write_sources(folder: Path, megabytes: float, seed: int = 0) -> dict:
    """Write three text sources and one of questions; returns a recipe's `sources`.

    Args:
        megabytes: of text for each text source.
    """
    rng, manual, recipe = random.Random(seed), sentences(), {}
    for name, (weight, length) in SOURCES.items():
        texts, size = [], 0
        while size < megabytes * 1e6:
            texts.append(" ".join(rng.choices(manual, k=max(1, int(rng.lognormvariate(0, 0.7) * length)))))
            size += len(texts[-1])
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet", row_group_size=1000)
        recipe[name] = {"path": str(folder / f"{name}.parquet"), "weight": weight}
    words = " ".join(manual).split()  # reordered, so that decontamination does not find the questions in the texts
    with (folder / "usmle.jsonl").open("w") as file:
        for number in range(2000):
            options = {letter: " ".join(rng.choices(words, k=5)) for letter in "ABCD"}
            question = f"{number}. " + " ".join(rng.choices(words, k=130))
            file.write(json.dumps({"question": question, "options": options, "answer_idx": "A"}) + "\n")
    recipe["usmle"] = {"path": str(folder / "usmle.jsonl"), "weight": 0.1, "format": "medqa"}
    return recipe

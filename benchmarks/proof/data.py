"""What the proof reads: a folder with texts, questions and a tokenizer; and a small one for a CPU."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from modeling_pure.demo import world
from modeling_pure.errors import InputError

TEXTS = ("finepdfs", "fineweb_edu", "c4")
HELD_OUT_DOCUMENTS = 400  # of each text of the small world


@dataclass(frozen=True)
class ProofData:
    """A folder that holds `pretrain/NAME*.{train,validation}.parquet`, `medqa/{train,dev}.jsonl` and `tokenizer/`."""

    folder: Path

    @property
    def train_questions(self) -> str:
        """What pretraining, GRPO and the SFT twin may see, but for its dev split."""
        return str(self.folder / "medqa/train.jsonl")

    @property
    def dev_questions(self) -> str:
        """What the models are asked at the end."""
        return str(self.folder / "medqa/dev.jsonl")

    def check(self) -> None:
        """Raise `InputError` that names the first thing which is not there."""
        patterns = [f"pretrain/{name}*.{part}.parquet" for name in TEXTS for part in ("train", "validation")]
        for pattern in [*patterns, "medqa/train.jsonl", "medqa/dev.jsonl", "tokenizer/tokenizer.json"]:
            if not any(self.folder.glob(pattern)):
                raise InputError(f"data: '{self.folder}' has no {pattern}; see docs/results/README.md")

    def options(self) -> list[str]:
        """The recipe's paths, put to this folder."""
        paths = {"tokenizer_name_or_path": self.folder / "tokenizer", "sources.usmle.path": self.train_questions}
        for name in TEXTS:
            paths[f"sources.{name}.path"] = self.folder / f"pretrain/{name}*.train.parquet"
            paths[f"sources.{name}.validation_path"] = self.folder / f"pretrain/{name}*.validation.parquet"
        paths["decontaminate"] = self.dev_questions
        return [text for key, path in paths.items() for text in (f"--{key}", str(path))]


def write_small_data(folder: Path) -> ProofData:
    """The demo's world in the places of the real data: texts, questions and a tokenizer of 2,048 words."""
    if not (folder / "tokenizer/tokenizer.json").exists():
        world.write_world(folder)
        for name in ("pretrain", "medqa"):
            (folder / name).mkdir(exist_ok=True)
        for name, file in zip(TEXTS, world.TEXT_FILES, strict=True):
            texts = [json.loads(line)["text"] for line in (folder / file).read_text().splitlines()]
            for part, some in (("validation", texts[:HELD_OUT_DOCUMENTS]), ("train", texts[HELD_OUT_DOCUMENTS:])):
                pq.write_table(pa.table({"text": some}), folder / f"pretrain/{name}.{part}.parquet")
        for name, file in (("train", world.EXAM_FILES[0]), ("dev", world.EXAM_FILES[2])):
            (folder / f"medqa/{name}.jsonl").write_text((folder / file).read_text())
        files = [folder / name for name in (*world.TEXT_FILES, world.EXAM_FILES[0])]
        world.train_tokenizer(files, folder / "tokenizer")
    return ProofData(folder)

"""Hub data sets are read like their local copies, over the Hub's protocol and whatever the network does."""

import base64
import gzip
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from modeling_pure.data.arguments import DataArguments
from modeling_pure.data.mixture import Mixture
from modeling_pure.tokenizer import load_tokenizer
from tests.data.http_server import COMMIT, Failure, FileServer

ROOT = Path(__file__).parents[2]
HUB_RETRIES = 5
CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
- config_name: de
  data_files:
  - split: train
    path: de/c4-train.*.json.gz
---
# A card
"""


class Job(NamedTuple):
    """A mixture to read: a number of sequences by a number of workers."""

    sources: dict
    sequences: int
    workers: int = 0
    arguments: dict = {}


def read_sequences(job: Job, tokenizer_folder: str) -> dict:
    """The sequences' sources and digests, and the error that ended them if one did."""
    arguments = DataArguments(sources=job.sources, max_seq_length=1024, **job.arguments)
    sequences, error = [], None
    try:
        mixture = Mixture(arguments, load_tokenizer("tokenizer", tokenizer_folder), seed=1)
        loader = DataLoader(mixture, batch_size=None, num_workers=job.workers)
        sequences.extend(
            [sequence["source"], hashlib.sha256(sequence["input_ids"].numpy().tobytes()).hexdigest()]
            for sequence in islice(loader, job.sequences)
        )
    except Exception as caught:  # of any kind: the tests say which it should be
        error = [type(caught).__name__, str(caught)]
    return {"sequences": sequences, "error": error}


def main() -> None:
    """Run the jobs of the standard input in this process, whose environment names the Hub."""
    import time

    from fsspec.spec import AbstractBufferedFile

    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.01))
    AbstractBufferedFile.DEFAULT_BLOCK_SIZE = 1 << 16  # ask for little more than is needed: many requests
    tokenizer_folder, jobs = json.load(sys.stdin)
    print(json.dumps({name: read_sequences(Job(*job), tokenizer_folder) for name, job in jobs.items()}))


def noise(rng: random.Random, count: int) -> str:
    """A number of characters that do not compress well."""
    return base64.b64encode(rng.randbytes(count)).decode()[:count]


def write_lines(file: Path, name: str, rng: random.Random) -> None:
    """800 documents of 300 characters, in lines of 2,100."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(file, "wt", compresslevel=1) as lines:
        for i in range(800):
            lines.write(json.dumps({"text": f"{name} {i} {noise(rng, 300)}", "url": noise(rng, 1800)}) + "\n")


def write_table(file: Path, name: str, rng: random.Random, characters: int) -> None:
    """800 documents in row groups of 200, with another column between the texts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    texts = [f"{name} {i} {noise(rng, characters)}" for i in range(800)]
    table = pa.table({"text": texts, "url": [noise(rng, 1500) for _ in texts]})
    pq.write_table(table, file, row_group_size=200)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A data set of parquet files, and one of .json.gz files in configurations; each file takes several requests."""
    folder, rng = tmp_path_factory.mktemp("hub"), random.Random(0)
    for i in range(2):
        write_table(folder / f"owner/table/data/train-0000{i}-of-00002.parquet", f"table {i}", rng, 300)
        write_table(folder / f"owner/gone/train-0000{i}.parquet", f"gone {i}", rng, 1000)
        write_lines(folder / f"owner/c4/en/c4-train.0000{i}-of-00002.json.gz", f"c4 {i}", rng)
    for name in ("en/c4-validation.00000-of-00001", "de/c4-train.00000-of-00001"):
        write_lines(folder / f"owner/c4/{name}.json.gz", "not to be read", rng)
    (folder / "owner/c4/README.md").write_text(CARD)
    (folder / "owner/lost").mkdir()
    return folder


class Network:
    """The failures of each file, at its first and later requests."""

    def __init__(self, server: FileServer):
        self.server = server
        self.refused = Failure(drop=True)  # and no connection for a second
        outage = [Failure(503)] * 3 * (HUB_RETRIES + 1)  # three times what huggingface_hub tries by itself
        self.plans: dict[str, list[Failure | None]] = {
            "owner/table/data/train-00000-of-00002.parquet": [None, *outage, Failure(cut=1000)],
            "owner/table/data/train-00001-of-00002.parquet": [Failure(429), None, Failure(cut=1), Failure(drop=True)],
            "owner/c4/en/c4-train.00000-of-00002.json.gz": [None, self.refused],
            "owner/c4/en/c4-train.00001-of-00002.json.gz": [Failure(cut=200_000), *outage, None, Failure(cut=0)],
            "owner/gone/train-00001.parquet": [None, Failure(404)] * 2,  # for two jobs
        }

    def fail(self, method: str, path: str) -> Failure | None:
        """See `FileServer.failures`."""
        if path.startswith("api/datasets/owner/lost"):
            return Failure(drop=True)
        plan = self.plans.get(path)
        failure = plan.pop(0) if plan and method == "GET" else None
        if failure is self.refused:
            self.server.stop()
            threading.Timer(1.0, self.server.start).start()
        return failure


SOURCES = {
    "table": {"path": "owner/table", "weight": 0.5},
    "c4": {"path": "owner/c4", "config": "en", "weight": 0.5},
}
GONE = {"gone": {"path": "owner/gone", "weight": 0.5}, "c4": SOURCES["c4"] | {"weight": 0.5}}
JOBS = {
    "mixture": Job(SOURCES, 900, workers=2),
    "stop": Job(GONE, 1500),
    "redistribute": Job(GONE, 1500, arguments={"on_source_failure": "redistribute"}),
    "pattern": Job({"table": {"path": "hf://datasets/owner/table/data/*.parquet", "weight": 1}}, 100),
    "no match": Job({"web": {"path": "hf://datasets/owner/none/*.parquet", "weight": 1}}, 1),
    "no data set": Job({"web": {"path": "owner/none", "weight": 1}}, 1),
    "no such config": Job({"web": {"path": "owner/c4", "config": "fr", "weight": 1}}, 1),
    "lost": Job({"web": {"path": "owner/lost", "weight": 1}}, 1),
    "no config": Job({"web": {"path": "owner/c4", "weight": 1}}, 1),
}


class Run(NamedTuple):
    """What a process read from a failing Hub."""

    results: dict[str, dict]
    log: str
    plans: dict[str, list[Failure | None]]


@pytest.fixture(scope="module")
def run(hub, tokenizer_folder, tmp_path_factory) -> Run:
    """All jobs, run in their own process: the Hub's address is read when its library is imported."""
    server = FileServer(hub)
    network = Network(server)
    server.failures = network.fail
    environment = {
        **os.environ,
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    process = subprocess.run(
        [sys.executable, "-m", "tests.data.test_hub_streaming"],
        cwd=ROOT,
        env=environment,
        input=json.dumps([str(tokenizer_folder), JOBS]),
        capture_output=True,
        text=True,
    )
    server.stop()
    assert process.returncode == 0, process.stderr[-3000:]
    return Run(json.loads(process.stdout.splitlines()[-1]), process.stderr, network.plans)


def local(hub: Path, job: Job) -> Job:
    """The same job on the files themselves."""
    patterns = {
        "owner/table": "owner/table/data/*.parquet",
        "owner/c4": "owner/c4/en/c4-train.*",
        "owner/gone": "owner/gone",
        "hf://datasets/owner/table/data/*.parquet": "owner/table/data/*.parquet",
    }
    sources = {
        name: {key: value for key, value in source.items() if key != "config"}
        | {"path": str(hub / patterns[source["path"]])}
        for name, source in job.sources.items()
    }
    return job._replace(sources=sources)


def test_a_mixture_over_a_failing_hub_is_that_of_the_local_files(run, hub, tokenizer_folder):
    result = run.results["mixture"]
    assert result["error"] is None
    assert result == read_sequences(local(hub, JOBS["mixture"]), str(tokenizer_folder))
    assert {source for source, _ in result["sequences"]} == {"table", "c4"}


def test_a_pattern_of_urls_stands_for_its_files(run, hub, tokenizer_folder):
    assert run.results["pattern"] == read_sequences(local(hub, JOBS["pattern"]), str(tokenizer_folder))


@pytest.mark.parametrize("name", ["table/data/train-00000-of-00002.parquet", "c4/en/c4-train.00001-of-00002.json.gz"])
def test_an_outage_outlasts_the_retries_of_the_hub_library(run, name):
    source, _, path = name.partition("/")
    assert f"sources.{source}: 'hf://datasets/owner/{source}@{COMMIT}/{path}' " in run.log


def test_every_planned_failure_happened(run):
    assert not any(run.plans.values())


def test_a_file_that_disappears_stops_the_run_by_name(run, hub, tokenizer_folder):
    result = run.results["stop"]
    kind, message = result["error"]
    assert kind == "SourceFailed"
    assert re.match(rf"sources\.gone: .*'hf://datasets/owner/gone@{COMMIT}/train-00001\.parquet' .*\b404\b", message)
    assert "streaming_timeout" not in message  # not tried again
    assert "\n" not in message
    assert "gone" in dict(result["sequences"])
    job = local(hub, JOBS["stop"])._replace(sequences=len(result["sequences"]))
    assert result["sequences"] == read_sequences(job, str(tokenizer_folder))["sequences"]


def test_a_file_that_disappears_leaves_its_share_to_the_other_sources(run):
    result, stopped = run.results["redistribute"], run.results["stop"]["sequences"]
    assert result["error"] is None
    assert result["sequences"][: len(stopped)] == stopped
    assert {source for source, _ in result["sequences"][len(stopped) :]} == {"c4"}
    assert re.search(r"sources\.gone .*sources\.gone: .*\b404\b", run.log)


@pytest.mark.parametrize(
    ("job", "parts"),
    [
        ("no match", ["hf://datasets/owner/none/*.parquet"]),
        ("no data set", ["'owner/none'", "doesn't exist on the Hub"]),
        ("no such config", ["owner/c4", "'fr' not found", "['en', 'de']"]),
        ("lost", ["owner/lost", "isconnected"]),
        ("no config", ["owner/c4", "Config name is missing", "['en', 'de']"]),
    ],
)
def test_a_data_set_that_cannot_be_opened_is_a_line_that_names_the_key(run, job, parts):
    kind, message = run.results[job]["error"]
    assert kind == "InputError"
    assert message.startswith("sources.web: ")
    assert all(part in message for part in parts), message
    assert "\n" not in message


if __name__ == "__main__":
    main()

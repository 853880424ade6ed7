"""Files are read over HTTP completely and in order whatever the network does, or the failure is named."""

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import fsspec.implementations.http as fsspec_http
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tenacity
from torch.utils.data import DataLoader

from modeling_pure.data.arguments import DataArguments, parse_sources
from modeling_pure.data.decoders import read_shard
from modeling_pure.data.mixture import Mixture
from modeling_pure.data.opening import open_sources
from modeling_pure.data.remote import SourceFailed, open_file
from modeling_pure.data.shards import Shard, split_files
from modeling_pure.errors import InputError
from modeling_pure.files import find_files
from tests.data.http_server import Failure, FileServer

KEY = "sources.web"
TIMEOUT = 300.0
RECORDS = 3000
GROUP_ROWS = 500
SUFFIXES = [".jsonl", ".jsonl.gz", ".parquet"]


class Clock:
    """A clock that only our own retries advance, so that minutes pass at once."""

    def __init__(self):
        self.now = 0.0
        self.alarms: list[tuple[float, Callable[[], None]]] = []

    def sleep(self, seconds: float) -> None:
        """Advance the clock, and run the alarms that are due."""
        self.now += seconds
        for due, call in list(self.alarms):
            if due <= self.now:
                self.alarms.remove((due, call))
                call()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    """The clock of the retries."""
    clock = Clock()
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=clock.sleep))
    return clock


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The same 3,000 documents, 3.6 MB, in a file of each kind that takes several requests."""
    folder, rng = tmp_path_factory.mktemp("web"), random.Random(0)
    texts = [f"document {i}: {rng.randbytes(600).hex()}" for i in range(RECORDS)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (folder / "web.jsonl").write_bytes(lines)
    (folder / "web.jsonl.gz").write_bytes(gzip.compress(lines, 1))
    pq.write_table(pa.table({"text": texts}), folder / "web.parquet", row_group_size=GROUP_ROWS)
    return folder


@pytest.fixture
def server(folder, monkeypatch) -> Iterator[FileServer]:
    """A server for that folder, with a client that reads ahead only a little."""
    monkeypatch.setattr(fsspec_http, "DEFAULT_BLOCK_SIZE", 1 << 16)
    fsspec_http.HTTPFileSystem.clear_instance_cache()
    server = FileServer(folder)
    yield server
    server.stop()
    fsspec_http.HTTPFileSystem.clear_instance_cache()


def read(path: Path | str, start: int = 0, count: int | None = None) -> list[tuple[int, object]]:
    return list(islice(read_shard(KEY, Shard(str(path)), "text", TIMEOUT, start=start), count))


def from_the_second_request_on(until: Callable[[], bool], failure: Failure) -> Callable[[str, str], Failure | None]:
    """One GET succeeds, so that reading stops in the middle of the file; then all requests fail for a time."""
    gets = []

    def fail(method: str, path: str) -> Failure | None:
        gets.extend([path] if method == "GET" else [])
        return failure if len(gets) > 1 and not until() else None

    return fail


BURSTS = {
    "503": [None, Failure(503), Failure(503), Failure(503)],
    "503 at the first byte": [Failure(503)],
    "429": [None, Failure(429), Failure(429)],
    "408": [None, Failure(408)],
    "dropped": [None] + [Failure(drop=True)] * 4,
    "dropped at the first byte": [Failure(drop=True)] * 4,
    "cut": [None, Failure(cut=100_000), Failure(cut=1), Failure(cut=0)],
    "cut at the first byte": [Failure(cut=100)],
    "shorter than asked for": [None, Failure(short=1000), Failure(short=0)],
    "mixed": [Failure(cut=5000), Failure(503), None, Failure(drop=True), Failure(429), Failure(cut=70_000)],
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("burst", BURSTS)
def test_a_burst_of_failures_loses_no_record(server, clock, folder, burst, suffix):
    server.failures = list(BURSTS[burst])
    assert read(f"{server.url}/web{suffix}") == read(folder / f"web{suffix}")
    assert server.failures == []
    assert clock.now > 0


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("failure", [Failure(503), Failure(429), Failure(drop=True)], ids=["503", "429", "dropped"])
def test_an_outage_of_minutes_loses_no_record(server, clock, folder, failure, suffix):
    server.failures = from_the_second_request_on(lambda: clock.now > 200, failure)
    assert read(f"{server.url}/web{suffix}") == read(folder / f"web{suffix}")
    assert 200 < clock.now < TIMEOUT


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_refused_connection_loses_no_record(server, clock, folder, suffix):
    records = read_shard(KEY, Shard(f"{server.url}/web{suffix}"), "text", TIMEOUT)
    begun = [next(records)]
    server.stop()
    clock.alarms.append((100.0, server.start))
    assert begun + list(records) == read(folder / f"web{suffix}")
    assert 100 <= clock.now < TIMEOUT


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_server_that_is_down_when_a_file_is_opened_is_waited_for(server, clock, folder, suffix):
    server.stop()
    clock.alarms.append((100.0, server.start))
    assert read(f"{server.url}/web{suffix}") == read(folder / f"web{suffix}")


def test_a_late_answer_is_waited_for(server, clock, folder):
    server.failures = [Failure(delay=0.1)] * 3
    assert read(f"{server.url}/web.jsonl") == read(folder / "web.jsonl")
    assert server.failures == []
    assert clock.now == 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_answer_that_does_not_come_is_requested_again(server, clock, folder, suffix, monkeypatch):
    impatient = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_read=0.5)}}
    monkeypatch.setattr("modeling_pure.data.remote.HTTP_OPTIONS", impatient)
    server.failures = [None, Failure(delay=1.5)]
    assert read(f"{server.url}/web{suffix}") == read(folder / f"web{suffix}")
    assert clock.now > 0


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("failure", [Failure(503), Failure(drop=True), Failure(cut=10)], ids=["503", "dropped", "cut"])
def test_a_server_that_never_recovers_is_named(server, clock, failure, suffix):
    server.failures = from_the_second_request_on(lambda: False, failure)
    with pytest.raises(SourceFailed) as error:
        read(f"{server.url}/web{suffix}")
    place = rf"sources\.web: .*'{server.url}/web{suffix}' .*\b[1-9][\d,]*: "
    assert_message(error, place + r".+ \(.*\b300\b.*\bstreaming_timeout\)")
    assert clock.now >= TIMEOUT


def test_a_server_that_is_never_there_is_named(server, clock):
    server.stop()
    with pytest.raises(SourceFailed) as error:
        read(f"{server.url}/web.parquet")
    assert_message(error, r"sources\.web: .*'.+/web\.parquet' .*\b0: .+ \(.*\b300\b.*\bstreaming_timeout\)")
    assert "FileNotFound" not in str(error.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_requested_twice(server, clock, suffix):
    with pytest.raises(SourceFailed) as error:
        read(f"{server.url}/missing{suffix}")
    assert_message(error, rf"sources\.web: .*'{server.url}/missing{suffix}' .*\b0: [^()]+")
    assert clock.now == 0.5  # asked once more


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_missing_for_a_moment_is_requested_again(server, clock, folder, suffix):
    server.failures = lambda method, path: Failure(404) if clock.now == 0 else None
    assert read(f"{server.url}/web{suffix}") == read(folder / f"web{suffix}")
    assert clock.now == 0.5


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("status", [404, 401, 403])
def test_a_file_that_disappears_fails_at_once(server, clock, status, suffix):
    server.failures = from_the_second_request_on(lambda: False, Failure(status))
    with pytest.raises(SourceFailed) as error:
        read(f"{server.url}/web{suffix}")
    assert_message(error, rf"sources\.web: .*'{server.url}/web{suffix}' .*\b[1-9][\d,]*: .*{status}.*")
    assert clock.now == 0


def test_a_server_that_sends_whole_files_only_is_named(server, clock):
    server.ranges = False
    with pytest.raises(SourceFailed, match=r"^sources\.web: .*'.+/web\.jsonl' .*\b[\d,]+: .*\brange"):
        read(f"{server.url}/web.jsonl")
    assert clock.now == 0


def test_a_file_that_is_another_one_after_an_outage_is_refused(server, clock, tmp_path):
    file = tmp_path / "web.jsonl"
    server.folder = tmp_path
    file.write_text("".join(json.dumps({"text": f"old {i} {'x' * 1000}"}) + "\n" for i in range(RECORDS)))
    records = read_shard(KEY, Shard(f"{server.url}/web.jsonl"), "text", TIMEOUT)
    next(records)
    file.write_text("".join(json.dumps({"text": f"new {i} {'x' * 1100}"}) + "\n" for i in range(RECORDS)))
    server.failures = [Failure(503)]
    with pytest.raises(SourceFailed, match=r"^sources\.web: '.*web\.jsonl' .*\b[\d,]{9}\b.*\b[\d,]{9}\b"):
        list(records)


def test_any_byte_can_be_read_after_a_failure(server, clock, folder):
    whole, rng = (folder / "web.jsonl").read_bytes(), random.Random(1)
    server.failures = [Failure(503), Failure(cut=7), None] * 20
    with open_file(KEY, f"{server.url}/web.jsonl", TIMEOUT) as file:
        for _ in range(30):
            begin, count = rng.randrange(len(whole)), rng.randrange(1, 200_000)
            assert file.seek(begin) == begin
            assert file.read(count) == whole[begin : begin + count]
        file.seek(-5, 2)
        assert file.read() == whole[-5:]


@pytest.mark.parametrize("start", [1, GROUP_ROWS - 1, GROUP_ROWS, 4 * GROUP_ROWS + 7, RECORDS - 1, RECORDS])
def test_parquet_goes_on_in_the_middle_and_reads_what_it_needs(server, clock, folder, start):
    server.failures = [Failure(503), None, Failure(cut=1000)]
    records = read(f"{server.url}/web.parquet", start)
    assert records == read(folder / "web.parquet")[start:]
    metadata = pq.ParquetFile(folder / "web.parquet").metadata
    groups = range(start // GROUP_ROWS, metadata.num_row_groups)
    needed = sum(metadata.row_group(group).column(0).total_compressed_size for group in groups)
    ahead = (1 << 20) + (1 << 16) + (folder / "web.parquet").stat().st_size % (1 << 16)
    assert needed <= server.sent <= needed + 2 * ahead


def test_the_first_records_of_a_parquet_file_do_not_cost_the_whole_file(server, clock, folder):
    assert read(f"{server.url}/web.parquet", count=10) == read(folder / "web.parquet", count=10)
    assert server.sent < (folder / "web.parquet").stat().st_size * 0.7


@pytest.mark.parametrize("shard_bytes", [1 << 20, 777_777])
def test_ranges_of_a_file_joined_are_the_file(server, clock, folder, shard_bytes):
    shards = split_files(KEY, [f"{server.url}/web.jsonl"], shard_bytes=shard_bytes)
    assert len(shards) > 3
    server.failures = [Failure(503), None, Failure(cut=50_000), None, Failure(drop=True)]
    texts = [text for shard in shards for _, text in read_shard(KEY, shard, "text", TIMEOUT)]
    assert texts == [text for _, text in read(folder / "web.jsonl")]


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_ranges_of_any_size_joined_are_the_file(tmp_path, end):
    texts = [str(i) * (i % 5 + 1) for i in range(12)]
    lines = [json.dumps({"text": text}) + "\n" * (i % 3 == 2) + "\r" * (i % 4 == 3) for i, text in enumerate(texts)]
    (tmp_path / "web.jsonl").write_bytes(("\n".join(lines) + end).encode())
    for shard_bytes in range(1, 100):
        shards = split_files(KEY, [str(tmp_path / "web.jsonl")], shard_bytes=shard_bytes)
        assert [text for shard in shards for _, text in read_shard(KEY, shard, "text", TIMEOUT)] == texts


def test_a_range_costs_little_more_than_itself(server, clock):
    shard = split_files(KEY, [f"{server.url}/web.jsonl"], shard_bytes=100_000)[20]
    assert len(list(read_shard(KEY, shard, "text", TIMEOUT))) > 10
    assert server.sent < 100_000 + 2 * ((1 << 20) + (1 << 16))


def web_sources(url: str) -> dict:
    paths = {"lines": "web.jsonl", "zipped": "web.jsonl.gz", "table": "web.parquet"}
    weights = {"lines": 0.5, "zipped": 0.3, "table": 0.2}
    return {name: {"path": f"{url}/{path}", "weight": weights[name]} for name, path in paths.items()}


def sequences_of(sources: dict, tokenizer, workers: int, count: int) -> list[tuple[str, list[int]]]:
    """The first sequences of a mixture as a run reads them."""
    arguments = DataArguments(sources=sources, max_seq_length=64)
    mixture = Mixture(arguments, tokenizer, seed=1)
    loader = iter(DataLoader(mixture, batch_size=None, num_workers=workers))
    return [(one["source"], one["input_ids"].tolist()) for one in islice(loader, count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mixture_over_a_failing_network_is_the_same_mixture(server, clock, folder, tokenizer, workers):
    local = sequences_of(web_sources(str(folder)), tokenizer, workers, 60)
    server.failures = [None, Failure(503), Failure(cut=9000), Failure(drop=True)] * 50
    assert sequences_of(web_sources(server.url), tokenizer, workers, 60) == local


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_server_that_is_down_when_a_run_starts_is_waited_for(server, clock, suffix):
    server.stop()
    clock.alarms.append((60.0, server.start))
    sources = {"web": {"path": f"{server.url}/web{suffix}", "weight": 1}}
    opened = open_sources(parse_sources(sources), DataArguments(), seed=0)
    assert opened.sources[0].validation_texts[0].startswith("document 0: ")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_an_input_error_when_a_run_starts(server, clock, suffix):
    sources = {"web": {"path": f"{server.url}/missing{suffix}", "weight": 1}}
    with pytest.raises(InputError) as error:
        open_sources(parse_sources(sources), DataArguments(), seed=0)
    assert_message(error, rf"sources\.web: .*missing{suffix}.*")
    assert clock.now == 0.5  # asked once more


@pytest.mark.parametrize("path", ["gone/*.jsonl", "*.jsonl"])
def test_a_pattern_that_no_file_matches_is_an_input_error(server, path):
    with pytest.raises(InputError) as error:
        find_files(KEY, [f"{server.url}/{path}"])
    assert_message(error, r"sources\.web: .*\*\.jsonl.*")


def assert_message(error: pytest.ExceptionInfo, pattern: str) -> None:
    """The whole message is one line that matches."""
    assert re.fullmatch(pattern, str(error.value)), str(error.value)

"""Several processes write the same journal as one; threads simulate processes and meet where results are gathered."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from modeling_pure.errors import InputError
from modeling_pure.medqa import journal as journal_module
from modeling_pure.medqa import scorers
from modeling_pure.medqa.journal import Journal
from modeling_pure.medqa.scorers import Batches, NotFinite

BATCHES = [[4, 2], [0, 6], [1, 5], [3, 7], [8]]


class Evaluators:
    """Evaluates nine questions on several processes; records hold their batch."""

    def __init__(self, monkeypatch, folder, number: int, bad: int | None = None) -> None:
        self.folder, self.number, self.bad = folder, number, bad
        self.scored: list[list[int]] = []
        self.parts: dict[int, list] = {}
        self.barrier, self.local = threading.Barrier(number, timeout=20), threading.local()
        for module in (scorers, journal_module):
            monkeypatch.setattr(module, "PartialState", self.state)
        monkeypatch.setattr(scorers, "gather_object", self.gather)
        monkeypatch.setattr(journal_module, "broadcast_object_list", self.broadcast)

    def state(self) -> SimpleNamespace:
        rank = self.local.rank
        return SimpleNamespace(process_index=rank, num_processes=self.number, is_main_process=rank == 0)

    def gather(self, own: list) -> list:
        self.parts[self.local.rank] = own
        self.barrier.wait()
        found = [one for rank in range(self.number) for one in self.parts[rank]]
        self.barrier.wait()
        return found

    def broadcast(self, own: list) -> list:
        return [dict(one) for one in self.gather(own if self.local.rank == 0 else [])]

    def score(self, batch: list[int]) -> list[dict]:
        self.scored.append(batch)
        if self.bad in batch:
            raise NotFinite(self.bad)
        return [{"log_likelihoods": [i / 3], "batch": batch} for i in batch]

    def collect(self, rank: int) -> list[dict] | str:
        self.local.rank = rank
        journal = Journal(self.folder, {"model": "m"})
        try:
            return journal.collect(Batches(BATCHES, self.score))
        except InputError as error:
            return str(error)

    def run(self) -> list:
        with ThreadPoolExecutor(self.number) as pool:
            return list(pool.map(self.collect, range(self.number)))

    @property
    def file(self):
        (file,) = self.folder.glob("records-*")
        return file


@pytest.fixture
def alone(monkeypatch, tmp_path) -> Evaluators:
    evaluators = Evaluators(monkeypatch, tmp_path / "alone", 1)
    (evaluators.records,) = evaluators.run()
    return evaluators


@pytest.mark.parametrize("number", [2, 3, 7])
def test_processes_divide_whole_batches_and_write_in_the_order_of_one(number, alone, monkeypatch, tmp_path):
    evaluators = Evaluators(monkeypatch, tmp_path / "shared", number)
    assert evaluators.run() == [alone.records] * number
    assert sorted(evaluators.scored) == sorted(BATCHES)
    assert evaluators.file.read_bytes() == alone.file.read_bytes()


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("kept", [1, 2, 4, 9])
def test_any_number_of_processes_resumes_with_whole_batches(number, kept, alone, monkeypatch, tmp_path):
    """Also if a batch was half written: the whole batch is scored again."""
    folder = tmp_path / "stopped"
    folder.mkdir()
    lines = alone.file.read_bytes().splitlines(keepends=True)
    (folder / alone.file.name).write_bytes(b"".join(lines[: 1 + kept]) + lines[-1][:9])
    evaluators = Evaluators(monkeypatch, folder, number)
    assert evaluators.run() == [alone.records] * number
    assert sorted(evaluators.scored) == sorted(BATCHES[kept // 2 :] if kept < 9 else [])
    assert evaluators.file.read_bytes() == alone.file.read_bytes()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_failed_batch_stops_all_processes_and_keeps_earlier_records(number, alone, monkeypatch, tmp_path):
    evaluators = Evaluators(monkeypatch, tmp_path / "bad", number, bad=5)
    first, *others = evaluators.run()
    assert "row 5" in first
    assert others == [first] * (number - 1)
    assert evaluators.file.read_bytes() == b"".join(alone.file.read_bytes().splitlines(keepends=True)[:5])

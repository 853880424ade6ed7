"""An error that stops a script becomes one line and an exit code, also from a data-loader worker."""

import io
import sys

import pytest
from torch.utils.data import DataLoader, IterableDataset

from modeling_pure.data.remote import SourceFailed
from modeling_pure.errors import InputError, RunStopped, first_line, run_script


class Unreadable(IterableDataset):
    """Raises the error of a source that cannot be read."""

    def __init__(self, kind: type):
        self.kind = kind

    def __iter__(self):
        raise self.kind("sources.c4: cannot read 'x.parquet' after row 7")
        yield


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\nall of it", "all of it"),
        ("a reason\nand a page", "a reason"),
        ("2 errors:\n\tthe first\n\tb", "2 errors: the first"),
    ],
)
def test_the_first_line_has_the_reason(message, line):
    assert first_line(ValueError(message)) == line


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(("kind", "code"), [(InputError, 2), (RunStopped, 3), (SourceFailed, 3)])
def test_a_workers_error_is_one_line_too(kind, code, num_workers, capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: next(iter(DataLoader(Unreadable(kind), num_workers=num_workers))), "script")
    assert stop.value.code == code
    assert capsys.readouterr().err == "script: error: sources.c4: cannot read 'x.parquet' after row 7\n"


def test_an_ascii_terminal_gets_every_line(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])

    def main() -> None:
        print("Zürich")
        raise InputError("sources.Ωmega: no such file")

    with pytest.raises(SystemExit) as stop:
        run_script(main, "script")
    assert stop.value.code == 2
    for stream in streams:
        stream.flush()
    printed, error = (stream.buffer.getvalue().decode("ascii") for stream in streams)
    assert printed.startswith("Z")
    assert error.startswith("script: error: sources.")

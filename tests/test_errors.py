"""Bad input becomes one line, also where a data-loader worker met it."""

import pytest
from torch.utils.data import DataLoader, IterableDataset

from modeling_pure.errors import InputError, run_script


class Unreadable(IterableDataset):
    """Raises what a source raises that cannot be read."""

    def __iter__(self):
        raise InputError("sources.c4: cannot read 'x.parquet' after row 7")
        yield


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_workers_error_is_one_line_too(num_workers, capsys):
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: next(iter(DataLoader(Unreadable(), num_workers=num_workers))), "script")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "script: error: sources.c4: cannot read 'x.parquet' after row 7\n"

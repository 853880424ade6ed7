"""Figures on the pages come from the files of docs/results/ and from nowhere else."""

import json
from pathlib import Path

import pytest

from benchmarks.pages.__main__ import BLOCKS, PAGES, PLACE, filled
from benchmarks.pages.gpu import NOT_MEASURED, targets

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs/results"


@pytest.mark.parametrize("page", PAGES)
def test_pages_hold_what_the_files_say(page):
    text = (ROOT / page).read_text()
    assert filled(text, RESULTS) == text, "run: python -m benchmarks.pages"
    assert len(PLACE.findall(text)) == text.count("<!-- begin: ") == text.count("<!-- end: ") > 0


def test_every_block_has_a_place():
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    assert {name for _, name, _ in PLACE.findall(pages)} == set(BLOCKS)


def test_what_stood_in_a_place_does_not_stay():
    page = "before\n<!-- begin: optimizers -->\n99 %\n<!-- end: optimizers -->\nafter\n"
    assert filled(page, Path("nowhere")) == page.replace("99 %", NOT_MEASURED.format(part="optimizers"))


def test_every_file_of_results_is_json_and_named_on_the_page_or_read_for_it():
    for file in RESULTS.glob("*.json"):
        assert json.loads(file.read_text())
    assert not list(RESULTS.glob("*-tiny*"))


def test_targets_are_read_from_the_benchmarks_own_rows(tmp_path):
    row = {"model": "ours, compiled", "rows": 16, "row_length": 2048}
    rows = [{**row, "failed": "no such kernel"}, {**row, "tokens_per_second": 151_234, "peak_memory_gb": 33.3}]
    (tmp_path / "speed-pretrain-card.json").write_text(json.dumps(rows))
    timed = [
        ("rollout", "ours", 1.0),
        ("rollout", "stock TRL", 4.2),
        ("step", "ours", 2.0),
        ("step", "stock TRL", 5.0),
    ]
    rows = [{"what": what, "model": model, "seconds": seconds} for what, model, seconds in timed]
    (tmp_path / "speed-grpo-card.json").write_text(json.dumps(rows))
    assert [line.split(" | ")[-1] for line in targets(tmp_path).splitlines()] == [
        *("card |", "--- |", "151,234 |", "33.3 |", "4.2 |", "2.5 |")
    ]

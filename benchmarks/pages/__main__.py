"""Puts what the JSON files of docs/results/ say on the pages that people read, and nothing else there.

    python -m benchmarks.pages [--results docs/results]

A page has places between `<!-- begin: NAME -->` and `<!-- end: NAME -->`; what stands there is written anew from the
files, and a figure that has no file is said to be not measured. A test runs this and finds every page as it was.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from modeling_pure.atomic import write_atomically

from . import cpu, gpu

PAGES = ("README.md", "docs/results/README.md", "docs/GRPO.md", "docs/TRAINING.md")
BLOCKS: dict[str, Callable[[Path], str]] = {
    "demo": cpu.demo,
    "demo-beside": cpu.demo_beside,
    "demo-baseline": cpu.demo_baseline,
    "demo-ablation": cpu.demo_ablation,
    "peers": cpu.peers,
    "headline": gpu.headline,
    "targets": gpu.targets,
    "line": gpu.line,
    "optimizers": gpu.optimizers,
    "ablation": gpu.ablation,
    "speed-pretrain": gpu.table_of("speed-pretrain", "speed"),
    "speed-grpo": gpu.table_of("speed-grpo", "speed"),
    "profile": gpu.table_of("profile", "speed"),
    "exactness": gpu.table_of("exactness", "exactness"),
}
PLACE = re.compile(r"(<!-- begin: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.DOTALL)


def main() -> None:
    """Write all pages anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder with the JSON files")
    results = parser.parse_args().results
    for page in map(Path, PAGES):
        before = page.read_text()
        after = filled(before, results)
        write_atomically(page, after)
        print(f"{page}: {'as it was' if after == before else 'written'}")


def filled(page: str, results: Path) -> str:
    """A page with all its places written anew."""
    return PLACE.sub(lambda place: f"{place[1]}{BLOCKS[place[2]](results).strip()}\n{place[3]}", page)


if __name__ == "__main__":
    main()

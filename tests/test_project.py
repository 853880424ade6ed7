"""The project's own files: links of documents, hooks before a commit, the check of a release."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.mutants.faults import FAULTS

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FOLDERS = (".github", "deploy", "docs", "examples", "modeling_pure", "recipes")
MARKDOWN = sorted(ROOT.glob("*.md")) + sorted(file for name in FOLDERS for file in (ROOT / name).rglob("*.md"))


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)
    headings = [
        re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)", prose, re.M)
    ]
    return {f"{name}-{n}" if n else name for i, name in enumerate(headings) for n in [headings[:i].count(name)]}


def test_anchors_are_those_of_github():
    assert anchors("# A `b.c`, d\n```bash\n# no\n```\n## x_y\n## x_y\n") == {"a-bc-d", "x_y", "x_y-1"}


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    prose = re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"\w+:", link):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def test_hooks_are_the_commands_of_make_lint():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    linted = {re.sub(r" \.$", "", line.strip().replace("$(BIN)", ".venv/bin")) for line in recipe.splitlines()}
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert linted <= {re.sub(r" \.$", "", hook["entry"]) for hook in local["hooks"]}


@pytest.mark.parametrize(
    ("tag", "heading", "ok"),
    [
        (f"v{VERSION}", f"## [{VERSION}] - 2026-12-01", True),
        (f"v{VERSION}", f"## [{VERSION}] - not released", False),
        (f"v{VERSION}", "## [0.0.1] - 2026-12-01", False),
        ("v99.0.0", "## [99.0.0] - 2026-12-01", False),
    ],
)
def test_a_release_needs_the_version_and_a_dated_section(tag, heading, ok, tmp_path):
    steps = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]["build"]["steps"]
    (check,) = [step["run"] for step in steps if "notes.md" in step.get("run", "")]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text(
        f"# C\n\n## [Unreleased]\n\nz\n\n{heading}\n\nx\n\n## [0.0.0] - 2026-01-01\n\ny\n"
    )
    command = ["bash", "-e", "-o", "pipefail", "-c", check]
    code = subprocess.run(command, cwd=tmp_path, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"}).returncode
    assert (code == 0) == ok
    if ok:
        assert (tmp_path / "notes.md").read_text() == "\nx\n\n"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.what)
def test_a_fault_can_be_planted(fault):
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert all((ROOT / word).exists() for word in fault.tests.split() if word.startswith("tests/"))

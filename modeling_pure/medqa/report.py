"""An evaluation for people: `report.md`, a `report.html` that needs no other file, and a table in the terminal."""

import base64
from pathlib import Path

from jinja2 import Environment

from ..atomic import write_atomically
from ..console import print_table
from .figures import draw
from .schema import Results
from .sections import SHORT_HEAD, Section, build, short_rows, verdict

PLOTS_FILE, MARKDOWN_FILE, HTML_FILE = "plots.png", "report.md", "report.html"


def write_report(folder: Path, results: Results) -> None:
    """Write the picture and both reports into an evaluation's folder."""
    picture, title, sections = draw(results), f"{results['data']['title']}: {results['model']['name']}", build(results)
    write_atomically(folder / PLOTS_FILE, picture)
    write_atomically(folder / MARKDOWN_FILE, as_markdown(title, sections))
    write_atomically(folder / HTML_FILE, as_html(title, sections, picture))


def print_report(results: Results) -> None:
    """The accuracy beside what it is compared with, and the verdict."""
    print_table(f"{results['data']['title']}: {results['model']['name']}", SHORT_HEAD, short_rows(results))
    print(*verdict(results), sep="\n")


def as_markdown(title: str, sections: list[Section]) -> str:
    """The report as Markdown, with the picture beside it."""
    blocks = [f"# {title}"]
    for number, section in enumerate(sections):
        blocks += [f"## {section.title}", *section.paragraphs]
        if section.rows:
            blocks.append(markdown_table(section.head, section.rows))
        if number == 0:
            blocks.append(f"![accuracy, calibration and answers]({PLOTS_FILE})")
    return "\n\n".join(blocks) + "\n"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table of GitHub's Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(value.replace("|", "\\|") for value in line) + " |" for line in lines)


def as_html(title: str, sections: list[Section], picture: bytes) -> str:
    """The report as one page: style and picture are inside it."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return template.render(title=title, sections=sections, picture=base64.b64encode(picture).decode())


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
td, th { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
img { max-width: 100% }
</style>
<h1>{{ title }}</h1>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for paragraph in section.paragraphs %}
<p>{{ paragraph }}</p>
{% endfor %}
{% if section.rows %}
<table>
<tr>{% for name in section.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in section.rows %}
<tr>{% for value in row %}<td>{{ value.strip("*") }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endif %}
{% if loop.first %}
<img alt="accuracy, calibration and answers" src="data:image/png;base64,{{ picture }}">
{% endif %}
{% endfor %}
</html>
"""

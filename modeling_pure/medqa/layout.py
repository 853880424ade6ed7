"""Sections of a report as Markdown, and as a page that needs no other file."""

import base64
from dataclasses import dataclass, field

from jinja2 import Environment


@dataclass
class Section:
    """A heading, paragraphs, and a table.

    Attributes:
        of_words: whether the table holds words to be wrapped, not numbers.
    """

    title: str
    paragraphs: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    of_words: bool = False


def as_markdown(title: str, sections: list[Section], picture: str) -> str:
    """Sections as Markdown; the picture, a file's name, follows the first."""
    blocks = [f"# {title}"]
    for number, section in enumerate(sections):
        blocks += [f"## {section.title}", *section.paragraphs]
        if section.rows:
            blocks.append(markdown_table(section.head, section.rows))
        if number == 0:
            blocks.append(f"![accuracy, calibration and answers]({picture})")
    return "\n\n".join(blocks) + "\n"


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """A table of GitHub's Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(value.replace("|", "\\|") for value in line) + " |" for line in lines)


def as_html(title: str, sections: list[Section], pictures: dict[str, bytes]) -> str:
    """Sections as a page for any width, light or dark, and for paper.

    Args:
        pictures: PNGs by the text that stands for them; they follow the first section.
    """
    encoded = {text: base64.b64encode(picture).decode() for text, picture in pictures.items()}
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    return page.render(title=title, sections=sections, pictures=encoded)


# In the dark pictures are inverted: white becomes the background, and colours keep their hue.
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --paper: #fff; --ink: #222; --line: #ddd }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; line-height: 1.25 }
h1, p { overflow-wrap: anywhere }
.scroll { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom }
td { white-space: nowrap }
td:first-child, th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--paper) }
td:first-child { white-space: normal; min-width: 6rem }
.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6rem; vertical-align: top }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem }
img { width: 100% }
@media (prefers-color-scheme: dark) {
  :root { --paper: #1f1f1f; --ink: #ddd; --line: #444 }
  img { filter: invert(.88) hue-rotate(180deg) }
}
@media print {
  :root { --paper: #fff; --ink: #000; --line: #ccc }
  body { font-size: 9pt; margin: 0; max-width: none }
  img { filter: none }
  .scroll { overflow: visible }
  .plots { grid-template-columns: 1fr 1fr }
  td, th { padding: .15rem .4rem }
  h2 { break-after: avoid }
  tr, img { break-inside: avoid }
}
</style>
<h1>{{ title }}</h1>
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for paragraph in section.paragraphs %}
<p>{{ paragraph }}</p>
{% endfor %}
{% if section.rows %}
<div class="scroll" role="region" aria-label="{{ section.title }}" tabindex="0">
<table{% if section.of_words %} class="words"{% endif %}>
<tr>{% for name in section.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in section.rows %}
<tr>{% for value in row %}<td>{{ value.strip("*") }}</td>{% endfor %}</tr>
{% endfor %}
</table>
</div>
{% endif %}
{% if loop.first %}
<div class="plots">
{% for text, picture in pictures.items() %}
<img alt="{{ text }}" src="data:image/png;base64,{{ picture }}">
{% endfor %}
</div>
{% endif %}
{% endfor %}
</html>
"""

"""A report as a page: tables scroll by themselves, pictures travel inside it, and it can be read in the dark."""

import base64
from html.parser import HTMLParser

import pytest

from modeling_pure.medqa.layout import Section, as_html, as_markdown

SECTIONS = [
    Section("First", ["1 < 2"], ["", "p"], [["**model**", "6.5e-150"], ["a | b", "<b>"]]),
    Section("Second", ["No table."]),
    Section("Third", [], ["", ""], [["sha256", "0" * 64]], of_words=True),
]
PICTURES = {"accuracies": b"one", 'of "slices"': b"two"}


class Page(HTMLParser):
    """The elements of a page: the classes of those around each table, and the attributes of each picture."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.around_tables: list[set[str]] = []
        self.pictures: list[dict[str, str]] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.links += [given[name] for name in ("src", "href", "srcset") if name in given]
        if tag == "table":
            self.around_tables.append({kind for _, kinds in self.open for kind in kinds.split()})
        if tag == "img":
            self.pictures.append(given)
        elif tag != "meta":
            self.open.append((tag, given.get("class", "")))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ("td", "th"):
            self.cells.append(data)


@pytest.fixture(scope="module")
def page() -> tuple[str, Page]:
    text = as_html("A & B", SECTIONS, PICTURES)
    return text, Page(text)


def test_every_table_scrolls_by_itself(page):
    text, found = page
    assert ["scroll" in kinds for kinds in found.around_tables] == [True, True]
    styles = text.split("<style>")[1].split("</style>")[0].replace(" ", "")
    assert "overflow-x:auto" in styles.split(".scroll{")[1].split("}")[0]
    assert "white-space:nowrap" in styles.split("\ntd{")[1].split("}")[0]  # p-values


def test_pictures_have_texts_and_are_inside_the_page(page):
    _, found = page
    assert [picture["alt"] for picture in found.pictures] == [*PICTURES]
    data = [base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")) for picture in found.pictures]
    assert data == [*PICTURES.values()]
    assert all(link.startswith("data:") for link in found.links)


@pytest.mark.parametrize("rule", ["(prefers-color-scheme: dark)", "print"])
def test_a_page_has_rules_for_the_dark_and_for_paper(page, rule):
    assert f"@media {rule}" in page[0]


def test_texts_are_escaped(page):
    text, found = page
    assert {"model", "a | b", "<b>", "6.5e-150"} <= {*found.cells}
    assert "1 &lt; 2" in text
    markdown = as_markdown("A & B", SECTIONS, "plots.png")
    assert r"| a \| b | <b> |" in markdown
    assert markdown.count("](plots.png)") == 1

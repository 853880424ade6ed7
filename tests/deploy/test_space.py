"""The Space: its files fit together, and its page in a real browser gives what the scorers give."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.console import DISCLAIMER
from modeling_pure.medqa.formats import format_prompt, teach_formats, text_continuation
from modeling_pure.medqa.log_likelihood import (
    continuation_log_likelihoods,
    label_log_likelihoods,
    text_log_likelihoods,
)
from modeling_pure.medqa.questions import Question
from modeling_pure.medqa.tasks import MEDQA
from tests.conftest import question_row, write_jsonl
from tests.deploy.conftest import DEPLOY, ROOT
from tests.examples.conftest import write_answering_model
from tests.processes import free_port, run
from tests.scripts.conftest import SHAPE

SPACE = DEPLOY / "space"
APP = SPACE / "app.py"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = [name for name in ("gradio", "selenium") if not find_spec(name)]
MISSING += [name for name, path in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if not path]
in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: make space"),
]


def pins(path: Path) -> dict[str, str]:
    """The exact versions of a requirements file."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.M))


def test_the_space_runs_what_is_tested():
    header = yaml.safe_load(SPACE.joinpath("README.md").read_text().split("---")[1])
    tested = pins(ROOT / "requirements.txt") | pins(ROOT / "requirements-space.txt")
    assert header["sdk"] == "gradio"
    assert str(header["sdk_version"]) == tested["gradio"]
    assert (SPACE / header["app_file"]).is_file()
    of_space = pins(SPACE / "requirements.txt")
    assert of_space
    assert of_space.items() <= tested.items()
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["space"]
    assert [re.split(r"\W", one)[0] for one in extra] == ["gradio"]


def test_the_examples_are_questions():
    assert len(MEDQA.read("EXAMPLES", str(SPACE / "examples.jsonl"))) > 2


def rotations(number: int) -> list[tuple[int, ...]]:
    """Orders of options in which each takes each place once."""
    return [(*range(i, number), *range(i)) for i in range(number)]


class Page:
    """The page in headless Chromium.

    Args:
        address: of the app's server.
    """

    def __init__(self, address: str) -> None:
        from selenium.webdriver import Chrome, ChromeOptions
        from selenium.webdriver.chrome.service import Service
        from selenium.webdriver.support.ui import WebDriverWait

        options = ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=600,500"):
            options.add_argument(argument)
        options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # no name is looked up
        self.address, self.browser = address, Chrome(options, Service(DRIVER))
        self.wait = WebDriverWait(self.browser, 120)

    def open(self) -> None:
        """Load the page afresh."""
        self.browser.get(self.address)
        self.all("#examples button")

    def all(self, selector: str) -> list:
        """The elements of a selector, once there are some."""
        return self.wait.until(lambda browser: browser.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        """The text of an element, once it is there."""
        return self.all(selector)[0].text

    def type(self, question: str, options: list[str]) -> None:
        """Fill in a question, as quickly as a paste."""
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        for selector, text in (("#question", question), ("#options", "\n".join(options))):
            self.browser.execute_script(script, self.all(f"{selector} textarea")[0], text)

    def click(self, selector: str, number: int = 0) -> None:
        """Click on an element, away from the edge that the disclaimer covers."""
        element = self.all(selector)[number]
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def probabilities(self) -> torch.Tensor:
        """Those that are shown, unrounded."""
        return torch.tensor([float(one.get_attribute("value")) for one in self.all("#probabilities data")])


@pytest.fixture(scope="module")
def examples(questions) -> list[Question]:
    """Three questions that have the model's answer among their options."""
    return [question for question in questions if "aspirin" in question.options[1:]][:3]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer, questions) -> Path:
    """A model that gives a reason, and an answer whose letter is rarely that of its text."""
    folder = tmp_path_factory.mktemp("answering")
    write_answering_model(folder, tokenizer, questions, "reasoned", " So.\nAnswer: aspirin (A)", steps=60)
    config = PureConfig.from_pretrained(folder)
    teach_formats(config, ["text", "reasoned"])
    config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def page(model_folder, examples, tmp_path_factory) -> Iterator[Page]:
    """The page of an app of its own process, with a small model."""
    folder, port = tmp_path_factory.mktemp("space"), free_port()
    file = write_jsonl(folder / "examples.jsonl", [question_row(question) for question in examples])
    settings = {"MODEL": str(model_folder), "EXAMPLES": str(file), "GRADIO_SERVER_PORT": str(port)}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(folder / "log", "w") as log:
        app = subprocess.Popen(
            [sys.executable, APP],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, **settings},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}/"
    while True:
        assert app.poll() is None, (folder / "log").read_text()[-3000:]
        try:
            with urlopen(address, timeout=5):
                break
        except URLError:
            time.sleep(0.2)
    page = Page(address)
    yield page
    page.browser.quit()
    app.terminate()
    app.wait()


@pytest.fixture(scope="module")
def model(model_folder) -> PureForCausalLM:
    return PureForCausalLM.from_pretrained(model_folder).eval()


class TestPage:
    """In the browser."""

    pytestmark = in_browser

    def test_an_example_is_asked_and_answered(self, page, model, tokenizer, examples):
        question, orders = examples[1], [*permutations(range(4))]
        page.open()
        page.click("#examples button", 1)
        page.wait.until(lambda _: page.all("#question textarea")[0].get_attribute("value") == question.question)
        page.click("#ask")
        shown = page.probabilities()
        scores = text_log_likelihoods(model, tokenizer, [question.reordered(order) for order in orders])
        direct = torch.zeros(4)
        for order, of_places in zip(orders, scores.softmax(-1), strict=True):
            direct[list(order)] += of_places / len(orders)
        assert shown.sum().item() == pytest.approx(1, abs=1e-6)
        assert torch.allclose(shown, direct, atol=1e-5)
        assert shown.max() - shown.min() > 0.01

        completion = page.all("#completion pre")[0].get_attribute("textContent")
        assert completion == "Reasoning: So.\nAnswer: aspirin (A)"
        place = question.options.index("aspirin")
        assert f" {'ABCD'[place]}. aspirin; " in page.text("#completion p")

    def test_the_disclaimer_stays_and_nothing_comes_from_elsewhere(self, page):
        page.open()
        (disclaimer,) = page.all("#disclaimer p")
        assert disclaimer.text == DISCLAIMER
        assert page.browser.execute_script("return document.body.scrollHeight > 1.5 * innerHeight")
        for place in ("0", "document.body.scrollHeight"):
            page.browser.execute_script(f"scrollTo(0, {place})")
            box = page.browser.execute_script("return arguments[0].getBoundingClientRect()", disclaimer)
            assert 0 <= box["top"] < box["bottom"] <= page.browser.execute_script("return innerHeight")
        loaded = page.browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert loaded
        assert all(name.startswith((page.address, "data:")) for name in loaded)

    @pytest.mark.parametrize(
        ("question", "options", "key"),
        [
            (" ", ["a", "b"], "question"),
            ("Which?", ["a", " "], "options"),
            ("Which?", [*"abcdefghijk"], "options"),
            ("fever " * 300, ["a", "b"], "question"),
        ],
    )
    def test_what_cannot_be_asked_is_one_line(self, page, question, options, key):
        page.open()
        page.type(question, options)
        page.click("#ask")
        message = page.text("#message [role=alert]")
        assert message.startswith(f"{key}: ")
        assert len(message.splitlines()) == 1
        assert not page.browser.find_elements("css selector", "#probabilities data, #completion pre")

    def test_six_options_take_six_rotations(self, page, model, tokenizer):
        options, direct = tuple("uvwxyz"), torch.zeros(6)
        page.open()
        page.type("Which?", options)
        page.click("#ask")
        texts = [*map(text_continuation, options)]
        for order in rotations(6):
            prompt = format_prompt(Question("Which?", options, 0).reordered(order))
            (scored,) = continuation_log_likelihoods(model, tokenizer, [prompt], [texts])
            direct += torch.tensor(scored.sums).softmax(0)
        assert torch.allclose(page.probabilities(), direct / 6, atol=1e-5)

    def test_markup_is_text(self, page):
        page.open()
        page.type("Which?", ["<b>x</b>", "${1 + 1} {{value}}"])
        page.click("#ask")
        shown = [one.text for one in page.all("#probabilities li span")]
        assert shown == ["A. <b>x</b>", "B. ${1 + 1} {{value}}"]

    @pytest.mark.parametrize("name", ["", "."])
    def test_what_is_no_model_is_one_line(self, name):
        error = run(APP, expect=2, MODEL=name, PYTHONPATH=f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}").stderr
        (line,) = error.splitlines()
        assert line.startswith("app.py: error: MODEL: ")


class TestExaminer:
    """In this process."""

    pytestmark = in_browser

    def test_a_foreign_model_is_asked_by_letter(self, tmp_path, tokenizer):
        app = runpy.run_path(str(APP))
        shape = {name: SHAPE[name] for name in SHAPE if name != "num_key_value_heads"}
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.1, eos_token_id=0)).eval()
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        question, orders = Question("Which?", tuple("uvwxyz"), 0), rotations(6)
        examiner = app["Examiner"].load(str(tmp_path))
        found = examiner.score(question, app["orders_of"](6), app["gr"].Progress())
        prompts = [format_prompt(question.reordered(order)) for order in orders]
        scores = label_log_likelihoods(model, tokenizer, prompts, "ABCDEF").softmax(-1)
        for order, probabilities, of_places in zip(orders, found, scores, strict=True):
            assert torch.allclose(torch.tensor(probabilities)[list(order)].float(), of_places, atol=1e-5)
        assert examiner.generate(question)["completions"]

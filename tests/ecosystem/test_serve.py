"""`transformers serve` in a separate process: the documented requests get an option, or fail as documented."""

import json
import subprocess
import time
from collections.abc import Iterator
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from modeling_pure.medqa.formats import format_prompt, parse_answer
from tests.ecosystem.conftest import ROOT, SERVE, command, needs_runtimes, post, python_block
from tests.processes import free_port

pytestmark = needs_runtimes


def start(line: str, work, *options: str, **replaced: str) -> subprocess.Popen:
    """Start a server."""
    words = [*command(line, work, **replaced), *options]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def address(work) -> Iterator[str]:
    """Of the server that the document's command starts, on another port."""
    port = str(free_port())
    address, server = f"http://localhost:{port}", start(SERVE, work, **{"8000": port})
    while True:
        assert server.poll() is None, server.stdout.read()[-3000:]
        try:
            with urlopen(f"{address}/health", timeout=5):
                break
        except URLError:
            time.sleep(0.2)
    yield address
    server.terminate()
    server.communicate()


def test_free_text_is_that_of_generate(address, pure, gpt2, questions):
    prompt = format_prompt(questions[0])
    ids = gpt2(prompt, return_tensors="pt").input_ids
    expected = gpt2.decode(pure.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0}
    assert post(f"{address}/v1/completions", body)["choices"][0]["text"] == expected


def test_the_documented_request_gets_an_option(address, likeliest_letter, questions):
    names = {"json": json, "format_prompt": format_prompt, "letters": ["317", "347", "327", "360"]}
    block = python_block(
        'settings = {"max_new_tokens": 1, "do_sample": False, "sequence_bias": [[[int(id)], 100.0] for id in letters]}'
    )
    said = set()
    for question in questions[:5]:
        exec(block, names | {"question": question}, names)
        text = post(f"{address}/v1/completions", names["body"])["choices"][0]["text"]
        said.add(parse_answer(text, question.options).option)
        assert parse_answer(text, question.options).option == likeliest_letter(format_prompt(question))
    assert len(said) > 1


def test_logit_bias_is_ignored_and_chat_fails(address, questions):
    prompt = format_prompt(questions[0])
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0}
    plain, biased = (post(f"{address}/v1/completions", body | more) for more in ({}, {"logit_bias": {"317": 100}}))
    assert plain["choices"][0]["text"] == biased["choices"][0]["text"] != " A"
    with pytest.raises(HTTPError, match="500"):
        post(f"{address}/v1/chat/completions", {"messages": [{"role": "user", "content": prompt}]})


def test_a_pure_checkpoint_is_not_served(work):
    """Once this fails, the document can say that the checkpoint itself is served."""
    server = start(SERVE.replace("runs/llama", "runs/grpo"), work, "--trust-remote-code", **{"8000": str(free_port())})
    said, _ = server.communicate(timeout=120)
    assert server.returncode == 1
    assert "has no attribute PureForCausalLM" in said

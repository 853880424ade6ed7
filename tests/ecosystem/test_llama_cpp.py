"""The GGUF route with llama.cpp's own converter and server: Pure -> Llama -> GGUF, and the same tokens come out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.medqa.formats import format_prompt
from tests.ecosystem.conftest import (
    CONVERT,
    CONVERT_Q8,
    EXPORT,
    export_here,
    needs_runtimes,
    post,
    python_block,
    run,
)
from tests.processes import free_port

pytestmark = needs_runtimes


@contextmanager
def served(command: str, work: Path) -> Iterator[str]:
    """The address of a llama.cpp server that has loaded what the document's command made."""
    import xllamacpp

    converter = Path(os.environ["RUNTIMES"]).resolve() / "llama.cpp" / "convert_hf_to_gguf.py"
    run(command, work, **{"convert_hf_to_gguf.py": str(converter)})
    params = xllamacpp.CommonParams()
    params.model.path = str(work / command.split()[-1])
    params.port, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = free_port(), 512, 1, 1
    # By default keys and values are rounded to 16 bits, which moves log-probabilities by about 0.01.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    yield server.listening_address
    del server


@pytest.fixture(scope="module", params=[CONVERT, CONVERT_Q8], ids=["f32", "q8_0"])
def address(work, request) -> Iterator[str]:
    """Of a server of the document's GGUF."""
    with served(request.param, work) as address:
        yield address


@pytest.fixture
def eight_bits(request) -> bool:
    return "q8_0" in request.node.name


def test_text_becomes_the_same_tokens(address, gpt2, questions):
    texts = [format_prompt(questions[0]), "A 21-year-old's  naïve\n\n\tβ-blocker, 5 mg?", " C. Nitrofurantoin"]
    for text in texts:
        assert post(f"{address}/tokenize", {"content": text, "add_special": True})["tokens"] == gpt2(text).input_ids


def greedy_tokens(model: Any, gpt2: Any, address: str, text: str) -> tuple[list[int], list[int]]:
    """24 greedy tokens of transformers, and of a server."""
    prompt = gpt2(text, return_tensors="pt").input_ids
    expected = model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :].tolist()
    body = {"prompt": text, "n_predict": 24, "temperature": 0, "return_tokens": True}
    return expected, post(f"{address}/completion", body)["tokens"]


def test_normalised_queries_and_keys_are_those_of_qwen3(pure, gpt2, questions, tmp_path):
    config = PureConfig(**{**pure.config.to_dict(), "qk_norm": True})
    model = PureForCausalLM(config).eval()
    model.load_state_dict(pure.state_dict())
    for saved in (model, gpt2):
        saved.save_pretrained(tmp_path / "runs" / "grpo")
    export_here(EXPORT.replace("llama", "qwen3"), tmp_path)
    with served(CONVERT.replace("runs/llama", "runs/qwen3"), tmp_path) as address:
        expected, found = greedy_tokens(model, gpt2, address, format_prompt(questions[0]))
        assert found == expected != greedy_tokens(pure, gpt2, address, format_prompt(questions[0]))[0]


def test_greedy_tokens_are_those_of_transformers(address, eight_bits, pure, gpt2, questions):
    for question in questions[:3]:
        expected, found = greedy_tokens(pure, gpt2, address, format_prompt(question))
        assert len(expected) == 24
        assert len(set(expected)) > 12
        # In eight bits near ties fall otherwise, and what follows one is another text.
        assert found[:1] == expected[:1] if eight_bits else found == expected


def test_log_probabilities_are_those_of_transformers(address, eight_bits, pure, gpt2, questions):
    for question in questions[:5]:
        with torch.no_grad():
            logits = pure(gpt2(format_prompt(question), return_tensors="pt").input_ids).logits[0, -1]
        body = {"prompt": format_prompt(question), "n_predict": 1, "temperature": 0, "n_probs": 20}
        found = post(f"{address}/completion", body)["completion_probabilities"][0]["top_logprobs"]
        expected = logits.log_softmax(-1)[[one["id"] for one in found]]
        theirs = torch.tensor([one["logprob"] for one in found])
        assert len(found) == 20
        torch.testing.assert_close(theirs, expected, rtol=0, atol=0.4 if eight_bits else 1e-4)


def test_the_documented_request_gets_an_option(address, eight_bits, likeliest_letter):
    names: dict = {}
    exec(python_block("import json").replace("http://localhost:8000", address), names)
    assert names["answer"] in range(4)
    if not eight_bits:
        assert names["answer"] == likeliest_letter(format_prompt(names["question"]))


def test_spare_ids_are_not_suppressed_here(address):
    """llama.cpp does not read generation_config.json; a spare id that is likely is sampled, and has no text."""
    body = {"prompt": "A", "max_tokens": 3, "temperature": 0, "logit_bias": {"50300": 100}}
    answer = post(f"{address}/v1/completions", body)
    assert answer["choices"][0]["text"] == ""
    assert answer["usage"]["completion_tokens"] == 3


def test_the_documented_server_answers(work, address, questions):
    """With llama.cpp's defaults, compared with the other server."""
    port, names = str(free_port()), {}
    block = python_block("import xllamacpp").replace("runs/pure.gguf", str(work / "runs" / "pure.gguf"))
    exec(block.replace("8000", port), names)
    body = {"prompt": format_prompt(questions[0]), "max_tokens": 4, "temperature": 0}
    answers = [post(f"{one}/v1/completions", body) for one in (f"http://localhost:{port}", address)]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [4, 4]
    names.clear()

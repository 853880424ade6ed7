"""The two programs, started as in their README, match the same steps done by hand."""

import re

import pytest
import torch

from examples import generate, score_question
from modeling_pure import PureForCausalLM
from modeling_pure.console import DISCLAIMER
from tests.examples.conftest import command_with
from tests.processes import run


@pytest.fixture(scope="module")
def model(model_folder):
    return PureForCausalLM.from_pretrained(model_folder).eval()


@torch.no_grad()
def next_log_probs(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def text_log_prob(model, tokenizer, prompt: str, text: str) -> float:
    """Of a text after a prompt, token by token."""
    begin, ids = len(tokenizer(prompt).input_ids), tokenizer(prompt + text).input_ids
    return sum(float(next_log_probs(model, ids[:place])[ids[place]]) for place in range(begin, len(ids)))


def test_generate_decodes_greedily(model, model_folder, tokenizer):
    *command, _, text = command_with("examples.generate")
    printed = run(*command, model_folder, text).stdout
    ids = tokenizer(text).input_ids
    begin = len(ids)
    while len(ids) < begin + 40 and (len(ids) == begin or ids[-1] != tokenizer.eos_token_id):
        ids.append(int(next_log_probs(model, ids)[: len(tokenizer) - 1].argmax()))  # not the pad token, which is last
    assert len(ids) > begin
    assert printed == f"{tokenizer.decode(ids, skip_special_tokens=True)}\n{DISCLAIMER}\n"


def test_score_question_gives_the_four_probabilities(model, model_folder, tokenizer):
    *command, _, question, a, b, c, d = command_with("examples.score_question")
    printed = run(*command, model_folder, question, a, b, c, d).stdout
    prompt = f"Question: {question}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"
    letters = tokenizer([" A", " B", " C", " D"], return_tensors="pt").input_ids[:, 0]
    by_letter = next_log_probs(model, tokenizer(prompt).input_ids)[letters]
    by_text = torch.tensor([text_log_prob(model, tokenizer, prompt, f" {option} (") for option in (a, b, c, d)])
    found = [float(share) for share in re.findall(r"([\d.]+)%", printed)]
    pairs = torch.stack([by_letter.softmax(0), by_text.softmax(0)], dim=1)
    expected = [*pairs.flatten().tolist(), by_letter.exp().sum().item()]
    assert found == pytest.approx([100 * share for share in expected], abs=0.006)
    assert max(found[:8:2]) > 30
    assert max(found[1:8:2]) > 30
    assert printed.endswith(f"{DISCLAIMER}\n")
    assert [line.split()[:2] for line in printed.splitlines() if line[:3] in ("A. ", "D. ")] == [["A.", a], ["D.", d]]


@pytest.mark.parametrize(("program", "more"), [(generate, ["?"]), (score_question, ["?", *"abcd"])])
def test_what_is_no_model_is_one_line(program, more, tmp_path, train_here):
    error = train_here(tmp_path, *more, script=program, expect=2).err
    assert re.search(rf"error: model: '{tmp_path}' .*config\.json", error)
    assert len(error.splitlines()) == 1

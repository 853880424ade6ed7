"""Validation against brute force: each source's loss, bits per byte, texts outside the mixture, dev accuracy."""

import json
import math

import numpy as np
import pytest
import torch

from modeling_pure.errors import InputError
from modeling_pure.medqa.formats import teach_formats
from modeling_pure.medqa.log_likelihood import letter_log_likelihoods, text_log_likelihoods
from modeling_pure.medqa.questions import read_questions, select_split
from modeling_pure.tokenizer import load_tokenizer
from modeling_pure.training.validation import loss_metrics, token_bytes


def brute_force(trainer, rows: list[dict]) -> tuple[float, float]:
    """Mean nats of sequences and bits per byte of their text, token by token from plain logits."""
    tokenizer, nats, text_nats, text_bytes = trainer.tokenizer, [], 0.0, 0
    special = set(tokenizer.all_special_ids)
    for row in rows:
        ids = torch.from_numpy(row["input_ids"]).long()
        with torch.no_grad():
            scores = trainer.model.eval()(ids[None]).logits[0].log_softmax(-1)
        for place in range(1, len(ids)):
            token = int(ids[place])
            nats.append(-scores[place - 1, token].item())
            if token not in special:
                text_nats += nats[-1]
                text_bytes += len(tokenizer.convert_ids_to_tokens(token))  # a character per byte
    return sum(nats) / len(nats), text_nats / math.log(2) / text_bytes


@pytest.fixture
def outside(tmp_path) -> dict:
    """Text outside the mixture."""
    path = tmp_path / "wiki.jsonl"
    words = ["Zürich", "liegt", "am", "See", "statin", "naïve", "Ωmega"]
    path.write_text("".join(json.dumps({"text": " ".join(words * (i % 5 + 20))}) + "\n" for i in range(20)))
    return {"wiki": {"path": str(path)}}


def test_every_metric_equals_brute_force(make_trainer, outside):
    trainer = make_trainer(validation_sources=outside, per_device_eval_batch_size=3)
    metrics = trainer.evaluate()
    rows = trainer.eval_dataset
    inside = [row for row in rows if row["source"] != "wiki"]
    assert len(inside) == 10
    assert len(rows) > 10
    groups = {f"/{name}": [row for row in rows if row["source"] == name] for name in ("c4", "wiki")}
    for suffix, which in {"": inside, **groups}.items():
        loss, bits = brute_force(trainer, which)
        assert metrics[f"eval_loss{suffix}"] == pytest.approx(loss, rel=1e-5)
        assert metrics[f"eval_bits_per_byte{suffix}"] == pytest.approx(bits, rel=1e-5)
    ratio = math.exp(metrics["eval_loss/wiki"]) / math.exp(metrics["eval_loss"])
    assert {name: value for name, value in metrics.items() if "ratio" in name} == {
        "eval_perplexity_ratio/wiki": pytest.approx(ratio)
    }
    assert trainer.state.log_history[-1]["eval_loss/wiki"] == metrics["eval_loss/wiki"]


def test_means_are_of_tokens_and_not_of_sources():
    rows = [{"input_ids": np.zeros(3, int), "source": "a"}] * 3 + [{"input_ids": np.zeros(3, int), "source": "b"}]
    nats = torch.tensor([[2.0, 2.0]] * 3 + [[10.0, 10.0]])
    metrics = loss_metrics(rows, nats, ["a", "b"], None)
    assert metrics == {"loss": 16 / 8, "loss/a": 1.0, "loss/b": 5.0}


def test_bytes_of_tokens_add_up_to_the_text(tokenizer_folder):
    tokenizer = load_tokenizer("t", str(tokenizer_folder))
    sizes = token_bytes(tokenizer, 512)
    text = "fever and naïve Ωmega, 漢字 \t\n 🤒 statin"
    assert sizes[tokenizer(text).input_ids].sum() == len(text.encode())
    assert sizes[tokenizer.eos_token_id] == sizes[tokenizer.pad_token_id] == 0
    assert not sizes[len(tokenizer) :].any()


def test_separated_documents_are_validated_separately(make_trainer):
    trainer, nats = make_trainer(document_mask=True), []
    found = trainer.evaluate()["eval_loss"]
    for row in trainer.eval_dataset:
        ids = torch.from_numpy(row["input_ids"]).long()
        ends = (ids == trainer.tokenizer.eos_token_id).nonzero()[:, 0]
        documents = [document for document in torch.tensor_split(ids, ends + 1) if len(document)]
        with torch.no_grad():
            logits = torch.cat([trainer.model(document[None]).logits[0] for document in documents])
        nats.append(torch.nn.functional.cross_entropy(logits[:-1], ids[1:]))
    assert found == pytest.approx(torch.stack(nats).mean().item(), rel=1e-5)
    assert abs(found - make_trainer().evaluate()["eval_loss"]) > 1e-3


def test_dev_questions_are_answered_at_each_validation(make_trainer, corpus):
    trainer = make_trainer(medqa_dev_questions=20)
    questions = select_split(read_questions("q", str(corpus / "questions.jsonl")), "dev")[:20]
    assert trainer.questions == questions
    trainer.train()
    scores = letter_log_likelihoods(trainer.model, trainer.tokenizer, questions)
    right = sum(int(row.argmax()) == question.answer for row, question in zip(scores, questions, strict=True))
    assert trainer.evaluate()["eval_medqa_accuracy"] == right / len(questions)


@pytest.mark.parametrize("taught", [["letter"], ["text"], ["letter", "reasoned"]])
def test_dev_questions_are_answered_by_text_if_text_was_taught(taught, make_trainer, corpus):
    trainer = make_trainer(medqa_dev_questions=20)
    teach_formats(trainer.model.config, taught)
    metrics = trainer.evaluate()
    if taught == ["letter"]:
        assert not any("medqa_text" in name for name in metrics)
        return
    scores = text_log_likelihoods(trainer.model, trainer.tokenizer, trainer.questions).double()
    gold = torch.tensor([question.answer for question in trainer.questions])
    assert metrics["eval_medqa_text_accuracy"] == (scores.argmax(1) == gold).double().mean().item()
    nll = torch.nn.functional.cross_entropy(scores, gold).item()
    assert metrics["eval_medqa_text_nll"] == pytest.approx(nll, rel=1e-5)
    assert metrics["eval_medqa_text_standard_error"] > 0
    by_letter = make_trainer(medqa_dev_questions=20).evaluate()
    assert metrics["eval_medqa_nll"] == by_letter["eval_medqa_nll"]


def test_questions_are_scored_in_float32_under_autocast(make_trainer, monkeypatch):
    trainer = make_trainer(medqa_dev_questions=4, bf16=True, use_cpu=True, max_steps=1)
    trainer.train()
    seen = []

    def scoring(model, tokenizer, questions):
        seen.append(model.lm_head(torch.zeros(1, 32)).dtype)
        model.lm_head.register_forward_hook(lambda head, inputs, logits: seen.append(logits.dtype))
        return letter_log_likelihoods(model, tokenizer, questions)

    monkeypatch.setattr("modeling_pure.training.validation.letter_log_likelihoods", scoring)
    forward = trainer.model.forward
    trainer.evaluate()
    assert set(seen) == {torch.float32}
    assert len(seen) > 1
    assert trainer.model.forward == forward


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "nowhere.jsonl", "weight": 0.1}, r"validation_sources\.wiki: .*'weight': 0\.1"),
        ({"path": "nowhere.jsonl"}, r"validation_sources\.wiki: .*'nowhere\.jsonl'$"),
        ({"path": "nowhere.jsonl", "colum": "a"}, r"validation_sources\.wiki\.colum: .*'column'"),
        ("nowhere.jsonl", r"validation_sources\.wiki: .*'path'.*'nowhere\.jsonl'$"),
    ],
)
def test_bad_validation_sources_are_refused_by_their_key(make_trainer, entry, message):
    with pytest.raises(InputError, match=f"^{message}"):
        make_trainer(validation_sources={"wiki": entry})


def test_a_validation_source_has_a_name_of_its_own(make_trainer, outside):
    with pytest.raises(InputError, match=r"^validation_sources\.c4: "):
        make_trainer(validation_sources={"c4": outside["wiki"]})

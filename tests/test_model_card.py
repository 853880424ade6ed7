"""Cards are written from facts, copied to the next phase, updated by evaluations, and keep manual edits."""

import pytest
from huggingface_hub import ModelCard
from transformers import LlamaConfig

from modeling_pure import PureConfig
from modeling_pure.console import DISCLAIMER
from modeling_pure.medqa.card import dev_evaluations
from modeling_pure.model_card import NO_EVALUATION, add_evaluation, card_blocks, write_model_card
from tests.cards import evaluation

LETTER = {"eval_medqa_accuracy": 0.5}


@pytest.fixture
def folder(tmp_path):
    """A folder with a pretrained model's card."""
    write_model_card(str(tmp_path), "Pure, pretrained", PureConfig(), {"Pretraining": {"tokens of c4": "400"}}, [])
    return tmp_path


def test_a_card_describes_the_model_and_its_limits(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert "not-for-clinical-use" in card.data.tags
    for text in ("| num_key_value_heads | 4 |", "| tokens of c4 | 400 |", "](curves.png)"):
        assert text in card.text
    for text in (DISCLAIMER, NO_EVALUATION, "trust_remote_code"):
        assert text in card.text
    assert card.data.eval_results is None


def test_evaluations_are_added_replaced_and_read_back(folder):
    for one in (evaluation(0.25), evaluation(0.5, "cloze"), evaluation(0.75)):
        assert add_evaluation(str(folder), one)
    card = ModelCard.load(folder / "README.md")
    values = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert values == {"accuracy (letter)": 0.75, "accuracy (cloze)": 0.5}
    assert all(entry.metric_args["n"] == 1000 for entry in card.data.eval_results)
    assert list(card_blocks(card.text, "evaluation")) == ["MedQA, test, letter", "MedQA, test, cloze"]
    assert "75.00%" in card.text
    assert "25.00%" not in card.text
    assert NO_EVALUATION not in card.text
    assert card.text.count("## Limits") == 1
    assert "always A | 27.7 %" in card.text


def test_manual_edits_of_a_card_are_kept(folder):
    add_evaluation(str(folder), evaluation())
    file = folder / "README.md"
    file.write_text(file.read_text().replace("## Limits", "My own words.\n\n## Limits"))
    add_evaluation(str(folder), evaluation(0.5))
    assert "My own words." in file.read_text()
    assert "50.00%" in file.read_text()


def test_another_readme_is_left_alone(tmp_path):
    assert not add_evaluation(str(tmp_path), evaluation())
    (tmp_path / "README.md").write_text("# Mine\n")
    assert not add_evaluation(str(tmp_path), evaluation())
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_the_next_phase_copies_the_training_of_its_base_model(folder, tmp_path):
    after = tmp_path / "grpo"
    after.mkdir()
    add_evaluation(str(folder), evaluation())
    write_model_card(str(after), "Pure, after GRPO", PureConfig(), {"GRPO": {"steps": "4"}}, [], str(folder))
    text = (after / "README.md").read_text()
    assert list(card_blocks(text, "training")) == ["Pretraining", "GRPO"]
    assert "tokens of c4" in text
    assert text.count("curves.png") == 1
    assert not card_blocks(text, "evaluation")  # the base model's accuracy is not this model's
    assert ModelCard.load(after / "README.md").data.base_model is None  # a folder is not a Hub id


def test_a_foreign_model_keeps_its_licence(tmp_path):
    write_model_card(str(tmp_path), "Mine", LlamaConfig(), {"GRPO": {"steps": "4"}}, [], "owner/llama")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license is None
    assert card.data.base_model == "owner/llama"
    assert "trust_remote_code" not in card.text


def test_dev_accuracies_have_one_entry_for_each_scorer(questions):
    metrics = {"eval_medqa_accuracy": 0.25, "eval_medqa_text_accuracy": 0.5}
    by_letter, by_text = dev_evaluations(questions, ["owner/medqa"], metrics, "eval_medqa_text_accuracy")
    assert [each.scorer.split(",")[0] for each in (by_letter, by_text)] == ["letter", "text"]
    assert [each.accuracy for each in (by_letter, by_text)] == [0.25, 0.5]
    assert len(by_text.words) == len(by_letter.words) + 1  # that the weights were chosen by this metric
    [alone] = dev_evaluations(questions, ["owner/medqa"], {"eval_medqa_accuracy": 0.25})
    assert alone == by_letter


def test_dev_accuracy_is_reported_with_baselines(questions):
    found = dev_evaluations(questions, ["owner/medqa"], LETTER)[0]
    share = sum(question.answer == 0 for question in questions) / len(questions)
    assert dict(found.lines)["always A"] == f"{100 * share:.1f} %"
    assert found.n == 120
    assert "above" in found.words[0].lower()
    chosen = dev_evaluations(questions, ["owner/medqa"], LETTER, next(iter(LETTER)))[0]
    assert chosen.words[: len(found.words)] == found.words
    assert len(chosen.words) == len(found.words) + 1  # that the weights were chosen by this metric
    found = dev_evaluations(questions, ["owner/medqa", "/home/me/a.jsonl"], LETTER)[0]
    assert found.path == "owner/medqa, a.jsonl"
    assert "/home" not in found.block()

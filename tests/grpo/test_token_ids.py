"""GRPO and cross entropy tokenize prompts and end completions like the evaluation."""

import json

import pytest
from transformers import AutoModelForCausalLM, ByT5Tokenizer, GPT2TokenizerFast

from modeling_pure.data.source_records import exam_text
from modeling_pure.data.tokenizer import DocumentTokenizer
from modeling_pure.errors import InputError
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.grpo.prompts import PromptSettings, prompt_dataset
from modeling_pure.grpo.sft import AnswerTrainer
from modeling_pure.grpo.trainer import PureGRPOTrainer
from modeling_pure.medqa.formats import end_tokens, format_answer, format_prompt
from modeling_pure.medqa.scorers import ScorerSettings
from modeling_pure.medqa.tasks import MEDQA
from modeling_pure.tokenizer import added_tokens, prompt_ids
from tests.conftest import adding
from tests.grpo.conftest import make_model

END, PAD = "<|endoftext|>", "<|pad|>"


@pytest.mark.parametrize("front", ["", PAD], ids=["plain", "begins"])
def test_prompts_have_the_ids_of_the_evaluation(front, make_trainer, tokenizer, questions):
    theirs = adding(tokenizer, front, END)
    trainer = make_trainer(chat_tokenizer=theirs)
    asked = ScorerSettings(trainer.model, adding(tokenizer, front, END), MEDQA)
    texts = [asked.prompt(question) for question in questions[:3]] + [f"Question: {END}\nAnswer:"]
    ids, _, _ = trainer._tokenize_prompts(texts)
    assert ids == asked.encode(texts)[0]
    assert [row[len(front and "x") :] for row in ids] == prompt_ids(tokenizer, texts)
    assert added_tokens(trainer.processing_class)[1] == []  # which is saved


def test_special_tokens_in_a_users_prompt_are_kept(make_trainer, tokenizer):
    trainer = make_trainer(chat_tokenizer=adding(tokenizer, PAD, END))
    trainer.questions = []
    assert trainer._tokenize_prompts([f"a{END}b"])[0] == [tokenizer(f"{PAD}a{END}b").input_ids]


def test_cross_entropy_uses_the_same_prompt_ids(model_folder, tokenizer, questions, tmp_path):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_generations": 4}
    quiet = {"report_to": "none", "use_cpu": True, "eval_strategy": "no", "save_strategy": "no"}
    args = PureGRPOConfig(output_dir=str(tmp_path), max_completion_length=30, max_steps=4, **settings, **quiet)
    theirs = adding(tokenizer, PAD, END)
    trainer = AnswerTrainer(
        AutoModelForCausalLM.from_pretrained(model_folder),
        args=args,
        train_dataset=prompt_dataset(
            questions, 4, seed=0, settings=PromptSettings({"letter": 1.0}, with_answers=True)
        ),
        processing_class=theirs,
        questions=[],
    )
    prompt, answer = trainer.encode("Answer:", " C. x")
    assert prompt == prompt_ids(theirs, ["Answer:"])[0] == tokenizer(f"{PAD}Answer:").input_ids
    assert answer == [*tokenizer(" C. x").input_ids, tokenizer.eos_token_id]
    assert added_tokens(trainer.processing_class)[1] == []  # which is saved
    trainer.tokenizer = tokenizer  # as of a model pretrained here, whose documents have no BOS
    (document,) = DocumentTokenizer(tokenizer)([exam_text(questions[0], "letter")])
    before, after = trainer.encode(format_prompt(questions[0]), format_answer(questions[0]))
    assert before + after == document.tolist()


def test_a_tokenizer_in_python_that_ends_prompts_is_refused(make_trainer):
    """It could not be saved in the way it is used in training."""
    with pytest.raises(InputError, match=r"^model_name_or_path: .*\bByT5Tokenizer\b"):
        make_trainer(chat_tokenizer=ByT5Tokenizer())


def test_more_than_one_token_ends_a_completion(make_trainer, tokenizer, tmp_path):
    folder, ends = tmp_path / "ends", list(range(200))
    model = make_model("pure")
    model.config.eos_token_id = ends  # half of the vocabulary, so that a random model soon meets one
    model.save_pretrained(folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 0}))
    tokenizer.save_pretrained(folder)
    trainer = make_trainer(str(folder))
    completions = trainer.sample([tokenizer("Answer:").input_ids] * 32).completion_ids
    assert trainer.eos_token_ids == ends
    assert all(token >= 200 for ids in completions for token in ids[:-1])
    assert any(0 < ids[-1] < 200 for ids in completions)
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.generation_config.eos_token_id == ends == end_tokens(saved, tokenizer)


def test_a_tokenizer_that_splits_the_letters_is_evaluated(make_trainer, tokenizer, questions):
    letters = {token: number for token, number in tokenizer.get_vocab().items() if len(token) == 1}
    vocabulary = {END: 0, PAD: 400} | letters
    single = GPT2TokenizerFast(vocab=vocabulary, merges=[], bos_token=END, eos_token=END, pad_token=PAD, unk_token=END)
    assert len(single(" D", add_special_tokens=False).input_ids) == 2
    trainer = make_trainer(chat_tokenizer=single, trainer_class=PureGRPOTrainer)
    trainer.questions = questions[:3]
    metrics = trainer.evaluate(trainer.eval_dataset.select(range(2)))
    assert 0 <= metrics["eval_medqa_accuracy"] <= 1
    assert metrics["eval_medqa_nll"] > 0

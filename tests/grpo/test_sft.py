"""The baseline: cross entropy over the four letters, in the order of GRPO's prompts."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.grpo.prompts import prompt_dataset
from modeling_pure.grpo.sft import LetterTrainer
from modeling_pure.medqa.scoring import letter_log_likelihoods


@pytest.fixture
def trainer(model_folder, tokenizer, questions, tmp_path):
    args = PureGRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_generations=4,
        steps_per_generation=4,
        max_steps=1,
        learning_rate=1e-4,
        warmup_steps=0,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
    )
    return LetterTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_folder),
        args=args,
        train_dataset=prompt_dataset(questions[:4], 120, seed=0),
        processing_class=tokenizer,
        questions=questions[:4],
    )


def test_attention_is_flash_as_in_grpo(trainer):
    assert trainer.args.attention_kernel == "flash"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_the_loss_is_the_cross_entropy_of_the_evaluation_s_log_likelihoods(trainer, tokenizer, questions):
    rows = [trainer.train_dataset[i] for i in range(4)]
    loss = trainer.compute_loss(trainer.model, trainer.collate(rows))
    shown = {question.digest: question for question in questions[:4]}
    asked = []
    for row in rows:
        options = [line[3:] for line in row["prompt"].splitlines() if line[:3] in ("A. ", "B. ", "C. ", "D. ")]
        asked.append(type(shown[row["digest"]])(shown[row["digest"]].question, tuple(options), row["answer"]))
    scores = letter_log_likelihoods(trainer.model.eval(), tokenizer, asked)
    among_four = scores.log_softmax(-1)[torch.arange(4), [row["answer"] for row in rows]]
    assert loss.item() == pytest.approx(-among_four.mean().item(), abs=1e-5)


def test_a_step_holds_as_many_prompts_as_grpo_s_in_its_order(trainer):
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.args.gradient_accumulation_steps == 1
    assert len(batch["answer"]) == 16 // 4
    assert batch["answer"].tolist() == trainer.train_dataset["answer"][:4]


def test_a_step_makes_its_answers_likelier_and_the_dev_questions_are_answered(trainer, tokenizer, questions):
    batch = next(iter(trainer.get_train_dataloader()))
    before = trainer.compute_loss(trainer.model, batch).item()
    trainer.train()
    assert trainer.compute_loss(trainer.model, batch).item() < before
    scores = letter_log_likelihoods(trainer.model.eval(), tokenizer, questions[:4])
    right = sum(int(row.argmax()) == question.answer for row, question in zip(scores, questions[:4], strict=True))
    assert trainer.evaluate()["eval_medqa_accuracy"] == right / 4

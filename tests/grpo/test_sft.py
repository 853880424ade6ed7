"""The baseline: cross entropy on the right answers, in the order of GRPO's prompts."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import RepeatSampler

from modeling_pure.errors import InputError
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.grpo.prompts import PromptSettings, prompt_dataset
from modeling_pure.grpo.sft import AnswerTrainer
from modeling_pure.medqa.formats import chat_message, format_answer, format_prompt
from modeling_pure.medqa.log_likelihood import letter_log_likelihoods, text_log_likelihoods
from tests.conftest import with_chat_template


@pytest.fixture
def explained(questions):
    return [replace(question, explanation=f"{question.question[:20]} is it.") for question in questions[:4]]


@pytest.fixture
def make_answer_trainer(model_folder, tokenizer, explained, tmp_path):
    """A trainer with 4 prompts per step on four questions."""

    def make(shares: dict[str, float], chat: bool = False, template: str | None = None, **changes) -> AnswerTrainer:
        settings = {
            "output_dir": str(tmp_path),
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2,
            "num_generations": 4,
            "steps_per_generation": 4,
            "max_steps": 1,
            "learning_rate": 1e-4,
            "warmup_steps": 0,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 1,
        }
        return AnswerTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_folder),
            args=PureGRPOConfig(**{**settings, **changes}),
            train_dataset=prompt_dataset(
                explained, 120, seed=0, settings=PromptSettings(shares, chat, with_answers=True)
            ),
            processing_class=with_chat_template(tokenizer, template) if chat else tokenizer,
            questions=explained,
        )

    return make


def test_attention_is_flash_as_in_grpo(make_answer_trainer):
    assert make_answer_trainer({"letter": 1.0}).args.attention_kernel == "flash"
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def hf_loss(trainer, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Transformers' loss on answers, with prompts masked by labels of -100."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, labels, mask = (torch.full((len(rows), longest), value) for value in (0, -100, 0))
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end], mask[i, :end] = torch.tensor(prompt + answer), 1
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return trainer.model(input_ids=ids, attention_mask=mask, labels=labels).loss


@pytest.mark.parametrize("shares", [{"letter": 1.0}, {"text": 1.0}, {"reasoned": 1.0}, {"text": 0.5, "reasoned": 0.5}])
def test_the_loss_equals_transformers_with_masked_prompts(shares, make_answer_trainer, tokenizer):
    trainer = make_answer_trainer(shares)
    rows = [trainer.train_dataset[i] for i in range(4)]
    assert {row["answer_format"] for row in rows} == {*shares}
    loss, outputs = trainer.compute_loss(trainer.model, trainer.collate(rows), return_outputs=True)
    assert outputs.log_probs.shape[0] == 4
    encoded = []
    for row in rows:
        prompt, whole = (tokenizer(text).input_ids for text in (row["prompt"], row["prompt"] + row["target"]))
        assert whole[: len(prompt)] == prompt
        encoded.append((prompt, [*whole[len(prompt) :], tokenizer.eos_token_id]))
    expected = hf_loss(trainer, encoded)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    of_head = torch.autograd.grad(loss, trainer.model.lm_head.weight)[0]
    torch.testing.assert_close(of_head, torch.autograd.grad(expected, trainer.model.lm_head.weight)[0])


def test_in_a_chat_the_assistant_turn_is_taught_up_to_its_end(make_answer_trainer, tokenizer):
    trainer = make_answer_trainer({"text": 1.0}, chat=True)
    rows = [trainer.train_dataset[i] for i in range(4)]
    chat, encoded = trainer.tokenizer, []
    for row in rows:
        turns = [*row["prompt"], {"role": "assistant", "content": row["target"].strip()}]
        whole = chat.apply_chat_template(turns, return_dict=True)["input_ids"]
        prompt = chat.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        last = len(whole) - 1 - whole[::-1].index(chat.eos_token_id)
        assert whole[: len(prompt)] == prompt
        assert len(whole) > last + 1  # the template adds a line break after the turn, which no completion has
        encoded.append((prompt, whole[len(prompt) : last + 1]))
    loss = trainer.compute_loss(trainer.model, trainer.collate(rows))
    assert loss.item() == pytest.approx(hf_loss(trainer, encoded).item(), rel=1e-5)


def test_a_template_whose_generation_prompt_does_not_begin_answers_is_refused(make_answer_trainer):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}Go:{% endif %}"
    with pytest.raises(InputError, match="^chat: "):
        make_answer_trainer({"text": 1.0}, chat=True, template=template)


def test_an_answer_stops_at_its_first_end_and_at_max_completion_length(make_answer_trainer):
    letter = make_answer_trainer({"letter": 1.0})
    end, other = letter.tokenizer.eos_token_id, letter.tokenizer(" B").input_ids[-1]
    assert letter.encode("Answer:", " A")[1] == [*letter.tokenizer(" A").input_ids, end]
    letter.ends = [end, other]
    assert letter.encode("Answer:", " A B A")[1] == letter.tokenizer(" A B").input_ids
    trainer = make_answer_trainer({"reasoned": 1.0}, max_completion_length=3)
    batch = trainer.collate([trainer.train_dataset[0]])
    assert batch["answer_mask"].tolist() == [[1, 1, 1]]


def test_a_step_has_the_prompts_of_a_grpo_step_in_order(make_answer_trainer, explained, tokenizer):
    trainer = make_answer_trainer({"letter": 1.0})
    batch = next(iter(trainer.get_train_dataloader()))
    assert trainer.args.gradient_accumulation_steps == 1
    prompts = prompt_dataset(explained, 120, seed=0)["prompt"][: 16 // 4]
    shown = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert len(shown) == len(prompts)
    assert all(text.startswith(prompt) for text, prompt in zip(shown, prompts, strict=True))


def test_shuffled_prompts_come_in_the_order_of_grpo(make_answer_trainer):
    trainer = make_answer_trainer({"letter": 1.0}, shuffle_dataset=True)
    grpo = RepeatSampler(trainer.train_dataset, mini_repeat_count=1, shuffle=True, seed=trainer.args.seed)
    assert [*trainer._get_train_sampler()] == [*grpo] != [*range(len(trainer.train_dataset))]


def test_targets_are_in_the_format_of_their_prompt(make_answer_trainer, explained):
    of = {question.digest: question for question in explained}
    for row in make_answer_trainer({"text": 0.5, "letter": 0.5}).train_dataset.select(range(20)):
        shown = replace(of[row["digest"]], options=tuple(row["options"]), answer=row["answer"])
        assert row["prompt"] == format_prompt(shown)
        assert row["target"] == format_answer(shown, row["answer_format"])
    chat = make_answer_trainer({"reasoned": 1.0}, chat=True).train_dataset[0]
    shown = replace(of[chat["digest"]], options=tuple(chat["options"]), answer=chat["answer"])
    assert chat["prompt"] == chat_message(format_prompt(shown, "reasoned"))


@pytest.mark.parametrize("taught", ["letter", "text"])
def test_a_step_makes_its_answers_likelier_and_the_dev_questions_are_answered(
    taught, make_answer_trainer, tokenizer, explained
):
    trainer = make_answer_trainer({taught: 1.0})
    trainer.model.config.answer_formats = [taught]
    batch = next(iter(trainer.get_train_dataloader()))
    before = trainer.compute_loss(trainer.model, batch).item()
    trainer.train()
    assert trainer.compute_loss(trainer.model, batch).item() < before
    metrics = trainer.evaluate()
    for name, score in (("", letter_log_likelihoods), ("text_", text_log_likelihoods)):
        scores = score(trainer.model.eval(), tokenizer, explained)
        right = sum(int(row.argmax()) == question.answer for row, question in zip(scores, explained, strict=True))
        assert metrics.get(f"eval_medqa_{name}accuracy") == (right / 4 if name in ("", f"{taught}_") else None)

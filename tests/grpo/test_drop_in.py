"""Our trainer takes, logs and returns what `trl.GRPOTrainer` does (`test_trl_suite` runs TRL's own tests)."""

import inspect
from dataclasses import field, make_dataclass
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from modeling_pure.errors import InputError
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.grpo.prompts import prompt_dataset
from modeling_pure.grpo.trainer import PureGRPOTrainer
from tests.grpo.conftest import make_windowed_model, spread

UNMASKED = {"keep_sampling_mask": False, "top_p": 1.0, "top_k": 0}
# 4 micro-batches per rollout, used twice, and 3 per update: rollout and update end together every 8 updates.
PART_OF_AN_UPDATE = {"gradient_accumulation_steps": 3, "steps_per_generation": 4, "num_iterations": 2}


class Counted(PureGRPOTrainer):
    """Counts its rollouts."""

    rollouts = 0

    def sample(self, prompt_ids, *numbers):
        self.rollouts += 1
        return super().sample(prompt_ids, *numbers)


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def saved(trainer) -> set[str]:
    return {folder.name for folder in Path(trainer.args.output_dir).glob("checkpoint-*")}


def steps_with(trainer, name: str) -> list[int]:
    return [line["step"] for line in trainer.state.log_history if name in line]


def test_runs_of_epochs_resume_through_trls_arguments(make_trainer, questions, tmp_path):
    settings = {
        "max_steps": -1,
        "rows": prompt_dataset(questions, 8, seed=0).select(range(8)),
        "trainer_class": Counted,
    }
    whole = make_trainer(**settings, num_train_epochs=2, output_dir=str(tmp_path / "whole"))
    assert whole.train().global_step == 8  # 8 prompts, 2 a step
    assert whole.rollouts == 4
    first = make_trainer(**settings, num_train_epochs=1)
    with pytest.raises(ValueError, match=str(tmp_path)):
        first.train(resume_from_checkpoint=True)
    assert first.train().global_step == 4
    again = make_trainer(**settings, num_train_epochs=1)
    assert again.train(True).global_step == 4
    assert again.rollouts == 0
    second = make_trainer(**settings, num_train_epochs=2)
    assert second.train(resume_from_checkpoint=True).global_step == 8
    assert second.rollouts == 2
    assert torch.equal(weights(second), weights(whole))


def test_checkpoints_wait_for_a_rollout_to_end(make_trainer, tmp_path):
    settings = {**PART_OF_AN_UPDATE, "max_steps": 10, "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    whole = make_trainer(**settings, trainer_class=Counted, output_dir=str(tmp_path / "whole"))
    whole.train()
    assert whole.args.plan.updates == 8 / 3
    assert saved(whole) == {"checkpoint-8", "checkpoint-10"}
    assert steps_with(whole, "eval_medqa_accuracy") == [8, 10]
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-8"))
    assert torch.equal(weights(resumed), weights(whole))


def test_a_signal_and_a_spent_budget_wait_for_the_end_of_a_rollout(make_trainer):
    trainer = make_trainer(**PART_OF_AN_UPDATE, max_steps=20, save_strategy="no", max_tokens=1)
    trainer.train()
    assert trainer.state.global_step == 8
    assert trainer.stop_on_signal.may_stop()
    trainer._step += 1
    assert not trainer.stop_on_signal.may_stop()


def test_the_summary_of_a_run_contains_trls_metrics(make_trainer, tmp_path):
    last = {}
    for trainer_class in (PureGRPOTrainer, GRPOTrainer):
        settings = {"logging_steps": 10, "save_steps": 2, "entropy_coef": 0.1, "save_total_limit": None}
        trainer = make_trainer(
            trainer_class=trainer_class, output_dir=str(tmp_path / trainer_class.__name__), **settings
        )
        trainer.train()
        last[trainer_class] = trainer.state.log_history[-1]
    theirs, ours = last[GRPOTrainer].keys(), last[PureGRPOTrainer]
    assert {"train_loss", "reward", "rewards/spread/mean", "policy_loss"} <= theirs <= ours.keys()
    assert not {"loss", "grad_norm", "learning_rate"} & ours.keys()
    assert ours["step"] == 4


def test_the_off_policy_mask_has_trls_signature():
    assert isinstance(inspect.getattr_static(PureGRPOTrainer, "get_off_policy_mask"), staticmethod)
    advantages, now = torch.tensor([[1.0], [-1.0], [-1.0]]), torch.tensor([[-2.0], [-0.5], [-2.0]])
    kept = PureGRPOTrainer.get_off_policy_mask(advantages, now, torch.zeros(3, 1), torch.ones(3, 1), 1.0)
    assert kept.tolist() == [[1.0], [1.0], [0.0]]


GENERATED = {
    "greedy": {"generation_kwargs": {"do_sample": False}},
    "penalty": {"repetition_penalty": 3.0, "generation_kwargs": {"do_sample": False}},
    "beams": {"generation_kwargs": {"do_sample": False, "num_beams": 2, "length_penalty": -0.1}},
}


@pytest.mark.parametrize("changes", GENERATED.values(), ids=GENERATED)
def test_unmaskable_options_sample_by_generate(changes, make_trainer, tokenizer):
    trainer = make_trainer(**UNMASKED, **changes, max_steps=2)
    prompts, spare = [[3, 5, 7], [3, 5, 7], [4, 6, 8, 10]], [*range(len(tokenizer), 411), tokenizer.pad_token_id]
    found = trainer.sample(prompts).completion_ids
    given = {"repetition_penalty": changes.get("repetition_penalty", 1.0), **changes["generation_kwargs"]}
    for prompt, ids in zip(prompts, found, strict=True):
        whole = trainer.model.eval().generate(
            torch.tensor([prompt]), max_new_tokens=7, suppress_tokens=spare, pad_token_id=spare[-1], **given
        )
        assert ids == whole[0, len(prompt) : len(prompt) + len(ids)].tolist()
    assert trainer.train().global_step == 2
    assert trainer.state.log_history[-1]["generated_tokens"] > 0
    with pytest.raises(InputError, match="keep_sampling_mask"):
        make_trainer(**{**UNMASKED, **changes, "keep_sampling_mask": True})


def test_do_sample_does_not_require_generate(make_trainer):
    assert not make_trainer(generation_kwargs={"do_sample": True}).generates


def test_an_unsupported_model_is_left_to_trl_without_masks(make_trainer, tmp_path, tokenizer):
    model = make_windowed_model()
    model.config.final_logit_softcapping = 2.0
    model.save_pretrained(tmp_path / "capped")
    tokenizer.save_pretrained(tmp_path / "capped")
    ended = []
    for trainer_class in (PureGRPOTrainer, GRPOTrainer):
        settings = {"generation_kwargs": {"suppress_tokens": [400, *range(401, 411)]}, "shuffle_dataset": True}
        trainer = make_trainer(
            str(tmp_path / "capped"), trainer_class=trainer_class, **UNMASKED, **settings, gradient_checkpointing=False
        )
        assert trainer_class is GRPOTrainer or "final_logit_softcapping" in trainer.left_to_trl
        before = weights(trainer)
        trainer.train()
        ended.append(weights(trainer) - before)
    assert ended[1].abs().max() > 1e-4
    assert (ended[0] - ended[1]).abs().max() < 1e-6


def test_trls_required_arguments_are_enough(model_folder, questions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = prompt_dataset(questions, 8, seed=0)
    trainer = PureGRPOTrainer(str(model_folder), spread, None, rows)
    assert trainer.args.output_dir == f"{model_folder.name}-GRPO"
    assert trainer.reward_weights.tolist() == [1.0]
    with pytest.raises(InputError, match=r"^args: .*PureGRPOConfig"):
        PureGRPOTrainer(str(model_folder), spread, GRPOConfig(use_cpu=True), rows)


def test_custom_rewards_have_weight_one_by_default(make_trainer):
    def half(completions, **kwargs):
        return [0.5] * len(completions)

    assert make_trainer(rewards=[spread, half]).reward_weights.tolist() == [1.0, 1.0]
    assert make_trainer(rewards=[spread, half], reward_weights=[1.0, -0.01]).reward_weights[1] < 0
    assert make_trainer().reward_weights[1] == torch.tensor(-0.01)
    for weights in ([1.0], [1.0, 0.1, 0.1]):
        with pytest.raises(InputError, match=r"^reward_weights: "):
            make_trainer(rewards=[spread, half], reward_weights=weights)


def test_evaluation_without_questions_requires_no_accuracy(model_folder, questions, make_trainer, tmp_path):
    rows = prompt_dataset(questions, 4, seed=0).select(range(4))
    args = make_trainer(eval_strategy="steps", eval_steps=2, max_steps=2, save_steps=2).args
    args.metric_for_best_model = "eval_medqa_accuracy"
    trainer = PureGRPOTrainer(str(model_folder), spread, args, rows, rows)
    trainer.train()
    assert len(steps_with(trainer, "eval_rewards/spread/mean")) == 1
    assert saved(trainer) == {"checkpoint-2"}


def test_shuffled_prompts_are_used_as_often_as_in_trl(make_trainer):
    assert make_trainer(shuffle_dataset=True).shuffle_dataset
    assert not make_trainer().shuffle_dataset


def test_ids_between_the_tokens_of_a_tokenizer_are_never_drawn(make_trainer, tokenizer, monkeypatch):
    trainer = make_trainer()
    vocabulary = tokenizer.get_vocab()
    gone = {token: i for token, i in vocabulary.items() if i not in (50, 60)}
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: gone)
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: len(gone))
    assert {50, 60, 410} <= trainer._never_sampled()
    assert not {len(vocabulary) - 2, 49, 51} & trainer._never_sampled()


def test_a_model_with_an_adapter_already_in_it_is_trained(make_trainer, model_folder):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config)
    trainer = make_trainer(model, beta=0.1, max_steps=2, save_steps=2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert before
    assert any(not torch.equal(p, trainer.model.get_parameter(name)) for name, p in before.items())


def test_the_dataset_may_be_a_stream(make_trainer, questions):
    rows = Dataset.from_list([{"prompt": f"Case {i}:"} for i in range(8)]).to_iterable_dataset()
    trainer = make_trainer(rewards=spread, rows=rows, max_steps=2, save_steps=2)
    assert trainer.train().global_step == 2


def test_empty_defaults_may_be_stated_explicitly(tmp_path):
    stated = make_dataclass("Stated", [("debug", str, field(default=""))], bases=(PureGRPOConfig,))
    assert stated(output_dir=str(tmp_path), bf16=False).debug == []


def test_predict_and_several_eval_sets_work_as_in_trl(make_trainer, questions, tmp_path):
    rows = prompt_dataset(questions, 4, seed=0).select(range(4))
    measured = {}
    for trainer_class in (GRPOTrainer, PureGRPOTrainer):
        trainer = make_trainer(trainer_class=trainer_class, output_dir=str(tmp_path / trainer_class.__name__))
        trainer.questions, trainer.eval_dataset = [], {"one": rows, "two": rows}
        prediction = trainer.predict(rows)
        assert prediction.predictions is None
        assert len(prediction.metrics) >= 3
        measured[trainer_class] = trainer.evaluate()
    theirs = {name for name in measured[GRPOTrainer] if "preparation" not in name}
    assert {"eval_one_loss", "eval_two_loss"} < theirs <= measured[PureGRPOTrainer].keys()

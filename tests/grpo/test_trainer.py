"""The trainer: masks from sampling to the loss, through all of TRL's processing in between."""

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AttentionInterface, AutoModelForCausalLM

from modeling_pure import PureForCausalLM
from modeling_pure.errors import InputError, RunStopped
from modeling_pure.grpo import rollout, scoring
from modeling_pure.grpo.scoring import deal_groups
from modeling_pure.grpo.trainer import PureGRPOTrainer
from tests.grpo.conftest import make_windowed_model

CUTS = {"top_p": 0.9, "top_k": 50, "temperature": 0.7}


class Watched(PureGRPOTrainer):
    """Records rollouts, and how far the policy is from the old one in each micro-batch."""

    def __init__(self, *args, **kwargs):
        self.rollouts, self.drifts = [], []
        super().__init__(*args, **kwargs)

    def sample(self, prompt_ids, *numbers):
        self.rollouts.append(super().sample(prompt_ids, *numbers))
        return self.rollouts[-1]

    def _compute_loss(self, model, inputs):
        self.inputs = inputs
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *args, compute_entropy=False, **kwargs):
        result = super()._get_per_token_logps_and_entropies(*args, compute_entropy=compute_entropy, **kwargs)
        if compute_entropy and self.model.training:
            mask = self.inputs["completion_mask"].bool()
            old = self.inputs.get("old_per_token_logps", result[0].detach())
            first = self._step % (self.args.steps_per_generation * self.num_iterations) < (
                self.args.gradient_accumulation_steps
            )
            self.drifts.append((first, (result[0] - old)[mask].abs().max().item() if mask.any() else 0.0))
        return result


def logged(trainer, name: str) -> list[float]:
    """A metric in the lines of steps; the summary at the end repeats the last."""
    lines = [line for line in trainer.state.log_history if "train_loss" not in line]
    return [line[name] for line in lines if line.get(name) is not None]


def test_the_trained_policy_is_the_one_that_sampled(make_trainer):
    trainer = make_trainer(trainer_class=Watched, **CUTS)
    trainer.train()
    assert max(logged(trainer, "sampling/log_prob_difference")) < 1e-5
    first, later = ([drift for is_first, drift in trainer.drifts if is_first == which] for which in (True, False))
    assert len(first) == len(later) == 4
    assert max(first) == 0.0
    assert min(later) > 1e-4
    kept = logged(trainer, "sampling/kept_tokens")
    assert 1 < min(kept) <= max(kept) <= 50
    assert len(logged(trainer, "off_policy/masked_share")) == 4


def test_without_the_mask_the_trained_policy_differs(make_trainer):
    trainer = make_trainer(trainer_class=Watched, keep_sampling_mask=False, **CUTS)
    trainer.train()
    assert "sampling_mask" not in trainer.inputs
    assert not logged(trainer, "sampling/log_prob_difference")
    ids = trainer.rollouts[-1].completion_ids
    acted = {tuple(row): sum(values) for row, values in zip(ids, trainer.rollouts[-1].log_probs, strict=True)}
    mask = trainer.inputs["completion_mask"].bool()
    differences = [
        acted[tuple(row[real].tolist())] - old[real].sum().item()
        for row, real, old in zip(
            trainer.inputs["completion_ids"], mask, trainer.inputs["old_per_token_logps"], strict=True
        )
    ]
    assert min(differences) > 0.05  # over the full vocabulary every token is less likely than when it was sampled


SURVIVES = {
    "several iterations": {"num_iterations": 2},
    "parts of groups": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 8},
    "two groups at once": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 2,
    },
    "one update": {"steps_per_generation": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "truncated completions masked": {"mask_truncated_completions": True, "max_completion_length": 60},
    "evaluation": {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 3},
    "sequence ratios": {"importance_sampling_level": "sequence"},
    "entropy": {"entropy_coef": 0.01, "top_entropy_quantile": 0.5},
    "padding": {"pad_to_multiple_of": 8},
    "min-p": {"top_p": 1.0, "top_k": 0, "min_p": 0.1},
    "no cuts": {"top_p": 1.0, "top_k": 0},
}


@pytest.mark.parametrize("changes", SURVIVES.values(), ids=SURVIVES)
def test_masks_reach_the_loss(changes, make_trainer):
    trainer = make_trainer(trainer_class=Watched, **{**CUTS, **changes})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert trainer.inputs["sampling_mask"].dtype == torch.uint8
    differences = logged(trainer, "sampling/log_prob_difference")
    assert bool(differences) == (changes is not SURVIVES["one update"])  # which has no older policy
    assert max(differences, default=0) < 1e-5
    assert max(drift for first, drift in trainer.drifts if first) < 1e-5
    assert any(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    if "eval_strategy" in changes:
        assert len(logged(trainer, "eval_medqa_accuracy")) == 2
        assert len(logged(trainer, "eval_rewards/spread/mean")) == 2


def test_only_adapters_are_trained(make_trainer):
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(trainer_class=Watched, peft_config=config, learning_rate=1e-2, **CUTS)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(before[name], p)}
    assert changed
    assert all("lora_" in name for name in changed)
    assert max(logged(trainer, "sampling/log_prob_difference")) < 1e-5
    assert logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-6)
    assert logged(trainer, "kl")[-1] > 0


def test_a_model_that_cannot_share_prompts_is_trained(make_trainer, tmp_path, tokenizer):
    make_windowed_model().save_pretrained(tmp_path / "mistral")
    tokenizer.save_pretrained(tmp_path / "mistral")
    trainer = make_trainer(str(tmp_path / "mistral"), trainer_class=Watched, **CUTS)
    assert trainer.prefix_obstacle
    assert trainer.rollout_obstacle
    trainer.train()
    assert max(logged(trainer, "sampling/log_prob_difference")) < 1e-5
    assert max(drift for first, drift in trainer.drifts if first) < 1e-5


@pytest.mark.parametrize("rope_type", ["yarn", "dynamic"])
def test_a_model_whose_rope_is_scaled_is_trained(rope_type, make_trainer, model_folder):
    rope = {"rope_type": rope_type, "factor": 2.0}
    model = PureForCausalLM.from_pretrained(model_folder, rope_parameters=rope)
    trainer = make_trainer(model, trainer_class=Watched, max_steps=2, save_steps=2, **CUTS)
    assert bool(trainer.prefix_obstacle) == bool(trainer.rollout_obstacle) == (rope_type == "dynamic")
    trainer.train()
    assert max(logged(trainer, "sampling/log_prob_difference")) < 1e-5
    assert max(drift for first, drift in trainer.drifts if first) < 1e-5


def test_added_tokens_on_spare_ids_can_be_sampled_and_are_saved(make_trainer, tokenizer):
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["<think>", "</think>"])
    trainer = make_trainer(top_p=1.0, top_k=0, chat_tokenizer=grown)
    new = grown.convert_tokens_to_ids(["<think>", "</think>"])
    assert new == [401, 402]
    assert not set(new) & set(trainer.sampling_params.suppress_tokens)
    trainer.save_model()
    saved = PureForCausalLM.from_pretrained(trainer.args.output_dir)
    assert saved.config.num_real_tokens == 403
    assert saved.generation_config.suppress_tokens == [400, *range(403, 411)]


def test_spare_ids_are_neither_drawn_nor_scored(make_trainer, tokenizer):
    trainer = make_trainer(trainer_class=Watched, top_p=1.0, top_k=0)
    pad = tokenizer.pad_token_id
    assert trainer.sampling_params.suppress_tokens == (pad, *range(len(tokenizer), 411))
    trainer.train()
    drawn = {token for row in trainer.rollouts[0].completion_ids for token in row}
    assert max(drawn) < len(tokenizer)
    assert pad not in drawn
    assert {size for row in trainer.rollouts[0].kept for size in row} == {len(tokenizer) - 1}


def test_dropout_is_off_while_sampling_and_the_mode_is_restored(make_trainer):
    trainer, modes = make_trainer(), []
    trainer.model.model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    trainer.model.train()
    trainer.sample([[3, 4], [3, 4]])
    assert modes
    assert not any(modes)
    assert trainer.model.training


@pytest.mark.parametrize(("kernel", "cudnn"), [(None, False), ("auto", True)])
def test_attention_is_flash_unless_another_kernel_is_asked_for(make_trainer, kernel, cudnn):
    make_trainer(**({} if kernel is None else {"attention_kernel": kernel}))
    assert torch.backends.cuda.cudnn_sdp_enabled() == cudnn


def test_nan_probabilities_stop_the_run(make_trainer):
    trainer = make_trainer()
    trainer.model.lm_head.weight.data[7] = torch.nan
    with pytest.raises(RunStopped, match=r"^step 0: "):
        trainer._generate_single_turn([[3, 4], [3, 4]])


def test_random_numbers_do_not_depend_on_the_number_of_processes(make_trainer, monkeypatch):
    trainer = make_trainer(eval_strategy="steps", eval_steps=1)

    def numbers(rows: int, rank: int = 0, times: int = 1) -> torch.Tensor:
        monkeypatch.setattr(type(trainer.args), "process_index", rank)
        trainer._rollout_of_step = ("", 0)
        return torch.stack([trainer._numbers_of_rows(rows) for _ in range(times)])

    trainer.model.train()
    first, second = numbers(8, times=2)
    assert torch.equal(torch.cat([numbers(2, rank, 2) for rank in range(4)], 1), torch.stack([first, second]))
    trainer.state.global_step = 1
    drawn = [first, second, *numbers(8), trainer.model.eval() and numbers(8)[0]]
    assert len({tuple(row.tolist()) for one in drawn for row in one}) == 4 * 8


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), updates=st.integers(1, 4))
def test_groups_stay_together(sizes, updates):
    numbers = torch.tensor([group for group, size in enumerate(sizes) for _ in range(size)])
    rows = {
        "prompt_ids": torch.stack([numbers, numbers], 1),
        "prompt_mask": torch.ones(len(numbers), 2, dtype=torch.long),
        "completion_ids": torch.arange(len(numbers))[:, None],
        "num_items_in_batch": torch.tensor(7),
    }
    shuffled = deal_groups(rows, updates)
    assert sorted(shuffled["completion_ids"][:, 0].tolist()) == list(range(len(numbers)))
    assert torch.equal(numbers[shuffled["completion_ids"][:, 0]], shuffled["prompt_ids"][:, 0])
    assert int((shuffled["prompt_ids"][1:, 0] != shuffled["prompt_ids"][:-1, 0]).sum()) == len(sizes) - 1
    assert shuffled["num_items_in_batch"] == 7
    groups = range(len(sizes))
    assert shuffled["prompt_ids"][:, 0].unique_consecutive().tolist() == sorted(groups, key=lambda g: g % updates)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_an_update_has_the_groups_of_one_process_on_any_number(world):
    """16 groups of 3, two updates: each process deals out its own part."""
    numbers = torch.arange(16).repeat_interleave(3)[:, None]
    updates = [set(), set()]
    for own in numbers.chunk(world):
        dealt = deal_groups({"prompt_ids": own, "prompt_mask": torch.ones_like(own)}, 2)["prompt_ids"]
        for update, part in zip(updates, dealt.chunk(2), strict=True):
            update |= {*part.flatten().tolist()}
    assert updates == [{*range(0, 16, 2)}, {*range(1, 16, 2)}]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"repetition_penalty": 1.1}, "repetition_penalty: "),
        ({"use_vllm": True}, "use_vllm: .*keep_sampling_mask"),
        ({"use_vllm": True, "keep_sampling_mask": False}, "use_vllm: (?!.*keep_sampling_mask).*top_p"),
        ({"use_transformers_continuous_batching": True}, "use_transformers_continuous_batching: "),
        ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, "generation_kwargs: 'no_repeat_ngram_size' "),
        ({"save_strategy": "best"}, r"save_strategy: .*\bsteps\b"),
        ({"top_p": 0.0}, r"top_p: .*\b0\.0$"),
    ],
)
def test_unmaskable_options_are_refused_in_one_line(changes, line, make_trainer):
    with pytest.raises(InputError, match=f"^{line}") as error:
        make_trainer(**{"num_generations": 4, **changes})
    assert "\n" not in str(error.value)


def test_a_model_that_changes_its_logits_after_the_head_is_refused(make_trainer, tmp_path, tokenizer):
    model = make_windowed_model()
    model.config.final_logit_softcapping = 30.0
    model.save_pretrained(tmp_path / "capped")
    tokenizer.save_pretrained(tmp_path / "capped")
    with pytest.raises(InputError, match="^model_name_or_path: .*final_logit_softcapping"):
        make_trainer(str(tmp_path / "capped"))


class ScaledHead(torch.nn.Linear):
    """A head that scales its logits, unknown to the configuration."""

    def forward(self, hidden_states):
        return 1.5 * super().forward(hidden_states)


def test_the_self_check_finds_a_head_that_changes_its_logits(make_trainer, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    head = ScaledHead(32, 411, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    model.config._name_or_path = str(model_folder)
    with pytest.raises(InputError, match="^model_name_or_path: .*PureForCausalLM"):
        make_trainer(model, cast_lm_head_to_fp32=False)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda attend: lambda *args, group_cache, **kwargs: attend(*args, **kwargs), "PureForCausalLM .*TypeError"),
        (
            lambda attend: lambda *args, **kwargs: (1.1 * attend(*args, **kwargs)[0], None),
            "PureForCausalLM (?!.*Error)",
        ),
    ],
    ids=["raises", "wrong"],
)
def test_the_self_check_finds_a_wrong_rollout_and_falls_back_to_generate(fault, reason, make_trainer):
    """As with the attention of DiffLlama and Nemotron."""
    AttentionInterface.register(rollout.ATTENTION, fault(rollout.rollout_attention))
    try:
        trainer = make_trainer(trainer_class=Watched, **CUTS)
    finally:
        AttentionInterface.register(rollout.ATTENTION, rollout.rollout_attention)
    assert re.match(reason, trainer.rollout_obstacle)
    assert trainer.prefix_obstacle is None
    trainer.train()
    assert max(logged(trainer, "sampling/log_prob_difference")) < 1e-5


def test_prompts_with_an_unreliable_cache_are_scored_in_full_sequences(make_trainer, monkeypatch):
    true = scoring.shared_hidden_states
    monkeypatch.setattr(scoring, "shared_hidden_states", lambda *args: 0.9 * true(*args))
    trainer = make_trainer(**CUTS)
    assert "PureForCausalLM" in trainer.prefix_obstacle
    trainer.train()
    assert max(logged(trainer, "sampling/log_prob_difference")) < 1e-5


def test_maxima_are_logged_over_a_log_window(make_trainer):
    every = make_trainer(logging_steps=1, **CUTS)
    every.train()
    whole = make_trainer(logging_steps=4, **CUTS)
    whole.train()
    for name in ("off_policy/farthest", "sampling/log_prob_difference"):
        assert logged(whole, name) == [max(logged(every, name))]


@pytest.mark.parametrize("changes", [{"bf16": True}, {"torch_compile": True, "torch_compile_backend": "eager"}])
def test_the_scorer_is_wrapped_and_the_model_stays_unchanged(changes, make_trainer):
    trainer = make_trainer(eval_strategy="steps", **changes)
    forward = trainer.model.forward  # TRL's, which nothing replaces
    trainer.evaluate(trainer.eval_dataset.select(range(2)))  # for which Trainer would wrap the model itself
    scorer = trainer.scorers[trainer.model]
    wrapped = trainer._wrap_model(trainer.model_wrapped)
    assert trainer.accelerator.unwrap_model(wrapped, keep_torch_compile=False) is scorer
    assert trainer._wrap_model(wrapped) is wrapped
    assert trainer.model.forward is forward

"""Faults in `grpo/`."""

from tests.mutants.faults.fault import Fault

GRPO = "modeling_pure/grpo/"

FAULTS = [
    Fault(
        "the temperature is not applied in the backward pass",
        GRPO + "log_probs.py",
        "grad_log_probs = grad_log_probs / ctx.temperature",
        "grad_log_probs = grad_log_probs / 1.0",
        "tests/grpo/test_log_probs.py",
    ),
    Fault(
        "the kept set is one token too small",
        GRPO + "sampling.py",
        "probs.cumsum(-1) - probs >= params.top_p",
        "probs.cumsum(-1) >= params.top_p",
        "tests/grpo/test_sampling.py",
    ),
    Fault(
        "training normalises over the whole vocabulary",
        GRPO + "log_probs.py",
        "    if sampling_mask is not None:\n        cut_off",
        "    if sampling_mask is None:\n        cut_off",
        "tests/grpo/test_log_probs.py",
    ),
    Fault(
        "the loss is computed without the rollout's mask",
        GRPO + "trainer.py",
        'self._sampling_mask = inputs.get("sampling_mask")',
        "self._sampling_mask = None",
        "tests/grpo/test_trainer.py tests/grpo/test_refinements.py",
    ),
    Fault(
        "a smaller batch keeps the rows that are finished",
        GRPO + "rollout.py",
        "finished.argsort(dim=1, stable=True)[:, :slots]",
        "finished.argsort(dim=1, stable=True, descending=True)[:, :slots]",
        "tests/grpo/test_rollout.py",
    ),
    Fault(
        "completions stand one position too far behind their prompt",
        GRPO + "shared_prefix.py",
        "positions = lengths[of_group, None] + torch.arange(",
        "positions = 1 + lengths[of_group, None] + torch.arange(",
        "tests/grpo/test_shared_prefix.py",
    ),
    Fault(
        "the shuffle tears groups apart",
        GRPO + "trainer.py",
        "order = places[of_group].argsort(stable=True)",
        "order = torch.randperm(len(of_group))",
        "tests/grpo/test_trainer.py tests/grpo/test_refinements.py",
    ),
    Fault(
        "the budget stops a run inside a rollout",
        GRPO + "budget.py",
        "if self.spent and self.rollout_done():",
        "if self.spent:",
        "tests/grpo/test_trainer.py tests/scripts/test_grpo_runs.py",
    ),
    Fault(
        "every pass asks the questions in the same order",
        GRPO + "prompts.py",
        'random.Random(f"grpo {seed} {number}")',
        'random.Random(f"grpo {seed}")',
        "tests/grpo/test_prompts.py",
    ),
    Fault(
        "formats are drawn from the stream that orders the questions",
        GRPO + "prompts.py",
        'formats = random.Random(f"grpo formats {seed} {number}")',
        "formats = rng",
        "tests/grpo/test_prompts.py",
    ),
    Fault(
        "questions are taken to fit without the chat template",
        GRPO + "prompts.py",
        "return chat_prompt(tokenizer, prompt) if self.chat else prompt",
        "return prompt",
        "tests/grpo/test_prompts.py",
    ),
    Fault(
        "passages about the questions that are trained on are kept",
        "train_grpo.py",
        'Library.read("passages", script_args.passages, questions)',
        'Library.read("passages", script_args.passages, [])',
        "tests/scripts/test_grpo_formats.py",
    ),
    Fault(
        "the baseline teaches answers without their end",
        GRPO + "sft.py",
        "return [*ids, eos_token_id] if length is None else ids[: length + 1]",
        "return ids",
        "tests/grpo/test_sft.py",
    ),
    Fault(
        "the baseline's loss is a sum over answers",
        GRPO + "sft.py",
        ".sum() / tokens",
        ".sum()",
        "tests/grpo/test_sft.py",
    ),
    Fault(
        "preflight reads every completion as a letter",
        GRPO + "preflight.py",
        '[row["answer_format"] for row in asked],',
        '["letter" for row in asked],',
        "tests/grpo/test_preflight.py",
    ),
]

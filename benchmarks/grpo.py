"""GRPO compared with stock TRL, with the same model, prompts and settings: rollouts, scoring with update, whole steps.

    python -m benchmarks.grpo {rollout,scoring,step} [--rounds 3]

Random weights, random prompts, float32; top-p 0.95, top-k 512, KL term, off-policy mask, two updates per rollout. Ours
also records and scores keep-sampling masks. Completions have full length on both sides.

    rollout   tokens per second of completions; the peer is transformers' `generate`
    scoring   log-probabilities of the old and the reference policy, loss and gradient for one optimizer step;
              `whole_sequences` is ours without shared prompts; the remaining speedup comes from the head
    step      seconds per optimizer step inside `train()`, excluding the first rollout (warm-up)

Ours and the peer alternate; figures are medians. For a GPU see `python -m benchmarks.gpu`.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from sys import stderr
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from benchmarks.measure import DEVICE, Work, alternate, median_ratio, print_line
from benchmarks.step import StepClock
from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.grpo.rollout import sample_completions
from modeling_pure.grpo.trainer import MaskedScorer, PureGRPOTrainer

CUTS = {"temperature": 1.0, "top_p": 0.95, "top_k": 512}
OURS, STOCK = "ours", "stock TRL"
PEERS = {"rollout": "transformers' generate", "scoring": "trl.GRPOTrainer", "step": "trl.GRPOTrainer with generate"}


@dataclass(frozen=True)
class Scale:
    """The size of the model and of a GRPO step."""

    preset: str = "medium-large"
    prompt: int = 250
    completion: int = 128
    generations: int = 16
    prompts_per_step: int = 8
    micro_batch: int = 32
    steps: int = 4
    bf16: bool = True

    @property
    def completions_per_step(self) -> int:
        """Completions per optimizer step."""
        return self.prompts_per_step * self.generations


SMALL = Scale("small", prompt=192, completion=64, prompts_per_step=2, steps=2, bf16=False)
TINY = Scale("tiny", 24, 8, generations=4, prompts_per_step=2, micro_batch=4, steps=2, bf16=False)


def main() -> None:
    """Measure one part and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PEERS, help="what to measure")
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds to time; ours and the peer alternate (default: 3)"
    )
    parser.add_argument("--tiny", action="store_true", help="use a tiny model, to try the code")
    options = parser.parse_args()
    scale = TINY if options.tiny else SMALL
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(stderr):
        save_model(folder, scale)
        times, more = PARTS[options.part](scale, folder, options.rounds)
    ours, peer = (statistics.median(times[side]) for side in (OURS, STOCK))
    shape = f"{scale.prompts_per_step} prompts of {scale.prompt} x {scale.generations} completions"
    print_line(
        f"grpo {options.part}",
        f"seconds, preset {scale.preset}, {shape} of {scale.completion}",
        round(ours, 3),
        round(peer, 3),
        PEERS[options.part],
        median_ratio(times[STOCK], times[OURS]),
        packages=("torch", "transformers", "trl"),
        rounds=options.rounds,
        **more,
    )


def rollout(scale: Scale, folder: str, rounds: int) -> tuple[dict[str, list[float]], dict]:
    """Seconds per rollout, and tokens per second of both sides."""
    trainer = build_trainer(OURS, scale, folder)
    times = alternate(samplers(scale, trainer, scale.completions_per_step, scale.completion), rounds)
    tokens = scale.completions_per_step * scale.completion
    return times, {"tokens_per_second": {side: round(tokens / statistics.median(times[side])) for side in times}}


def scoring(scale: Scale, folder: str, rounds: int) -> tuple[dict[str, list[float]], dict]:
    """Seconds to score and update, and of ours without shared prompts."""
    trainers = {side: build_trainer(side, scale, folder) for side in (OURS, STOCK)}
    trainers["whole"] = build_trainer(OURS, scale, folder)
    for one in trainers["whole"].scorers.values():
        one.share_prefix = False
    times = alternate({side: scorer(scale, trainer) for side, trainer in trainers.items()}, rounds)
    return times, {"whole_sequences": round(statistics.median(times.pop("whole")), 3)}


def step(scale: Scale, folder: str, rounds: int) -> tuple[dict[str, list[float]], dict]:
    """Mean seconds per optimizer step, one value per training run."""
    turns = [{side: step_seconds(side, scale, folder) for side in (OURS, STOCK)} for _ in range(rounds)]
    return {side: [turn[side] for turn in turns] for side in (OURS, STOCK)}, {}


PARTS: dict[str, Callable] = {"rollout": rollout, "scoring": scoring, "step": step}


# ---- model, prompts, trainers ---------------------------------------------------------------------------------------


def save_model(folder: str, scale: Scale) -> None:
    """Save a model with random weights, and a tokenizer whose words are numbers."""
    config = PureConfig.from_preset(scale.preset)
    torch.manual_seed(0)
    PureForCausalLM(config).save_pretrained(folder)
    known = config.vocab_size - len(config.suppressed_tokens)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(known)}, unk_token=str(config.eos_token_id)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end, pad = str(config.eos_token_id), str(config.pad_token_id)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=pad).save_pretrained(folder)


def random_prompts(scale: Scale, number: int) -> list[list[int]]:
    """Prompts of one length."""
    return np.random.default_rng(0).integers(2, 2000, (number, scale.prompt)).tolist()


def reward(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    """A reward that differs between random completions."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def build_trainer(side: str, scale: Scale, folder: str) -> GRPOTrainer:
    """Ours, or TRL's with the same settings."""
    micro_batches = scale.completions_per_step // scale.micro_batch
    arguments = {
        "output_dir": f"{folder}/run",
        "per_device_train_batch_size": scale.micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "steps_per_generation": 2 * micro_batches,
        "num_generations": scale.generations,
        "max_completion_length": scale.completion,
        "max_steps": 2 + scale.steps,
        "learning_rate": 1e-6,
        "beta": 0.001,
        "off_policy_mask_threshold": 0.5,
        "scale_rewards": "none",
        "loss_type": "grpo",
        "cast_lm_head_to_fp32": True,
        "reward_weights": None,
        "bf16": scale.bf16,
        "use_cpu": DEVICE == "cpu",
        "generation_kwargs": {"suppress_tokens": PureConfig.from_pretrained(folder).suppressed_tokens},
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1000,
        **CUTS,
    }
    kinds = {OURS: (PureGRPOTrainer, PureGRPOConfig), STOCK: (GRPOTrainer, GRPOConfig)}
    trainer_class, config_class = kinds[side]
    return trainer_class(
        model=folder,
        reward_funcs=reward,
        args=config_class(**arguments),
        train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, ids)) for ids in random_prompts(scale, 64)]}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
    )


# ---- timed functions ------------------------------------------------------------------------------------------------


def samplers(scale: Scale, trainer: PureGRPOTrainer, sequences: int, tokens: int) -> dict[str, Work]:
    """Both ways to sample `tokens` tokens for each of `sequences` completions."""
    prompts = random_prompts(scale, sequences // scale.generations)
    prompt_ids = [ids for ids in prompts for _ in range(scale.generations)]
    tokenizer, model = trainer.processing_class, trainer.base_causal_lm.eval()
    inputs = torch.tensor(prompt_ids, device=model.device)
    settings = GenerationConfig(
        do_sample=True,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=list(trainer.sampling_params.suppress_tokens),
        disable_compile=True,  # as in TRL
        **CUTS,
    )

    def ours() -> None:
        ids = [tokenizer.eos_token_id], tokenizer.pad_token_id
        with trainer.accelerator.autocast():
            sample_completions(model, prompt_ids, trainer.sampling_params, tokens, *ids)

    def stock() -> None:
        with torch.no_grad(), trainer.accelerator.autocast():
            model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=settings)

    return {OURS: ours, STOCK: stock}


def scorer(scale: Scale, trainer: GRPOTrainer, masked: bool = True) -> Work:
    """Old and reference log-probabilities, loss and gradient for the completions of one optimizer step."""
    generator = torch.Generator().manual_seed(0)
    number = scale.completions_per_step
    prompts = torch.tensor(random_prompts(scale, scale.prompts_per_step)).repeat_interleave(scale.generations, 0)
    completions = torch.randint(2, 2000, (number, scale.completion), generator=generator)
    batch = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.randn(number, generator=generator),
    }
    if masked and isinstance(trainer, PureGRPOTrainer):
        width = -(-trainer.model.config.vocab_size // 8)
        mask = torch.randint(0, 256, (number, scale.completion, width), generator=generator, dtype=torch.uint8)
        batch["sampling_mask"] = mask.scatter(2, completions[..., None] // 8, 255)
    batch = {name: value.to(trainer.accelerator.device) for name, value in batch.items()}
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()

    def score_and_update() -> None:
        trainer.model.zero_grad()
        for start in range(0, number, scale.micro_batch):
            part = {name: value[start : start + scale.micro_batch] for name, value in batch.items()}
            ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
            with torch.no_grad():
                for model, name in ((trainer.model, "old"), (trainer.ref_model, "ref")):
                    policy = model
                    if isinstance(trainer, PureGRPOTrainer):
                        policy = MaskedScorer(trainer.scorers[model], part.get("sampling_mask"))
                    scored = trainer._get_per_token_logps_and_entropies(
                        policy, ids, torch.ones_like(ids), scale.completion
                    )
                    part[f"{name}_per_token_logps"] = scored[0]
            trainer.accelerator.backward(trainer._compute_loss(trainer.model, part))

    return score_and_update


def step_seconds(side: str, scale: Scale, folder: str) -> float:
    """Seconds of an optimizer step of `train()`, the mean over whole rollouts after the first one."""
    clock, trainer = StepClock(2), build_trainer(side, scale, folder)
    trainer.add_callback(clock)
    trainer.train()
    return statistics.mean(clock.seconds())


if __name__ == "__main__":
    main()

"""GRPO's speed on one GPU, ours beside stock TRL: rollouts, scoring with update, and whole steps.

    python -m benchmarks.gpu_grpo [--out docs/results]
    python -m benchmarks.gpu_grpo --tiny --out /tmp/tiny      # the same code on a CPU, in a minute

Both train the same model (401M parameters, random weights) on the same random prompts with the same settings: bf16
autocast, float32 head, two updates a rollout, KL term, off-policy mask, top-p 0.95 and top-k 512. Ours keeps the
sampling masks, which TRL cannot. Neither attends by cuDNN: ours turns that off for the process. Completions are of
full length on both sides, as no end of text is drawn by chance.

A rollout is timed at several numbers of sequences, by the tokens that come out of it in a second. Scoring with update
is that of one optimizer step: log-probabilities of the old and the reference policy, loss, gradient. A whole step is
`train()` with all that belongs to it. The rows are written as `speed-grpo-DEVICE.json` with a table beside it.
"""

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from benchmarks.gpu_pretrain import Stopwatch, versions, write_rows
from benchmarks.memory import DEVICE, device_name
from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.grpo.arguments import PureGRPOConfig
from modeling_pure.grpo.rollout import sample_completions
from modeling_pure.grpo.trainer import PureGRPOTrainer

CUTS = {"temperature": 1.0, "top_p": 0.95, "top_k": 512}
OURS, STOCK = "ours", "stock TRL"


@dataclass(frozen=True)
class Scale:
    """The model, and a step of GRPO."""

    preset: str = "medium-large"
    prompt: int = 250
    completion: int = 128
    generations: int = 16
    prompts_per_step: int = 8
    completions_per_pass: int = 32
    sequences: tuple[int, ...] = (128, 256, 512)
    steps: int = 4
    bf16: bool = True

    @property
    def completions_per_step(self) -> int:
        """Completions that an optimizer step takes."""
        return self.prompts_per_step * self.generations


TINY = Scale("tiny", 24, 8, 4, 2, 4, (8, 16), 2, bf16=False)


def main() -> None:
    """Measure, write the rows, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder for the rows and the table")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try the code")
    options = parser.parse_args()
    if not options.tiny and DEVICE != "cuda":
        parser.error("there is no GPU here; --tiny runs on the CPU")
    scale = TINY if options.tiny else Scale()
    name = "tiny" if options.tiny else torch.cuda.get_device_name().lower().replace(" ", "-")
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        save_model(folder, scale)
        rows = []
        for what in (rollout_rows, scoring_rows, step_rows):
            for row in what(scale, folder):
                rows.append({**row, **facts(scale)})
                print(rows[-1], flush=True)
                write_rows(rows, options.out / f"speed-grpo-{name}", COLUMNS)
    print(json.dumps(summary(rows, scale)))


COLUMNS = ("what", "model", "sequences", "tokens_per_second", "seconds", "ms_per_decode_step", "peak_memory_gb")


def facts(scale: Scale) -> dict:
    """What every row says of its making."""
    command = "python -m benchmarks.gpu_grpo" + (" --tiny" if scale is TINY else "")
    return {"device": device_name(), "versions": {**versions(), "trl": trl.__version__}, "command": command}


def summary(rows: list[dict], scale: Scale) -> dict:
    """The line that is printed: seconds of a whole step, and the ratios of all three parts."""

    def of(what: str, model: str, key: str, **more) -> float | None:
        wanted = {"what": what, "model": model, **more}
        return next((row.get(key) for row in rows if all(row.get(k) == v for k, v in wanted.items())), None)

    ours, peer = (of("step", model, "seconds") for model in (OURS, STOCK))
    rollouts = [of("rollout", model, "tokens_per_second", sequences=scale.sequences[0]) for model in (OURS, STOCK)]
    scoring = [of("scoring and update", model, "seconds") for model in (OURS, STOCK)]
    return {
        "name": "gpu_grpo",
        "unit": f"seconds of a step of {scale.completions_per_step} completions",
        "ours": ours,
        "peer": peer,
        "peer_name": "trl.GRPOTrainer, transformers' generate",
        "ratio": round(peer / ours, 2),
        "rollout_ratio": round(rollouts[0] / rollouts[1], 2),
        "scoring_ratio": round(scoring[1] / scoring[0], 2),
        "device": device_name(),
        "versions": {**versions(), "trl": trl.__version__},
    }


# ---- model, prompts, trainers ---------------------------------------------------------------------------------------


def save_model(folder: str, scale: Scale) -> None:
    """A model with random weights, and a tokenizer to which every number is a word."""
    config = PureConfig.from_preset(scale.preset)
    torch.manual_seed(0)
    PureForCausalLM(config).save_pretrained(folder)
    known = config.vocab_size - len(config.suppressed_tokens)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(known)}, unk_token=str(config.eos_token_id)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=str(config.eos_token_id), pad_token=str(config.pad_token_id)
    ).save_pretrained(folder)


def random_prompts(scale: Scale, number: int) -> list[list[int]]:
    """Prompts of one length."""
    ids = np.random.default_rng(0).integers(2, 2000, (number, scale.prompt))
    return ids.tolist()


def reward(completion_ids: list[list[int]], **kwargs) -> list[float]:
    """Something in which random completions differ."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


def build_trainer(model: str, scale: Scale, folder: str, **changes) -> GRPOTrainer:
    """Ours, or TRL's with the same settings."""
    known = PureConfig.from_pretrained(folder)
    prompts = random_prompts(scale, 64)
    arguments = {
        "output_dir": f"{folder}/run",
        "per_device_train_batch_size": scale.completions_per_pass,
        "gradient_accumulation_steps": scale.completions_per_step // scale.completions_per_pass,
        "steps_per_generation": 2 * scale.completions_per_step // scale.completions_per_pass,
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
        "generation_kwargs": {"suppress_tokens": known.suppressed_tokens},
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1000,
        **CUTS,
        **changes,
    }
    kinds = {OURS: (PureGRPOTrainer, PureGRPOConfig), STOCK: (GRPOTrainer, GRPOConfig)}
    trainer_class, config_class = kinds[model]
    return trainer_class(
        model=folder,
        reward_funcs=reward,
        args=config_class(**arguments),
        train_dataset=Dataset.from_dict({"prompt": [" ".join(map(str, ids)) for ids in prompts]}),
        processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
    )


# ---- what is timed --------------------------------------------------------------------------------------------------


def seconds(work: Callable[[], object]) -> float:
    """How long something takes, until the device has finished."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def alternate(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each, in turns, after one of each to warm up."""
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def median_ratio(times: dict[str, list[float]]) -> float:
    """How many times faster ours is, the median over the rounds."""
    return round(statistics.median(b / a for a, b in zip(times[OURS], times[STOCK], strict=True)), 2)


def samplers(scale: Scale, trainer: PureGRPOTrainer, sequences: int, tokens: int) -> dict[str, Callable[[], object]]:
    """Both ways to sample `tokens` tokens in each of so many sequences."""
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
        disable_compile=True,  # as TRL asks for it
        **CUTS,
    )
    ids = [tokenizer.eos_token_id], tokenizer.pad_token_id

    def ours() -> None:
        with trainer.accelerator.autocast():
            sample_completions(model, prompt_ids, trainer.sampling_params, tokens, *ids)

    def stock() -> None:
        with torch.no_grad(), trainer.accelerator.autocast():
            model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=settings)

    return {OURS: ours, STOCK: stock}


def rollout_rows(scale: Scale, folder: str):
    """Tokens per second of rollouts, and the time of a step between the first token and the last."""
    trainer = build_trainer(OURS, scale, folder)
    for sequences in scale.sequences:
        whole, first = (samplers(scale, trainer, sequences, tokens) for tokens in (scale.completion, 1))
        for model in (OURS, STOCK):
            reset_peak()
            taken, prefill = (
                statistics.median(alternate({model: works[model]}, 2)[model]) for works in (whole, first)
            )
            yield {
                "what": "rollout",
                "model": model,
                "sequences": sequences,
                "tokens_per_second": round(sequences * scale.completion / taken),
                "seconds": round(taken, 4),
                "ms_per_decode_step": round(1000 * (taken - prefill) / (scale.completion - 1), 3),
                **peak(),
            }


def scorer(scale: Scale, trainer: GRPOTrainer) -> Callable[[], object]:
    """Old and reference log-probabilities, loss and gradient of the completions of one optimizer step."""
    generator = torch.Generator().manual_seed(0)
    rows, device = scale.completions_per_step, trainer.accelerator.device
    prompts = torch.tensor(random_prompts(scale, scale.prompts_per_step)).repeat_interleave(scale.generations, 0)
    completions = torch.randint(2, 2000, (rows, scale.completion), generator=generator)
    batch = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.randn(rows, generator=generator),
    }
    batch = {name: value.to(device) for name, value in batch.items()}
    if isinstance(trainer, PureGRPOTrainer):
        width = -(-trainer.model.config.vocab_size // 8)
        mask = torch.randint(0, 256, (rows, scale.completion, width), generator=generator, dtype=torch.uint8)
        batch["sampling_mask"] = mask.scatter(2, completions[..., None] // 8, 255)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()

    def score_and_update() -> None:
        trainer.model.zero_grad()
        for start in range(0, rows, scale.completions_per_pass):
            part = {name: value[start : start + scale.completions_per_pass] for name, value in batch.items()}
            ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
            with torch.no_grad():
                trainer._sampling_mask = part.get("sampling_mask")
                for model, name in ((trainer.model, "old"), (trainer.ref_model, "ref")):
                    scored = trainer._get_per_token_logps_and_entropies(
                        model, ids, torch.ones_like(ids), scale.completion
                    )
                    part[f"{name}_per_token_logps"] = scored[0]
            trainer.accelerator.backward(trainer._compute_loss(trainer.model, part))

    return score_and_update


def scoring_rows(scale: Scale, folder: str):
    """Seconds of scoring and updating on the completions of one step."""
    works = {model: scorer(scale, build_trainer(model, scale, folder)) for model in (OURS, STOCK)}
    times = alternate(works, 3)
    del works
    for model, taken in times.items():
        gc.collect()
        reset_peak()
        scorer(scale, build_trainer(model, scale, folder))()  # alone, for the memory
        yield {
            "what": "scoring and update",
            "model": model,
            "sequences": scale.completions_per_step,
            "seconds": round(statistics.median(taken), 4),
            **peak(),
        }


def step_seconds(model: str, scale: Scale, folder: str) -> float:
    """Seconds of an optimizer step of `train()`, the mean after the first rollout's two."""
    watch = Stopwatch(2, scale.steps)
    trainer = build_trainer(model, scale, folder)
    trainer.add_callback(watch)
    trainer.train()
    return (watch.times[1] - watch.times[0]) / scale.steps


def step_rows(scale: Scale, folder: str):
    """Seconds of a whole step."""
    for model in (OURS, STOCK):
        gc.collect()
        reset_peak()
        taken = step_seconds(model, scale, folder)
        tokens = scale.completions_per_step * scale.completion
        yield {
            "what": "step",
            "model": model,
            "sequences": scale.completions_per_step,
            "tokens_per_second": round(tokens / taken),
            "seconds": round(taken, 4),
            **peak(),
        }


def reset_peak() -> None:
    """Begin to look for the most memory that is taken."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict[str, float]:
    """The most memory since then."""
    return {"peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if DEVICE == "cuda" else {}


if __name__ == "__main__":
    main()

"""The parts of the proof, each a list of commands; what one command found says how long the next one is."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.grpo_ablation import ARMS
from modeling_pure.atomic import write_atomically
from modeling_pure.training.callbacks import METRICS_FILE, read_metrics

from .data import ProofData
from .stages import Stage

RECIPES = "recipes/proof"
OPTIMIZERS, LEARNING_RATES = ("adamw", "muon"), (3e-4, 1e-3, 3e-3)
WARMUP, VALIDATIONS, CHECKPOINTS = 0.03, 12, 8  # share of the steps; times in a run
PROBE_STEPS, PROBE_LINES = 40, 5


@dataclass(frozen=True)
class Scale:
    """How much is trained.

    Args:
        pretrain, grpo, ask: options that differ from the recipes'.
        pretrain_seconds: of the run, as the probe's speed has it, without start, validation and checkpoints.
        optimizer_seconds: the same of each run that compares optimizers.
        tokens_per_step, row_length: of pretraining.
        grpo_steps, ablation_steps: of GRPO and the SFT twin; of each arm of the ablation.
        tiny: what the other benchmarks are told.
    """

    pretrain: tuple[str, ...] = ()
    grpo: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    pretrain_seconds: float = 600
    optimizer_seconds: float = 90
    tokens_per_step: int = 32_768
    row_length: int = 2048
    grpo_steps: int = 240
    ablation_steps: int = 100
    tiny: tuple[str, ...] = ()


SMALL_MODEL = '{"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3}'
TINY = Scale(
    pretrain=(
        *("--preset", "tiny", "--model_overrides", SMALL_MODEL, "--max_seq_length", "128"),
        *("--tokens_per_step", "1024", "--validation_rows", "8", "--medqa_dev_questions", "8"),
        *("--dataloader_num_workers", "0", "--use_cpu", "true"),
    ),
    grpo=(
        *("--prompts_per_step", "2", "--num_generations", "4", "--max_completion_length", "12", "--use_cpu", "true"),
        *("--eval_steps", "2", "--save_steps", "2", "--medqa_dev_questions", "8", "--learning_rate", "1e-4"),
    ),
    ask=("--batch_size", "64"),
    pretrain_seconds=3,
    optimizer_seconds=1,
    tokens_per_step=1024,
    row_length=128,
    grpo_steps=4,
    ablation_steps=2,
    tiny=("--tiny",),
)


@dataclass(frozen=True)
class Proof:
    """Where everything lies, and how much of it there is to be."""

    data: ProofData
    out: Path
    results: Path
    scale: Scale

    def pretrain(self, name: str, steps: int, *options: str) -> Stage:
        """A pretraining run of so many steps on the packed rows, on a schedule of its own length."""
        every = {"eval_steps": -(-steps // VALIDATIONS), "save_steps": -(-steps // CHECKPOINTS)}
        numbers = {"max_steps": steps, "warmup_steps": max(1, round(WARMUP * steps)), **every}
        return Stage(
            name,
            (
                *("train_pretrain.py", "--config", f"{RECIPES}/pretrain.yaml", *self.data.options()),
                *self.scale.pretrain,
                *("--output_dir", str(self.out / name), "--packed_dir", str(self.out / "packed")),
                *(text for key, value in numbers.items() for text in (f"--{key}", str(value))),
                *options,
            ),
        )

    def pack(self, name: str, steps: int) -> Stage:
        """Write the rows of so many steps, or those that are still missing."""
        rows = steps * self.scale.tokens_per_step // self.scale.row_length
        command = ("-m", "modeling_pure.data.pack", "--config", f"{RECIPES}/pretrain.yaml", *self.data.options())
        return Stage(name, (*command, *self.scale.pretrain, "--out", str(self.out / "packed"), "--rows", str(rows)))

    def grpo(self, name: str, steps: int, *options: str) -> Stage:
        """GRPO, or with `--algorithm sft` its twin, from the pretrained model."""
        return Stage(
            name,
            (
                *("train_grpo.py", "--config", f"{RECIPES}/grpo.yaml", "--questions", self.data.train_questions),
                *("--model_name_or_path", str(self.out / "pretrain"), "--output_dir", str(self.out / name)),
                *("--max_steps", str(steps), *self.scale.grpo, *options),
            ),
        )

    def ask(self, model: str, *compare_with: str) -> Stage:
        """All dev questions to a model; its folder is `eval-MODEL`."""
        others = [str(self.out / f"eval-{other}") for other in compare_with]
        return Stage(
            f"eval-{model}",
            (
                *("eval_medqa.py", "--config", f"{RECIPES}/eval.yaml", "--questions", self.data.dev_questions),
                *("--train_questions", self.data.train_questions, "--model_name_or_path", str(self.out / model)),
                *("--output_dir", str(self.out / f"eval-{model}"), *self.scale.ask),
                *(("--compare_with", *others) if others else ()),
            ),
        )

    def speed_of(self, name: str) -> float:
        """Tokens per second of a run, the median of its log lines after the first, in which layers are compiled."""
        lines = read_metrics(self.out / name / METRICS_FILE)
        return statistics.median([line["tokens_per_second"] for line in lines if "tokens_per_second" in line][1:])

    def last_loss(self, name: str) -> float:
        """The validation loss at the end of a run."""
        return [line["eval_loss"] for line in read_metrics(self.out / name / METRICS_FILE) if "eval_loss" in line][-1]

    def steps_in(self, seconds: float, name: str = "probe") -> int:
        """Optimizer steps that a run as fast as `name` makes in so many seconds."""
        return max(2, round(seconds * self.speed_of(name) / self.scale.tokens_per_step))


def prepare(proof: Proof) -> Iterator[Stage]:
    """Rows and a short run, which says how fast this machine is."""
    yield proof.pack("pack-probe", PROBE_STEPS)
    # No validation while it runs, no checkpoint: what is wanted is the speed.
    quick = ("--logging_steps", str(PROBE_STEPS // PROBE_LINES), "--eval_strategy", "no", "--save_strategy", "no")
    yield proof.pretrain("probe", PROBE_STEPS, *quick)


def plan(proof: Proof) -> dict[str, int]:
    """Steps of the runs to come, decided once: another start of the same part makes the same runs."""
    file = proof.out / "plan.json"
    if not file.exists():
        steps = {
            "tokens_per_second": round(proof.speed_of("probe")),
            "pretrain": proof.steps_in(proof.scale.pretrain_seconds),
            "optimizers": proof.steps_in(proof.scale.optimizer_seconds),
        }
        write_atomically(file, json.dumps(steps))
    return json.loads(file.read_text())


def pretrained(proof: Proof) -> Iterator[Stage]:
    """Up to the pretrained model."""
    yield from prepare(proof)
    steps = plan(proof)["pretrain"]
    yield proof.pack("pack", steps)
    yield proof.pretrain("pretrain", steps)


def line(proof: Proof) -> Iterator[Stage]:
    """Pretraining, GRPO and its SFT twin, and all dev questions to each of the three models."""
    yield from pretrained(proof)
    yield proof.ask("pretrain")
    yield proof.grpo("sft", proof.scale.grpo_steps, "--algorithm", "sft")
    yield proof.grpo("grpo", proof.scale.grpo_steps)
    yield proof.ask("sft", "pretrain")
    yield proof.ask("grpo", "pretrain", "sft")


def optimizers(proof: Proof) -> Iterator[Stage]:
    """AdamW and Muon at three learning rates for equally many tokens, then Muon's best for as long as AdamW takes."""
    yield from prepare(proof)
    steps = plan(proof)["optimizers"]
    yield proof.pack("pack-optimizers", steps)
    for optimizer in OPTIMIZERS:
        for rate in LEARNING_RATES:
            yield optimizer_run(proof, f"{optimizer}-{rate:g}", steps, optimizer, rate)
    rate, slower = best_rate(proof, "muon"), f"adamw-{best_rate(proof, 'adamw'):g}"
    seconds = steps * proof.scale.tokens_per_step / proof.speed_of(slower)
    yield optimizer_run(proof, "muon-equal-time", proof.steps_in(seconds, f"muon-{rate:g}"), "muon", rate)


def optimizer_run(proof: Proof, name: str, steps: int, optimizer: str, rate: float) -> Stage:
    """One of them; its schedule ends at a tenth of the rate."""
    schedule = ("--learning_rate", f"{rate:g}", "--lr_scheduler_kwargs.min_lr", f"{rate / 10:g}")
    return proof.pretrain(name, steps, "--optimizer", optimizer, *schedule, "--save_strategy", "no")


def best_rate(proof: Proof, optimizer: str) -> float:
    """The learning rate that ends with the lowest validation loss."""
    return min(LEARNING_RATES, key=lambda rate: proof.last_loss(f"{optimizer}-{rate:g}"))


def ablation(proof: Proof) -> Iterator[Stage]:
    """From the pretrained model, one refinement of GRPO after the other, and all dev questions to each."""
    yield from pretrained(proof)
    yield proof.ask("pretrain")
    for number, options in enumerate(ARMS.values()):
        yield proof.grpo(f"arm-{number}", proof.scale.ablation_steps, *options.split())
        yield proof.ask(f"arm-{number}", "pretrain")


def speed(proof: Proof) -> Iterator[Stage]:
    """Pretraining beside HF Llama, GRPO beside stock TRL, and where the time of both goes."""
    where = ("--out", str(proof.results), *proof.scale.tiny)
    yield Stage("speed-pretrain", ("-m", "benchmarks.gpu_pretrain", "--minutes", "7", *where), minutes=8.5)
    yield Stage("speed-grpo", ("-m", "benchmarks.gpu_grpo", *where), minutes=6)
    yield Stage("profile", ("-m", "benchmarks.profile_steps", *where), minutes=5)


def exactness(proof: Proof) -> Iterator[Stage]:
    """Whether a resumed bf16 run is the run it would have been."""
    command = ("-m", "benchmarks.exactness", "--out", str(proof.results), *proof.scale.tiny)
    yield Stage("exactness", command, minutes=8.5)


def checks(proof: Proof) -> Iterator[Stage]:
    """The tests that only a GPU can pass; without one they are skipped."""
    yield Stage("checks", ("-m", "pytest", "benchmarks/proof/gpu_checks.py"), minutes=5)


PARTS = {part.__name__: part for part in (checks, line, speed, optimizers, exactness, ablation)}

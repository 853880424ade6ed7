"""What the runs of a part have left in their folders, as one JSON file and pictures in the folder of results."""

import json
import shutil
import statistics
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pyarrow.parquet as pq
import torch

from benchmarks.grpo_ablation import ARMS
from benchmarks.memory import device_name
from modeling_pure.atomic import write_atomically
from modeling_pure.data.packed import FACTS_FILE, count_rows, file_state, rows_file
from modeling_pure.medqa.results import RESULTS_FILE
from modeling_pure.training.callbacks import METRICS_FILE, read_metrics
from modeling_pure.training.run_folder import LAUNCHES_FILE, git_commit

from .data import TEXTS
from .parts import LEARNING_RATES, OPTIMIZERS, Proof, plan

PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "tokenizers", "numpy")
CURVES = (
    *("step", "loss", "reward", "kl", "entropy", "medqa/parse_rate", "off_policy/masked_share"),
    *("eval_loss", "eval_bits_per_byte", "eval_medqa", "eval_rewards/correct/mean"),
)
FULL_TRAIN_QUESTIONS = 10_178  # of MedQA's train split, beside which stands what was there


def collect(part: str, proof: Proof, journal: list[dict]) -> list[Path]:
    """Write what a finished part has found; returns the files. The other benchmarks write theirs themselves."""
    if part not in COLLECTED:
        return []
    name = f"{part}-{'tiny' if proof.scale.tiny else device_name().lower().replace(' ', '-')}"
    found, pictures = COLLECTED[part](proof)
    stages = [{key: line[key] for key in ("stage", "seconds", "exit_code", "stopped")} for line in journal]
    result = {**facts(part, proof), **found, "stages": stages}
    files = [proof.results / f"{name}.json", *(proof.results / f"{name}-{picture}" for picture in pictures)]
    write_atomically(files[0], json.dumps(result, indent=1) + "\n")
    for file, picture in zip(files[1:], pictures.values(), strict=True):
        picture(file)
    return files


def facts(part: str, proof: Proof) -> dict:
    """What has to stand beside any figure: by what, with what, from what."""
    return {
        "part": part,
        "command": f"python -m benchmarks.proof {part}" + (" --tiny" if proof.scale.tiny else ""),
        "device": device_name(),
        "cuda": torch.version.cuda,
        "git": git_commit(),
        "versions": {package: version(package) for package in PACKAGES},
        "data": data_facts(proof),
    }


def data_facts(proof: Proof) -> dict:
    """Documents and bytes of each text, questions of both files, and the rows that were packed of them."""
    packed = proof.out / "packed"
    per_file = json.loads((packed / FACTS_FILE).read_text())["rows_per_file"]
    rows = count_rows(packed, per_file)
    state = file_state(rows_file(packed, (rows - 1) // per_file))
    tokens = {name: drawn * proof.scale.row_length for name, drawn in state["drawn"].items()}
    described = {"packed_rows": rows, "packed_tokens": tokens}
    described["passes_completed"] = {
        name: source["documents"]["position"][0] for name, source in state["sources"].items()
    }
    for name in TEXTS:
        texts = [
            text
            for file in sorted((proof.data.folder / "pretrain").glob(f"{name}*.train.parquet"))
            for text in pq.read_table(file, columns=["text"])["text"].to_pylist()
        ]
        described[name] = {"documents": len(texts), "megabytes": round(sum(len(t.encode()) for t in texts) / 1e6, 2)}
    for name, path in (("train", proof.data.train_questions), ("dev", proof.data.dev_questions)):
        described[f"{name}_questions"] = len(Path(path).read_text().splitlines())
    described["train_questions_of_the_full_set"] = FULL_TRAIN_QUESTIONS
    return described


# ---- one run, one evaluation ----------------------------------------------------------------------------------------


def run_facts(folder: Path) -> dict:
    """Curve, speed and memory of a run, and how often it was started."""
    lines = read_metrics(folder / METRICS_FILE)
    curve = [{key: value for key, value in line.items() if key.startswith(CURVES)} for line in lines]
    found = {
        "steps": max(line["step"] for line in lines),
        "curve": [shortened(line) for line in curve if len(line) > 1],
    }
    for key, of_all in (("tokens_per_second", statistics.median), ("mfu", statistics.median), ("peak_memory_gb", max)):
        if values := [line[key] for line in lines if key in line][1:]:  # the first holds the compilation
            found[key] = of_all(values)
    launches = folder / LAUNCHES_FILE
    if launches.exists():
        found["started_from_steps"] = [json.loads(line)["from_step"] for line in launches.read_text().splitlines()]
    return found


def shortened(line: dict) -> dict:
    """Numbers with as many digits as anyone reads."""
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in line.items()}


def evaluation_facts(folder: Path) -> dict:
    """Accuracy with its interval, other orders of the options, calibration, and everything that stands beside it."""
    results = json.loads((folder / RESULTS_FILE).read_text())
    metrics = results["metrics"]
    kept = ("n", "accuracy", "wilson_interval", "chance", "always", "label_mass", "permutations")
    calibrated = metrics["calibration"]
    return {
        **{key: metrics[key] for key in kept},
        "calibration": {key: value for key, value in calibrated.items() if isinstance(value, float)},
        "beside": [{**row, "name": Path(row["name"]).name} for row in results["comparisons"]],
    }


# ---- the parts ------------------------------------------------------------------------------------------------------

Pictures = dict[str, Callable[[Path], object]]


def collect_line(proof: Proof) -> tuple[dict, Pictures]:
    """The three runs, the three evaluations, and their curves."""
    runs = ("pretrain", "sft", "grpo")
    found = {
        "plan": plan(proof),
        "runs": {name: run_facts(proof.out / name) for name in runs},
        "evaluations": {name: evaluation_facts(proof.out / f"eval-{name}") for name in runs},
    }
    return found, {f"{name}.png": curves_of(proof.out / name) for name in runs}


def curves_of(run: Path) -> Callable[[Path], object]:
    """The picture that a run has made itself."""
    return lambda file: shutil.copyfile(run / "curves.png", file)


def collect_optimizers(proof: Proof) -> tuple[dict, Pictures]:
    """Every run, by optimizer and learning rate; and the two curves that are compared."""
    rows = []
    for name in (*(f"{one}-{rate:g}" for one in OPTIMIZERS for rate in LEARNING_RATES), "muon-equal-time"):
        run = run_facts(proof.out / name)
        tokens = run["steps"] * proof.scale.tokens_per_step
        row = {"run": name, "tokens": tokens, "seconds": round(tokens / run["tokens_per_second"], 1)}
        rows.append({**row, "eval_loss": round(proof.last_loss(name), 4), **run})
    return {"rows": rows}, {"curves.png": lambda file: plot_optimizers(rows, file)}


def plot_optimizers(rows: list[dict], picture: Path) -> None:
    """Validation loss over tokens, and over seconds of training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axis, unit in zip(axes, ("tokens", "seconds"), strict=True):
        for row in rows:
            points = [(line["step"], line["eval_loss"]) for line in row["curve"] if "eval_loss" in line]
            style = {"marker": ".", "linestyle": "--" if row["run"].startswith("adamw") else "-", "label": row["run"]}
            axis.plot([row[unit] * step / row["steps"] for step, _ in points], [loss for _, loss in points], **style)
        axis.set(xlabel=unit, ylabel="validation loss (nats per token)")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(picture, dpi=120)
    plt.close(figure)


def collect_ablation(proof: Proof) -> tuple[dict, Pictures]:
    """The pretrained model and each arm that started from it."""
    rows = [{"arm": "pretrained", **evaluation_facts(proof.out / "eval-pretrain")}]
    for number, arm in enumerate(ARMS):
        run = run_facts(proof.out / f"arm-{number}")
        rows.append({"arm": arm, **evaluation_facts(proof.out / f"eval-arm-{number}"), "run": run})
    return {"rows": rows}, {}


COLLECTED = {"line": collect_line, "optimizers": collect_optimizers, "ablation": collect_ablation}

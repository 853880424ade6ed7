"""MedQA by letter, compared with lm-evaluation-harness: same model, questions and batch size, in the same run.

    python -m benchmarks.evaluate [--preset tiny] [--questions medqa/dev.jsonl] [--limit 200]

The two sides alternate, each from a model in memory and a file of questions to accuracy and standard error; seconds
are medians. `scoring` excludes what lm-evaluation-harness does before and after its requests. Accuracies must be equal
and log-likelihoods within 1e-4 nats, or the benchmark fails. Without a file, random questions of about 200 tokens are
used.
"""

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import datasets
import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from benchmarks.measure import DEVICE, median_ratio, print_line
from modeling_pure import PRESETS, PureConfig, PureForCausalLM
from modeling_pure.medqa.accuracy import measure
from modeling_pure.medqa.formulations import BY_LETTER, ORDERS
from modeling_pure.medqa.scorers import ScorerSettings, score_letters
from modeling_pure.medqa.tasks import MEDQA
from tests.gpt2_vocabulary import write_gpt2_tokenizer

ROUNDS, BATCH = 3, 16
WORDS = ("patient", "presents", "with", "fever", "cough", "pain", "and", "a", "history", "of", "chronic", "disease")
TASK = {
    "task": "medqa_local",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "Question: {{question}}\nA. {{options['A']}}\nB. {{options['B']}}\nC. {{options['C']}}\n"
    "D. {{options['D']}}\nAnswer:",
    "doc_to_target": "{{['A','B','C','D'].index(answer_idx)}}",
    "doc_to_choice": ["A", "B", "C", "D"],
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


class TimedHFLM(HFLM):
    """lm-evaluation-harness's model, which measures the seconds of its requests."""

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        """See `HFLM`."""
        start = time.perf_counter()
        answers = super().loglikelihood(requests, disable_tqdm=True)
        self.seconds = time.perf_counter() - start
        return answers


def main() -> None:
    """Prepare, measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS), help="size; the vocabulary is GPT-2's")
    parser.add_argument("--questions", type=Path, help="MedQA file in the layout of GBaker/MedQA-USMLE-4-options")
    parser.add_argument("--limit", type=int, default=200, help="maximum number of questions")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_gpt2_tokenizer(name)
        lines = options.questions.read_text().splitlines() if options.questions else random_lines(options.limit)
        (folder / "test.jsonl").write_text("\n".join(lines[: options.limit]) + "\n")
        task = {**TASK, "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}}}
        (folder / "task.yaml").write_text(json.dumps(task))
        model, tokenizer = random_model(options.preset), AutoTokenizer.from_pretrained(name)
        rounds = [(ours(model, tokenizer, folder), peer(model, tokenizer, folder)) for _ in range(ROUNDS)]
    first, second = rounds[0]
    np.testing.assert_allclose(first["scores"], second["scores"], atol=1e-4, rtol=0)
    assert first["accuracy"] == second["accuracy"]
    times = {key: [[side[key] for side in turn] for turn in rounds] for key in ("seconds", "scoring")}
    (total_ours, total_peer), (part_ours, part_peer) = (zip(*times[key], strict=True) for key in times)
    print_line(
        "evaluate",
        "seconds from a model in memory and a file of questions to accuracy and standard error",
        round(statistics.median(total_ours), 3),
        round(statistics.median(total_peer), 3),
        "lm_eval.simple_evaluate",
        median_ratio(total_peer, total_ours),
        packages=("torch", "transformers", "lm_eval"),
        scoring_ratio=median_ratio(part_peer, part_ours),
        parameters=model.num_parameters(),
        questions=len(first["scores"]),
        largest_difference=float(np.abs(first["scores"] - second["scores"]).max()),
    )


def random_lines(number: int) -> list[str]:
    """Lines of random questions of 60 to 220 words."""
    draw = random.Random(0)
    return [
        json.dumps(
            {
                "question": f"Case {i}: {' '.join(draw.choices(WORDS, k=draw.randint(60, 220)))}?",
                "options": {letter: " ".join(draw.choices(WORDS, k=4)) for letter in "ABCD"},
                "answer_idx": draw.choice("ABCD"),
            }
        )
        for i in range(number)
    ]


def random_model(preset: str) -> PureForCausalLM:
    """A random model with weights large enough that the options differ in likelihood."""
    torch.manual_seed(0)
    scale = {"initializer_range": 0.1, "head_initializer_range": 0.1}
    shape = {"vocab_size": 50_304, "num_real_tokens": 50_257, "max_position_embeddings": 2048, "pad_token_id": None}
    config = PureConfig.from_preset(preset, **shape, **scale, bos_token_id=50_256, eos_token_id=50_256)
    return PureForCausalLM(config).to(DEVICE).eval()


def ours(model: PureForCausalLM, tokenizer, folder: Path) -> dict:
    """Read, score, and measure."""
    start = time.perf_counter()
    questions = MEDQA.read("questions", str(folder / "test.jsonl"))
    scoring = time.perf_counter()
    settings = ScorerSettings(model, tokenizer, MEDQA, BATCH)
    records = [record for _, record in sorted(score_letters(settings, questions))]
    scored = time.perf_counter()
    metrics = measure(MEDQA, questions, BY_LETTER, records, ORDERS[1]).metrics
    scores = np.array([record["log_likelihoods"] for record in records])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "scoring": scored - scoring, "accuracy": metrics.accuracy, "scores": scores}


def peer(model: PureForCausalLM, tokenizer, folder: Path) -> dict:
    """The same through lm-evaluation-harness."""
    start = time.perf_counter()
    lm = TimedHFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device=DEVICE)
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    settings = {"log_samples": True, "bootstrap_iters": 1, "verbosity": "ERROR"}
    result = simple_evaluate(lm, tasks=["medqa_local"], task_manager=tasks, **settings)
    seconds = time.perf_counter() - start
    samples = sorted(result["samples"]["medqa_local"], key=lambda sample: sample["doc_id"])
    scores = np.array([[float(answer[0][0]) for answer in sample["resps"]] for sample in samples])
    accuracy = result["results"]["medqa_local"]["acc,none"]
    return {"seconds": seconds, "scoring": lm.seconds, "accuracy": accuracy, "scores": scores}


if __name__ == "__main__":
    main()

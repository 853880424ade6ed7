"""MedQA by letter, ours beside lm-evaluation-harness: the same model, questions and batch size, in the same run.

    python -m benchmarks.evaluate [--preset tiny] [--questions medqa/dev.jsonl]

Each side goes from a model in memory and a file of questions to accuracy and standard error, in turns; seconds are the
medians. `scoring_*` leaves out what lm-evaluation-harness does around its requests: the time of
`HFLM.loglikelihood` alone, beside that of our scorer. Both sides' accuracies must be equal, and log-likelihoods within
1e-4 nats, or nothing is printed. Without a file, 200 questions of about 200 tokens are made up.
"""

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import datasets
import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from benchmarks.memory import DEVICE, device_name
from modeling_pure import PRESETS, PureConfig, PureForCausalLM
from modeling_pure.medqa.measure import measure
from modeling_pure.medqa.permutations import ORDERS
from modeling_pure.medqa.scorers import Asked, score_letters
from modeling_pure.medqa.tasks import MEDQA
from tests.gpt2_vocabulary import write_gpt2_tokenizer

TURNS, BATCH = 3, 16
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
    """lm-evaluation-harness's model, with the seconds that its requests took."""

    def loglikelihood(self, requests, disable_tqdm: bool = False):
        """See `HFLM`."""
        start = time.perf_counter()
        answers = super().loglikelihood(requests, disable_tqdm=True)
        self.seconds = time.perf_counter() - start
        return answers


def main() -> None:
    """Make what is missing, measure, print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS), help="size; the vocabulary is GPT-2's")
    parser.add_argument("--questions", help="MedQA file in the layout of GBaker/MedQA-USMLE-4-options")
    parser.add_argument("--limit", type=int, help="take the first so many questions")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        write_gpt2_tokenizer(folder)
        lines = Path(options.questions).read_text().splitlines() if options.questions else []
        rows = [json.loads(line) for line in lines] or made_up(200)
        data = Path(folder) / "test.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[: options.limit]))
        print(json.dumps(run(options.preset, folder, data)))


def made_up(number: int) -> list[dict]:
    """Questions of 60 to 220 words; what they say does not matter here."""
    draw = random.Random(0)
    words = [
        "patient",
        "presents",
        "with",
        "fever",
        "cough",
        "pain",
        "and",
        "a",
        "history",
        "of",
        "chronic",
        "disease",
    ]
    return [
        {
            "question": f"Case {i}: {' '.join(draw.choices(words, k=draw.randint(60, 220)))}?",
            "options": {letter: " ".join(draw.choices(words, k=4)) for letter in "ABCD"},
            "answer_idx": draw.choice("ABCD"),
        }
        for i in range(number)
    ]


def run(preset: str, folder: str, data: Path) -> dict:
    """Both sides in turns."""
    torch.manual_seed(0)
    scale = {"initializer_range": 0.1, "head_initializer_range": 0.1}  # else every option is as likely as another
    shape = {"vocab_size": 50_304, "num_real_tokens": 50_257, "max_position_embeddings": 2048, "pad_token_id": None}
    config = PureConfig.from_preset(preset, **shape, **scale, bos_token_id=50_256, eos_token_id=50_256)
    model = PureForCausalLM(config).to(DEVICE).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (Path(folder) / "task.yaml").write_text(
        json.dumps({**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}})
    )
    sides = {"ours": lambda: ours(model, tokenizer, data), "peer": lambda: peer(model, tokenizer, folder)}
    turns = [{name: side() for name, side in sides.items()} for _ in range(TURNS)]
    first = turns[0]
    np.testing.assert_allclose(first["ours"]["scores"], first["peer"]["scores"], atol=1e-4, rtol=0)
    assert first["ours"]["accuracy"] == first["peer"]["accuracy"]
    median = {
        key: statistics.median(turn[name][seconds] for turn in turns)
        for key, name, seconds in (
            ("ours", "ours", "seconds"),
            ("peer", "peer", "seconds"),
            ("scoring_ours", "ours", "scoring"),
            ("scoring_peer", "peer", "scoring"),
        )
    }
    return {
        "name": "evaluate",
        "unit": "seconds from a model in memory and a file of questions to accuracy and standard error",
        **{key: round(seconds, 3) for key, seconds in median.items()},
        "peer_name": "lm_eval.simple_evaluate",
        "ratio": round(median["peer"] / median["ours"], 2),
        "scoring_ratio": round(median["scoring_peer"] / median["scoring_ours"], 2),
        "parameters": model.num_parameters(),
        "questions": len(first["ours"]["scores"]),
        "batch_size": BATCH,
        "largest_difference": float(np.abs(first["ours"]["scores"] - first["peer"]["scores"]).max()),
        "device": device_name(),
        "versions": {name: version(name) for name in ("torch", "transformers", "lm_eval")},
    }


def ours(model, tokenizer, data: Path) -> dict:
    """Read, score, measure."""
    start = time.perf_counter()
    questions = MEDQA.read("questions", str(data))
    scoring = time.perf_counter()
    records = [record for _, record in sorted(score_letters(Asked(model, tokenizer, MEDQA, BATCH), questions))]
    scored = time.perf_counter()
    metrics, _ = measure(MEDQA, questions, "letter", records, ORDERS[1])
    scores = np.array([record["log_likelihoods"] for record in records])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "scoring": scored - scoring, "accuracy": metrics["accuracy"], "scores": scores}


def peer(model, tokenizer, folder: str) -> dict:
    """The same through lm-evaluation-harness."""
    start = time.perf_counter()
    lm = TimedHFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH, device=DEVICE)
    tasks = TaskManager(include_path=folder, include_defaults=False)
    result = simple_evaluate(
        lm, tasks=["medqa_local"], task_manager=tasks, log_samples=True, bootstrap_iters=1, verbosity="ERROR"
    )
    seconds = time.perf_counter() - start
    samples = sorted(result["samples"]["medqa_local"], key=lambda sample: sample["doc_id"])
    scores = np.array([[float(answer[0][0]) for answer in sample["resps"]] for sample in samples])
    accuracy = result["results"]["medqa_local"]["acc,none"]
    return {"seconds": seconds, "scoring": lm.seconds, "accuracy": accuracy, "scores": scores}


if __name__ == "__main__":
    main()

"""Two metrics of the `evaluate` library, and how the trainers and the evaluation script use them.

Each folder is a module that `evaluate.load(FOLDER)` loads by its path; it needs numpy alone and can be pushed to the
Hub as it is.
"""

from functools import cache
from pathlib import Path

import evaluate
import numpy as np
from transformers import EvalPrediction

from ..calibration import calibration

FOLDER = Path(__file__).parent


@cache
def load_metric(name: str) -> evaluate.EvaluationModule:
    """`medqa_accuracy` or `paired_mcq_comparison`, loaded by path, without a file for what it is given."""
    return evaluate.load(str(FOLDER / name), keep_in_memory=True)


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """What a Trainer says of multiple-choice answers: `accuracy`, its `standard_error`, and `nll` over the options.

    Args:
        prediction: `predictions` of shape (n, options), a log-likelihood or logit for each option, and `label_ids`
            (n,), the index of the right one; the first option wins a tie. Where one is no number, all that is said
            is nan: an argmax over nan would be an answer.
    """
    scores, gold = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
    if not np.isfinite(scores).all():
        return dict.fromkeys(("accuracy", "standard_error", "nll"), float("nan"))
    measured = load_metric("medqa_accuracy").compute(predictions=scores.argmax(-1), references=gold, n_resamples=0)
    nll = calibration(scores, gold)["nll"]
    return {"accuracy": measured["accuracy"], "standard_error": measured["standard_error"], "nll": nll}

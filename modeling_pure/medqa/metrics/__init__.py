"""Two modules of the `evaluate` library, and the metrics of our trainers.

`evaluate.load(FOLDER)` loads each folder by its path. The modules need only numpy and scipy and can be pushed to the
Hub.
"""

from pathlib import Path

import numpy as np
from scipy.special import log_softmax
from transformers import EvalPrediction

from .medqa_accuracy.medqa_accuracy import standard_error

FOLDER = Path(__file__).parent


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """A Trainer's metrics of multiple-choice answers: `accuracy`, its `standard_error`, and `nll` over the options.

    Args:
        prediction: `predictions` of shape (n, options), a log-likelihood or logit for each option, and `label_ids`
            (n,), the index of the right one; the first option wins a tie. If a score is not finite, all metrics are
            nan.
    """
    scores, gold = np.asarray(prediction.predictions, dtype=np.float64), np.asarray(prediction.label_ids)
    if not np.isfinite(scores).all():
        return dict.fromkeys(("accuracy", "standard_error", "nll"), float("nan"))
    correct, n = int((scores.argmax(-1) == gold).sum()), len(gold)
    nll = -float(log_softmax(scores, axis=-1)[np.arange(n), gold].mean())
    return {"accuracy": correct / n, "standard_error": standard_error(correct, n), "nll": nll}

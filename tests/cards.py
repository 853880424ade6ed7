"""An evaluation as it is written into a model's card."""

from modeling_pure.model_card import CardEvaluation

MEASURED = {"accuracy": 0.25, "standard_error": 0.01, "wilson_interval": [0.23, 0.27], "n": 1000}


def evaluation(accuracy: float = 0.25, scorer: str = "letter") -> CardEvaluation:
    """Of 1,000 questions."""
    lines = [("chance", "25.0 %"), ("always A", "27.7 %")]
    return CardEvaluation(
        "MedQA", "owner/medqa", "test", scorer, {**MEASURED, "accuracy": accuracy}, lines, ["Words."]
    )

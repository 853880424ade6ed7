"""What a model's card says of an evaluation, and of the dev questions that a trainer asked."""

from pathlib import Path

from ..model_card import CardEvaluation
from ..records import looks_local
from .metrics.medqa_accuracy.medqa_accuracy import standard_error, wilson_interval
from .question_files import ENDINGS
from .questions import Question
from .results import data_title
from .schema import Results
from .sections import cell, contamination, percent, verdict
from .statistics import in_words, p_against_chance
from .tasks import MEDQA

SCORED_BY_LETTER = "letter, fp32, no examples"
DEV_METRICS = {"letter": "eval_medqa_accuracy", "text": "eval_medqa_text_accuracy"}


def card_evaluation(results: Results) -> CardEvaluation:
    """What the model's card says of it: the accuracy beside chance and what needs no model, and the verdict."""
    data, metrics = results["data"], results["metrics"]
    lines = [
        (public_name(row["name"]), cell(row) if "n" in row else percent(row["accuracy"]))
        for row in results["comparisons"]
    ]
    if found := metrics.get("permutations"):
        lines.append((f"mean over {found['orders']} orders of the options", percent(found["mean_accuracy"])))
    if "calibration" in metrics:
        lines.append(("expected calibration error", f"{metrics['calibration']['ece']:.3f}"))
    memory = contamination(results)
    words = [*verdict(results), *(memory.paragraphs if memory else [])]
    if not results["contamination"]:
        words.append("Contamination was not looked for.")
    elif results["contamination"]["clean"]:
        lines.append(("questions not found in the text", cell(results["contamination"]["clean"])))
    scorer = SCORED_BY_LETTER.replace("letter", results["headline"]["name"])
    return CardEvaluation(data["title"], public_name(data["path"]), data["split"], scorer, metrics, lines, words)


def dev_evaluations(
    questions: list[Question], paths: list[str], metrics: dict[str, float], chosen_by: str | None = None
) -> list[CardEvaluation]:
    """`dev_evaluation` by letter and text, as far as `metrics` has them.

    Args:
        chosen_by: the metric that the best weights were chosen by, if they are the card's.
    """
    return [
        dev_evaluation(questions, paths, metrics[name], name == chosen_by, scorer)
        for scorer, name in DEV_METRICS.items()
        if name in metrics
    ]


def dev_evaluation(
    questions: list[Question], paths: list[str], accuracy: float, chosen_by_it: bool, scorer: str = "letter"
) -> CardEvaluation:
    """What a trainer's card says of the dev questions it answered.

    Args:
        scorer: letter, or text.
        paths: files or Hub ids that the questions came from.
        chosen_by_it: whether the weights are those that answered them best in the run.
    """
    n = len(questions)
    correct = round(accuracy * n)
    measured = {
        "accuracy": accuracy,
        "n": n,
        "standard_error": standard_error(correct, n),
        "wilson_interval": wilson_interval(correct, n),
    }
    lines = [("chance", percent(MEDQA.chance))]
    for i, letter in enumerate(MEDQA.labels):
        lines.append((f"always {letter}", percent(sum(question.answer == i for question in questions) / n)))
    words = [
        f"{in_words(accuracy - MEDQA.chance, p_against_chance(correct, n, MEDQA.chance), 'chance').capitalize()}."
    ]
    if chosen_by_it:
        words.append("The weights are those of the run that answered these questions best, so this is flattering.")
    title, names = data_title(MEDQA, ", ".join(paths)), ", ".join(map(public_name, paths))
    scored_by = SCORED_BY_LETTER.replace("letter", scorer)
    return CardEvaluation(title, names, "dev", scored_by, measured, lines, words)


def public_name(path: str) -> str:
    """A Hub id, or the name of a file or folder: where it lies on somebody's machine is nobody's business."""
    return Path(path).name if looks_local(path, ENDINGS) else path

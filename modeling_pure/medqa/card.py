"""Evaluations for a model's card: a whole one, and the dev questions that a trainer scored."""

from pathlib import Path

from ..files import looks_local
from ..model_card import CardEvaluation
from .question_files import ENDINGS
from .questions import Question
from .report import cell, contamination, percent, verdict
from .results import Results, data_title
from .statistics import in_words, p_against_chance
from .tasks import MEDQA

SETTING = "fp32, no examples"
DEV_METRICS = {"letter": "eval_medqa_accuracy", "text": "eval_medqa_text_accuracy"}


def card_evaluation(results: Results) -> CardEvaluation:
    """The accuracy beside chance and the other comparisons, and the verdict."""
    data, metrics, found = results.data, results.metrics, results.contamination
    lines = [(public_name(row.name), cell(row)) for row in results.comparisons]
    if several := metrics.permutations:
        lines.append((f"mean over {several.orders} orders of the options", percent(several.mean_accuracy)))
    if metrics.calibration:
        lines.append(("expected calibration error", f"{metrics.calibration.ece:.3f}"))
    if found and found.clean:
        lines.append(("questions not found in the text", cell(found.clean)))
    words = [*verdict(results), *contamination(results).paragraphs]
    if not found:
        words.append("Contamination was not checked.")
    scorer = f"{results.headline.name}, {SETTING}"
    path = public_name(data.path)
    return CardEvaluation(data.title, path, data.split, scorer, metrics.correct, metrics.n, lines, words)


def dev_evaluations(
    questions: list[Question], paths: list[str], metrics: dict[str, float], chosen_by: str | None = None
) -> list[CardEvaluation]:
    """The dev accuracies by letter and text, as far as `metrics` has them.

    Args:
        paths: files or Hub ids that the questions came from.
        chosen_by: the metric that the best weights were chosen by, if they are the card's.
    """
    n, chance = len(questions), MEDQA.chance
    title, names = data_title(MEDQA, ", ".join(paths)), ", ".join(map(public_name, paths))
    lines = [("chance", percent(chance))]
    for i, letter in enumerate(MEDQA.labels):
        lines.append((f"always {letter}", percent(sum(question.answer == i for question in questions) / n)))
    evaluations = []
    for scorer, name in DEV_METRICS.items():
        if name not in metrics:
            continue
        correct = round(metrics[name] * n)
        compared = in_words(metrics[name] - chance, p_against_chance(correct, n, chance), "chance")
        words = [f"{compared.capitalize()}."]
        if name == chosen_by:
            words.append("The weights are the best of the run on these questions, so this accuracy is optimistic.")
        evaluations.append(CardEvaluation(title, names, "dev", f"{scorer}, {SETTING}", correct, n, lines, words))
    return evaluations


def public_name(path: str) -> str:
    """A Hub id, or the name of a file or folder without its place on somebody's machine."""
    return Path(path).name if looks_local(path, ENDINGS) else path

"""An evaluation for people: `report.md`, a `report.html` that needs no other file, and a table in the terminal."""

from collections.abc import Callable
from math import log
from pathlib import Path
from typing import TypeVar

from ..atomic import write_atomically
from ..console import DISCLAIMER, print_table
from .accuracy import Generation, Metrics
from .comparisons import Comparison, Memorisation
from .figures import draw_all, draw_each
from .layout import Section, as_html, as_markdown
from .results import Results
from .statistics import ALPHA, Interval, Permutations, Share, in_words

PLOTS_FILE, MARKDOWN_FILE, HTML_FILE = "plots.png", "report.md", "report.html"
WILSON, BOOTSTRAP = "accuracy (95 % Wilson)", "points (95 % bootstrap)"
FEW_QUESTIONS = 100
T = TypeVar("T")


def write_report(folder: Path, results: Results) -> None:
    """Write the figure and both reports into an evaluation's folder."""
    title = f"{results.data.title}: {results.model.name}"
    makers = (accuracy, formulations, permutations, texts, written, retrieval, calibration, labels, slices)
    sections = [maker(results) for maker in (*makers, contamination, provenance)]
    sections = [section for section in sections if section.rows or section.paragraphs]
    write_atomically(folder / PLOTS_FILE, draw_all(results))
    write_atomically(folder / MARKDOWN_FILE, as_markdown(title, sections, PLOTS_FILE))
    write_atomically(folder / HTML_FILE, as_html(title, sections, draw_each(results)))


def print_report(results: Results) -> None:
    """Print the accuracy beside what it is compared with, and the verdict."""
    found = accuracy(results)
    columns = (0, 1, 2, 5)
    rows = [[row[column].strip("*") for column in columns] for row in found.rows]
    if several := results.metrics.permutations:
        rows.append([f"mean over {several.orders} orders", percent(several.mean_accuracy), "", ""])
    head = [found.head[column] for column in columns]
    print_table(f"{results.data.title}: {results.model.name}", head, rows)
    print(*verdict(results), sep="\n")


def verdict(results: Results) -> list[str]:
    """In words: the accuracy, and whether it differs from chance, from always A and from the best constant answer."""
    metrics, data, headline = results.metrics, results.data, results.headline
    chance, *others = results.comparisons
    constant = [row for row in others if row.name.startswith("always ")]
    best = max(constant, key=lambda row: row.accuracy)
    against = [chance, constant[0], *([best] if best is not constant[0] else [])]
    sentences = [
        f"Headline: {headline.name} ({headline.reason}).",
        *([headline.warning] if headline.warning else []),
        f"{metrics.accuracy:.2%} of {data.n:,} questions ({data.split} split) right, "
        f"standard error {metrics.standard_error:.2%}, 95 % interval {interval(metrics.wilson_interval)}.",
        f"The accuracy is {', '.join(map(against_one, against))}: p-values are Holm's, over all comparisons.",
    ]
    if metrics.cut_prompts:
        sentences.append(f"Prompts longer than the context, which were cut from the left: {metrics.cut_prompts}.")
    if repeated := data.repeated_rows:
        named = ", ".join(f"row {row} repeats row {earlier}" for row, earlier in repeated[:5])
        more = " ..." if len(repeated) > 5 else ""
        sentences.append(f"Rows with the question of an earlier one: {len(repeated)} ({named}{more}). All count.")
    return sentences + data.flaws.describe()


def against_one(row: Comparison) -> str:
    """How the accuracy compares with one row of the table."""
    if row.only_first == row.only_second == 0:
        return f"that of {row.name}, right on the very same questions"
    return in_words(row.difference, row.p_holm, row.name)


def accuracy(results: Results) -> Section:
    """The main table."""
    metrics = results.metrics
    rows = [[f"**{results.model.name}**", cell(metrics), "", "", "", ""]]
    for row in results.comparisons:
        counts = "" if row.only_first is None else f"{row.only_first} / {row.only_second}"
        rows.append([row.name, cell(row), lead(row), counts, f"{row.p_value:.2g}", f"{row.p_holm:.2g}"])
    words = [DISCLAIMER + " Multiple-choice accuracy is not clinical competence.", *verdict(results)]
    words.append(f"Bootstrap interval of the accuracy: {interval(metrics.bootstrap_interval)}. Chance is exact.")
    head = ["", WILSON, f"model's lead, {BOOTSTRAP}", "it alone / model alone right", "McNemar p", "Holm p"]
    return Section("Accuracy", words, head, rows)


def formulations(results: Results) -> Section:
    """The formulations side by side."""
    compared = {row.name: row for row in results.comparisons}
    rows = []
    for name, metrics in results.formulations.items():
        row, orders = compared.get(f"by {name}"), metrics.permutations
        against = [lead(row), f"{row.p_value:.2g}", f"{row.p_holm:.2g}"] if row else ["", "", ""]
        mean = percent(orders.mean_accuracy) if orders else ""
        rows.append([name if row else f"**{name}**", cell(metrics), *against, mean, str(metrics.cut_prompts)])
    words = (
        "letter: options shown, lm-evaluation-harness's letters scored. text: options shown, their texts scored. "
        "cloze: options not shown. generate: what the model writes."
    )
    head = ["", WILSON, f"headline's lead, {BOOTSTRAP}", "McNemar p", "Holm p", "mean over orders", "prompts cut"]
    return Section("Formulations", [words], head, rows)


def side_by_side(title: str, words: str, of: dict[str, T | None], measures: dict[str, Callable[[T], str]]) -> Section:
    """A row for each measure, with a column for each formulation that has it."""
    found = {name: each for name, each in of.items() if each is not None}
    if not found:
        return Section(title)
    rows = [[name, *map(measure, found.values())] for name, measure in measures.items()]
    return Section(title, [words], ["measure", *found], rows)


def permutations(results: Results) -> Section:
    """Accuracies over other orders of the options, in each formulation that shows them."""
    measures: dict[str, Callable[[Permutations], str]] = {
        "orders": lambda of: str(of.orders),
        "mean accuracy over orders": lambda of: f"{percent(of.mean_accuracy)} +- {percent(of.standard_error)}",
        "lowest and highest of an order": lambda of: f"{percent(min(of.accuracies))}, {percent(max(of.accuracies))}",
        "probabilities averaged over orders": lambda of: percent(of.averaged_accuracy),
        "same option in all orders": lambda of: percent(of.consistency),
        "right in all orders": lambda of: percent(of.all_correct),
    }
    words = "A constant letter scores exactly chance on average, and is consistent on no question."
    found = {name: each.permutations for name, each in results.formulations.items()}
    return side_by_side("Other orders of the options", words, found, measures)


def texts(results: Results) -> Section:
    """Other ways to choose among options that are scored by their text."""
    names = {"sum": "log-likelihood", "per_token": "by tokens", "per_character": "by characters", "pmi": "PMI"}
    rows = []
    for name, metrics in results.formulations.items():
        for number, (way, value) in enumerate((metrics.accuracy_by or {}).items()):
            rows.append([name, names[way] + " (counts)" * (number == 0), percent(value)])
    return Section("Options scored by their text", [], ["", "by", "accuracy"], rows)


def written(results: Results) -> Section:
    """What the model wrote, in each formulation in which it did."""
    measures: dict[str, Callable[[Generation], str]] = {
        "completions of each question": lambda of: str(of.samples),
        "right completions": lambda of: percent(of.sample_accuracy),
        "unparsed completions": lambda of: percent(1 - of.parse_rate),
        "completions cut off": lambda of: percent(of.unfinished),
        "letter contradicts text": lambda of: percent(of.contradictions),
        "mean length": lambda of: f"{of.mean_length:.1f} tokens",
        "mean length of the reasoning": lambda of: f"{of.mean_reasoning_length or 0:.1f} tokens",
        "mean GRPO reward": lambda of: f"{of.reward:.4f}",
        "right in one of k (pass@k)": lambda of: ", ".join(f"{k}: {percent(p)}" for k, p in of.pass_at_k.items()),
    }
    words = f"The majority of a question's completions counts. At most {results.config['max_new_tokens']} tokens."
    found = {name: each.generation for name, each in results.formulations.items()}
    return side_by_side("What was written", words, found, measures)


def retrieval(results: Results) -> Section:
    """What the passages of an open book hold."""
    if not (found := results.retrieval):
        return Section("Retrieval")
    words = (
        f"{found.passages:,} passages of {found.path}; {found.left_out:,} others cover a question and are left out. "
        "Measured on what fits before the question."
    )
    rows = [
        ["right option's text in the passages", percent(found.metrics.right_found)],
        ["texts of wrong options in them", percent(found.metrics.wrong_found)],
        ["passages before a question, on average", f"{found.metrics.passages:.2f}"],
    ]
    return Section("Retrieval", [words], ["measure", "value"], rows)


def calibration(results: Results) -> Section:
    """How far the headline's probabilities can be trusted."""
    metrics, options = results.metrics, len(results.metrics.always)
    if not metrics.calibration or not metrics.risk_coverage:
        return Section("Calibration")
    found = metrics.calibration
    ties = "two options within 0.0001 nats (of the sum)"
    rows = [
        ["expected calibration error (10 bins)", f"{found.ece:.4f}", "0 at best"],
        ["Brier score", f"{found.brier:.4f}", f"{1 - 1 / options:.2f} for a guess"],
        ["nll over the options (nats)", f"{found.nll:.4f}", f"{log(options):.3f} for a guess"],
        ["area under risk and coverage", f"{metrics.risk_coverage.aurc:.4f}", "0 at best"],
        [ties, str(metrics.near_ties), "questions; rounding may decide them"],
    ]
    if metrics.label_mass is not None:
        rows.append(["probability of all labels together", f"{metrics.label_mass:.4f}", "1 at best"])
    by_characters = "per_character" in (metrics.accuracy_by or {})
    words = ["Of log-likelihoods by character, which are no probabilities of the texts."] if by_characters else []
    return Section("Calibration", words, ["measure", "value", ""], rows)


def labels(results: Results) -> Section:
    """Which labels were answered."""
    bias, always = results.metrics.bias, results.metrics.always
    rows = []
    for (label, share), of_gold in zip(always.items(), bias.confusion, strict=True):
        recall = bias.recall[label]
        counts = [str(bias.predicted[label]), str(bias.gold[label]), "" if recall is None else percent(recall)]
        rows.append([label, *counts, percent(share), *map(str, of_gold)])
    words = "The key lacks a label: no chi-square test."
    if bias.p_value is not None:
        words = f"Predictions against the key: chi-square {bias.chi_square:.2f}, p = {bias.p_value:.2g}."
    answered = [f"answered {label}" for label in always]
    return Section(
        "Labels", [words], ["label", "predicted", "right", "recall", "accuracy of it alone", *answered], rows
    )


def slices(results: Results) -> Section:
    """Parts of the questions."""
    rows = [
        [name, f"{part.n}{' (few)' if part.n < FEW_QUESTIONS else ''}", cell(part)]
        for name, part in results.slices.items()
    ]
    return Section("Slices", [], ["questions", "n", WILSON], rows)


def contamination(results: Results) -> Section:
    """Whether the accuracy may be memory."""
    found, probe = results.contamination, results.memorisation
    rows: list[list[str]] = []
    words: list[str] = []
    if found:
        read = ", ".join(f"{name} {number:,}" for name, number in found.documents.items())
        words.append(
            f"{found.covered} of {found.checked:,} questions are in the text (half of their 13-grams, or their last "
            f"30 words in a row); {found.too_short} are too short to look for. Documents read: {read}."
        )
        rows += [["questions not found", cell(found.clean)]] if found.clean else []
        rows += [["questions found", cell(found.covered_accuracy)]] if found.covered_accuracy else []
    if probe:
        words.append(memory(probe))
        rows.append(["train questions", cell(probe)])
    return Section("Contamination and memory", words, ["questions", WILSON], rows)


def memory(probe: Memorisation) -> str:
    """Whether train questions are answered better, in words."""
    tests = (("accuracy", probe.accuracy_gap, probe.accuracy_p), ("nll", probe.nll_gap, probe.nll_p))
    better = [name for name, gap, p_value in tests if gap > 0 and p_value < ALPHA]
    sign = f"better by {' and '.join(better)}, which may be memory" if better else "no sign of memory"
    return (
        f"{probe.n:,} train questions: accuracy {100 * probe.accuracy_gap:+.1f} points (Fisher's exact test, "
        f"p = {probe.accuracy_p:.2g}), nll over the options lower by {probe.nll_gap:.3f} nats (Welch's t-test, "
        f"p = {probe.nll_p:.2g}): {sign}."
    )


def provenance(results: Results) -> Section:
    """How the results were made."""
    data, model = results.data, results.model
    rows = [
        ["questions", f"{data.path}, sha256 {data.sha256}"],
        ["model", f"{model.name}, {model.parameters:,} parameters, sha256 {model.sha256}"],
        ["headline", f"{results.headline.name}, fp32, prompt of lm-evaluation-harness's {data.task}"],
        ["test split evaluated into this folder", f"{results.test_runs} time(s)"],
        ["time", f"{results.seconds:.1f} s"],
        *([name, str(value)] for name, value in results.environment.items()),
    ]
    return Section("How it was made", [], ["", ""], rows, of_words=True)


def percent(share: float) -> str:
    """`25.0 %`."""
    return f"{100 * share:.1f} %"


def interval(bounds: Interval) -> str:
    """`22.7 % to 27.4 %`."""
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def cell(part: Share | Metrics | Comparison) -> str:
    """An accuracy with its interval: `25.0 % (22.7 to 27.4)`."""
    if part.wilson_interval is None:
        return percent(part.accuracy)
    low, high = part.wilson_interval
    return f"{percent(part.accuracy)} ({100 * low:.1f} to {100 * high:.1f})"


def lead(row: Comparison) -> str:
    """A difference of accuracies in points: `+1.3 (-0.4 to +3.0)`."""
    if row.bootstrap_interval is None:
        return f"{100 * row.difference:+.1f}"
    low, high = row.bootstrap_interval
    return f"{100 * row.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"

"""What a report says of an evaluation, section by section, made of `eval.json` alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any

from ..console import DISCLAIMER
from .questions import Flaws
from .schema import Comparison, Memorisation, Results
from .statistics import ALPHA, in_words

ACCURACY_HEAD = [
    "",
    "accuracy (95 % Wilson)",
    "model's lead, points (95 % bootstrap)",
    "it alone / model alone right",
    "McNemar p",
    "Holm p",
]
SHORT_HEAD = ["", "accuracy (95 % Wilson)", "model's lead, points (95 % bootstrap)", "Holm p"]


@dataclass
class Section:
    """A heading, paragraphs, and a table."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def build(results: Results) -> list[Section]:
    """The sections that these results have something for."""
    makers = (
        *(accuracy, formulations, permutations, texts, written, retrieval),
        *(calibration, labels, slices, contamination, provenance),
    )
    return [section for maker in makers if (section := maker(results))]


def verdict(results: Results) -> list[str]:
    """In words: the accuracy, and whether it differs from chance, from always A and from the best constant answer."""
    metrics, data = results["metrics"], results["data"]
    rows = {row["name"]: row for row in results["comparisons"]}
    constant = [row for name, row in rows.items() if name.startswith("always ")]
    best = max(constant, key=lambda row: row["accuracy"])
    against = [rows["chance"], constant[0], *([best] if best is not constant[0] else [])]
    sentences = [
        f"Headline: {results['headline']['name']} ({results['headline']['reason']}).",
        *([results["headline"]["warning"]] if results["headline"]["warning"] else []),
        f"{metrics['accuracy']:.2%} of {data['n']:,} questions ({data['split']} split) right, "
        f"standard error {metrics['standard_error']:.2%}, 95 % interval {interval(metrics['wilson_interval'])}.",
        "The accuracy is "
        + ", ".join(against_one(row) for row in against)
        + ": p-values are Holm's, for all comparisons that were made.",
    ]
    if data["cut_prompts"]:
        sentences.append(f"Prompts longer than the context, which were cut from the left: {data['cut_prompts']}.")
    if data["repeated_rows"]:
        sentences.append(f"{repeated(data['repeated_rows'])}. Each counts as often as it is there.")
    return sentences + Flaws(**data["flaws"]).describe()


def against_one(row: Comparison) -> str:
    """How the accuracy stands to one row of the table."""
    if row.get("only_first") == row.get("only_second") == 0:
        return f"that of {row['name']}, right on the very same questions"
    return in_words(row["difference"], row["p_holm"], row["name"])


def repeated(rows: list[list[int]]) -> str:
    """Which rows ask a question again."""
    named = ", ".join(f"row {row} repeats row {earlier}" for row, earlier in rows[:5])
    return f"Rows with the question of an earlier one: {len(rows)} ({named}{' ...' if len(rows) > 5 else ''})"


def accuracy(results: Results) -> Section:
    """The table that everything else explains."""
    metrics = results["metrics"]
    own = [f"**{results['model']['name']}**", cell(metrics), "", "", "", ""]
    rows = [
        [
            row["name"],
            cell(row) if "n" in row else percent(row["accuracy"]),
            lead(row),
            f"{row['only_first']} / {row['only_second']}" if "only_first" in row else "",
            f"{row['p_value']:.2g}",
            f"{row['p_holm']:.2g}",
        ]
        for row in results["comparisons"]
    ]
    words = [DISCLAIMER + " Multiple-choice accuracy is not clinical competence.", *verdict(results)]
    words.append(f"Bootstrap interval of the accuracy: {interval(metrics['bootstrap_interval'])}. Chance is exact.")
    return Section("Accuracy", words, ACCURACY_HEAD, [own, *rows])


def formulations(results: Results) -> Section:
    """The ways in which the questions were asked, side by side."""
    headline, compared = results["headline"], {row["name"]: row for row in results["comparisons"]}
    rows = []
    for name, metrics in results["formulations"].items():
        row = compared.get(by(name))
        orders = metrics.get("permutations")
        rows.append(
            [
                name if row else f"**{name}**",
                cell(metrics),
                lead(row) if row else "",
                f"{row['p_value']:.2g}" if row else "",
                f"{row['p_holm']:.2g}" if row else "",
                percent(orders["mean_accuracy"]) if orders else "",
                str(metrics["cut_prompts"]),
            ]
        )
    words = [
        f"The headline is {headline['name']}: {headline['reason']}.",
        *([headline["warning"]] if headline["warning"] else []),
        "letter: options shown, lm-evaluation-harness's letters scored. text: options shown, their texts scored. "
        "cloze: options not shown. generate: what the model writes.",
    ]
    head = ["", "accuracy (95 % Wilson)", "headline's lead, points (95 % bootstrap)", "McNemar p", "Holm p"]
    return Section("Formulations", words, [*head, "mean over orders", "prompts cut"], rows)


def by(formulation: str) -> str:
    """What a formulation is called among the comparisons of the headline."""
    return f"by {formulation}"


def permutations(results: Results) -> Section | None:
    """What other orders of the options leave of it, in each formulation that shows them."""
    found = {name: each["permutations"] for name, each in results["formulations"].items() if "permutations" in each}
    if not found:
        return None
    measures: dict[str, Callable[[Any], str]] = {
        "mean accuracy over orders": lambda of: f"{percent(of['mean_accuracy'])} +- {percent(of['standard_error'])}",
        "lowest and highest of an order": lambda of: ", ".join(
            map(percent, (min(of["accuracies"]), max(of["accuracies"])))
        ),
        "probabilities averaged over orders": lambda of: percent(of["averaged_accuracy"]),
        "same option in all orders": lambda of: percent(of["consistency"]),
        "right in all orders": lambda of: percent(of["all_correct"]),
    }
    return Section(
        f"{next(iter(found.values()))['orders']} orders of the options",
        ["A constant letter scores exactly chance on average, and is consistent on no question."],
        ["measure", *found],
        [[name, *map(measure, found.values())] for name, measure in measures.items()],
    )


def texts(results: Results) -> Section | None:
    """Other ways to choose among options that are scored by their text."""
    names = {"sum": "log-likelihood", "per_token": "by tokens", "per_character": "by characters", "pmi": "PMI"}
    counts = {"text": "sum", "cloze": "per_character"}
    rows = []
    for name, metrics in results["formulations"].items():
        for scorer in counts.keys() & metrics.keys():
            for way, value in metrics[scorer].items():
                rows.append([name, names[way] + " (counts)" * (way == counts[scorer]), percent(value)])
    return Section("Options scored by their text", [], ["", "by", "accuracy"], rows) if rows else None


def written(results: Results) -> Section | None:
    """What the model wrote, in each formulation in which it did."""
    found = {name: each["generation"] for name, each in results["formulations"].items() if "generation" in each}
    if not found:
        return None
    first = next(iter(found.values()))
    measures: dict[str, Callable[[Any], str]] = {
        "completions of each question": lambda of: str(of["samples"]),
        "right completions": lambda of: percent(of["sample_accuracy"]),
        "unparsed completions": lambda of: percent(1 - of["parse_rate"]),
        "completions cut off": lambda of: percent(of["unfinished"]),
        "letter contradicts text": lambda of: percent(of["contradictions"]),
        "mean length": lambda of: f"{of['mean_length']:.1f} tokens",
        "mean GRPO reward": lambda of: f"{of['reward']:.4f}",
    }
    if first["mean_reasoning_length"] is not None:
        measures["mean length of the reasoning"] = lambda of: f"{of['mean_reasoning_length']:.1f} tokens"
    rows = [[name, *map(measure, found.values())] for name, measure in measures.items()]
    rows += [
        [f"right in one of {k} (pass@{k})", *(percent(each["pass_at_k"][k]) for each in found.values())]
        for k in first["pass_at_k"]
    ]
    words = f"The majority of a question's completions counts. At most {results['config']['max_new_tokens']} tokens."
    return Section("What was written", [words], ["", *found], rows)


def retrieval(results: Results) -> Section | None:
    """What the passages of an open-book evaluation hold."""
    found = results["retrieval"]
    if not found:
        return None
    words = (
        f"{found['passages']:,} passages of {found['path']}; {found['left_out']:,} others cover a question and are "
        "left out. Measured on what of them fits before the question."
    )
    measured = found["metrics"]
    rows = [
        ["right option's text in the passages", percent(measured["right_found"])],
        ["texts of wrong options in them", percent(measured["wrong_found"])],
        ["passages before a question, on average", f"{measured['passages']:.2f}"],
    ]
    return Section("Retrieval", [words], ["measure", "value"], rows)


def calibration(results: Results) -> Section | None:
    """How far its probabilities can be believed."""
    metrics = results["metrics"]
    if "calibration" not in metrics:
        return None
    found, options = metrics["calibration"], len(metrics["always"])
    rows = [
        ["expected calibration error (10 bins)", f"{found['ece']:.4f}", "0 at best"],
        ["Brier score", f"{found['brier']:.4f}", f"{1 - 1 / options:.2f} for a guess"],
        ["nll over the options (nats)", f"{found['nll']:.4f}", f"{log(options):.3f} for a guess"],
        ["area under risk and coverage", f"{metrics['risk_coverage']['aurc']:.4f}", "0 at best"],
        [
            "two options within 0.0001 nats (of the sum)",
            str(metrics["near_ties"]),
            "questions; rounding may decide them",
        ],
    ]
    if "label_mass" in metrics:
        rows.append(["probability of all labels together", f"{metrics['label_mass']:.4f}", "1 at best"])
    words = ["Of log-likelihoods by character, which are no probabilities of the texts."] if "cloze" in metrics else []
    return Section("Calibration", words, ["measure", "value", ""], rows)


def labels(results: Results) -> Section:
    """Which labels were answered."""
    bias, always = results["metrics"]["bias"], results["metrics"]["always"]
    rows = [
        [
            label,
            str(bias["predicted"][label]),
            str(bias["gold"][label]),
            percent(bias["recall"][label]) if bias["recall"][label] is not None else "",
            percent(share),
            *map(str, of_gold),
        ]
        for (label, share), of_gold in zip(always.items(), bias["confusion"], strict=True)
    ]
    words = "The key lacks a label: no chi-square test."
    if bias["p_value"] is not None:
        words = f"Predictions against the key: chi-square {bias['chi_square']:.2f}, p = {bias['p_value']:.2g}."
    head = [
        "label",
        "predicted",
        "right",
        "recall",
        "accuracy of it alone",
        *(f"answered {label}" for label in always),
    ]
    return Section("Labels", [words], head, rows)


def slices(results: Results) -> Section | None:
    """Parts of the questions."""
    rows = [
        [name, str(part["n"]) + (" (few)" if part["small"] else ""), cell(part)]
        for name, part in results["slices"].items()
    ]
    return Section("Slices", [], ["questions", "n", "accuracy (95 % Wilson)"], rows) if rows else None


def contamination(results: Results) -> Section | None:
    """Whether it may be memory."""
    found, probe = results.get("contamination"), results.get("memorisation")
    rows: list[list[str]] = []
    words: list[str] = []
    if found:
        read = ", ".join(f"{name} {number:,}" for name, number in found["documents"].items())
        words.append(
            f"{found['covered']} of {found['checked']:,} questions stand in the text (half of their 13-grams, or "
            f"their last 30 words in a row); {found['too_short']} are too short to look for. Documents read: {read}."
        )
        rows += [["questions not found", cell(found["clean"])]] if found["clean"] else []
        rows += [["questions found", cell(found["covered_accuracy"])]] if found["covered_accuracy"] else []
    if probe:
        words.append(memory(probe))
        rows.append(["train questions", cell(probe)])
    return Section("Contamination and memory", words, ["questions", "accuracy (95 % Wilson)"], rows) if words else None


def memory(probe: Memorisation) -> str:
    """Whether train questions are answered better, in words."""
    tests = (("accuracy", probe["accuracy_gap"], probe["accuracy_p"]), ("nll", probe["nll_gap"], probe["nll_p"]))
    better = [name for name, gap, p_value in tests if gap > 0 and p_value < ALPHA]
    sign = f"better by {' and '.join(better)}, which may be memory" if better else "no sign of memory"
    return (
        f"{probe['n']:,} train questions: accuracy {100 * probe['accuracy_gap']:+.1f} points (Fisher's exact test, "
        f"p = {probe['accuracy_p']:.2g}), nll over the options lower by {probe['nll_gap']:.3f} nats (Welch's t-test, "
        f"p = {probe['nll_p']:.2g}): {sign}."
    )


def provenance(results: Results) -> Section:
    """How it came about."""
    data, model = results["data"], results["model"]
    rows = [
        ["questions", f"{data['path']}, sha256 {data['sha256']}"],
        ["model", f"{model['name']}, {model['parameters']:,} parameters, sha256 {model['sha256']}"],
        ["headline", f"{results['headline']['name']}, fp32, prompt of lm-evaluation-harness's {data['task']}"],
        ["test split evaluated into this folder", f"{results['test_runs']} time(s)"],
        ["time", f"{results['seconds']:.1f} s"],
        *([name, str(value)] for name, value in results["environment"].items()),
    ]
    return Section("How it was made", [], ["", ""], rows)


def short_rows(results: Results) -> list[list[str]]:
    """The accuracy table for a terminal."""
    rows = [[name.strip("*"), share, lead, p] for name, share, lead, _, _, p in accuracy(results).rows]
    if found := results["metrics"].get("permutations"):
        rows.append([f"mean over {found['orders']} orders", percent(found["mean_accuracy"]), "", ""])
    return rows


def percent(share: float) -> str:
    """`25.0 %`."""
    return f"{100 * share:.1f} %"


def interval(bounds: list[float]) -> str:
    """`22.7 % to 27.4 %`."""
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def cell(part: Mapping[str, Any]) -> str:
    """An accuracy with its interval: `25.0 % (22.7 to 27.4)`."""
    low, high = part["wilson_interval"]
    return f"{100 * part['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def lead(row: Comparison) -> str:
    """A difference of accuracies in points: `+1.3 (-0.4 to +3.0)`."""
    if "bootstrap_interval" not in row:
        return f"{100 * row['difference']:+.1f}"
    low, high = row["bootstrap_interval"]
    return f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"

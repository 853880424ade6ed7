"""A page that asks a model: probabilities over all orders of the options, and the model's own answer.

    MODEL=USER/pure python app.py

MODEL is a causal model, a folder or a Hub id; EXAMPLES is a file of other example questions, in the layout of MedQA.
Prompts, scores and parsing are those of the evaluation, in fp32. Research use, not clinical.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from itertools import permutations
from pathlib import Path
from string import ascii_uppercase

import gradio as gr
import numpy as np

import modeling_pure  # noqa: F401  registers the model type "pure": no code that lies beside the weights is run
from modeling_pure.console import DISCLAIMER
from modeling_pure.errors import InputError, run_script
from modeling_pure.loading import check_model, load_model
from modeling_pure.medqa.arguments import EvalArguments
from modeling_pure.medqa.formulations import BY_LETTER, BY_TEXT, Order
from modeling_pure.medqa.log_likelihood import context_length
from modeling_pure.medqa.questions import Question
from modeling_pure.medqa.scorers import SCORERS, NotFinite, Record, ScorerSettings
from modeling_pure.medqa.statistics import option_probabilities
from modeling_pure.medqa.tasks import MEDQA
from modeling_pure.tokenizer import load_tokenizer, prompt_ids

HERE = Path(__file__).parent
MAX_OPTIONS = 10
MAX_PERMUTED = 4  # options that are asked in all their orders
MAX_NEW_TOKENS = 256  # GRPO's default


@dataclass(frozen=True)
class Examiner:
    """A model and two ways to ask it: score the options as it was taught to answer, or generate an answer."""

    scoring: ScorerSettings
    generating: ScorerSettings

    @classmethod
    def load(cls, name: str) -> "Examiner":
        """Load a folder or Hub id; `InputError` if it is not a causal model in safetensors."""
        check_model("MODEL", name)
        tokenizer, model = load_tokenizer("MODEL", name), load_model("MODEL", name, trust_remote_code=False)
        args = EvalArguments(scorer="generate")
        plan = args.plan(model.config)
        sampling = args.sampling(plan, context_length(model.config, tokenizer))
        sampling = replace(sampling, max_new_tokens=min(sampling.max_new_tokens, MAX_NEW_TOKENS))
        scoring = ScorerSettings(model, tokenizer, MEDQA, formulation=BY_TEXT if "text" in plan.taught else BY_LETTER)
        return cls(scoring, replace(scoring, formulation=plan.headline, sampling=sampling))

    def generate(self, question: Question) -> Record:
        """The greedy completion, parsed: a record of `score_generations`."""
        ((_, record),) = SCORERS["generate"](fitted(self.generating, question), [question])
        return record

    def score(self, question: Question, orders: list[Order], progress: gr.Progress) -> np.ndarray:
        """Probabilities (orders, options) of each option in each order."""
        settings = fitted(self.scoring, question)
        batches = SCORERS[settings.formulation.scorer](settings, [question.reordered(order) for order in orders])
        records = dict(progress.tqdm(batches, desc="orders of the options", total=len(orders)))
        scores = [records[i]["log_likelihoods"] for i in range(len(orders))]
        return option_probabilities(np.array([scores]), np.array(orders))[0]


def fitted(settings: ScorerSettings, question: Question) -> ScorerSettings:
    """The settings with a label for each option; `InputError` if the prompt does not fit the model's context."""
    settings = replace(settings, task=replace(MEDQA, labels=tuple(ascii_uppercase[: len(question.options)])))
    (ids,) = prompt_ids(settings.tokenizer, [settings.prompt(question)])
    if len(ids) > (longest := settings.longest_prompt(question)):
        raise InputError(
            f"question: {len(ids):,} tokens with its options, but the model reads {longest:,}; shorten it"
        )
    return settings


def read_question(text: str, lines: str) -> Question:
    """The question that a visitor typed, an option on each line."""
    options = tuple(line.strip() for line in lines.splitlines() if line.strip())
    if not text.strip():
        raise InputError("question: empty; type one or choose an example")
    if not 2 <= len(options) <= MAX_OPTIONS:
        raise InputError(f"options: expected 2 to {MAX_OPTIONS}, one per line; found {len(options)}")
    return Question(text.strip(), options, answer=0)  # prompts and scores do not depend on the answer


def orders_of(options: int) -> list[Order]:
    """All orders of a few options; of more, the rotations, in which each option takes each place once."""
    places = tuple(range(options))
    return [*permutations(places)] if options <= MAX_PERMUTED else [places[i:] + places[:i] for i in places]


def labelled(question: Question) -> list[str]:
    """The options with their letters, as HTML."""
    return [escape(f"{letter}. {text}") for letter, text in zip(ascii_uppercase, question.options, strict=False)]


def completion_html(prompt: str, question: Question, record: Record) -> str:
    """A completion after the last line of its prompt, and the answer that was read from it."""
    (completion,), (answer,), (contradicts,) = record["completions"], record["answers"], record["contradicts"]
    notes = ["No answer could be read" if answer is None else f"Read as {labelled(question)[answer]}"]
    notes += ["its letter and its text name different options"] * contradicts
    notes += [f"stopped after {record['lengths'][0]} tokens"] * (not record["finished"][0])
    last_line = escape(prompt.splitlines()[-1])
    return f"<pre><span>{last_line}</span>{escape(completion)}</pre><p>{'; '.join(notes)}</p>"


def probabilities_html(question: Question, orders: list[Order], probabilities: np.ndarray) -> str:
    """Each option's mean probability and range over the orders, and the mean of each place."""
    rows = ""
    for label, of_option in zip(labelled(question), probabilities.T, strict=True):
        mean, low, high = float(of_option.mean()), of_option.min(), of_option.max()
        rows += (
            f"<li><span>{label}</span><data value={mean}>{mean:.1%}</data>"
            f'<div><i style="width:{mean:.2%}"></i><u style="left:{low:.2%};width:{high - low:.2%}"></u></div>'
            f"<small>{low:.1%} to {high:.1%}</small></li>"
        )
    of_places = np.take_along_axis(probabilities, np.array(orders), axis=-1).mean(0)
    places = " · ".join(f"{letter}&nbsp;{mean:.1%}" for letter, mean in zip(ascii_uppercase, of_places, strict=False))
    averaged = f"all {len(orders)} orders" if len(of_places) <= MAX_PERMUTED else f"{len(orders)} rotations"
    return (
        f"<ol>{rows}</ol><p>Bars: mean over {averaged} of the options; lines: least to greatest.</p>"
        f"<p>Mean of each place: {places}. Without position bias: {1 / len(of_places):.1%} each.</p>"
    )


def build_page(examiner: Examiner, examples: list[Question]) -> gr.Blocks:
    """The page: question and options, then the model's answer and probabilities."""

    def ask(
        text: str,
        lines: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  Gradio fills it in
    ) -> Iterator[tuple[str, str, str]]:
        try:
            question = read_question(text, lines)
            record = examiner.generate(question)
            completion = completion_html(examiner.generating.prompt(question), question, record)
            yield "", completion, ""
            orders = orders_of(len(question.options))
            yield "", completion, probabilities_html(question, orders, examiner.score(question, orders, progress))
        except (InputError, NotFinite) as error:
            line = "MODEL: its outputs are not finite" if isinstance(error, NotFinite) else str(error)
            yield f"<p role=alert>{escape(line)}</p>", "", ""

    model, shown = examiner.scoring.model, {"show_label": True, "container": True, "padding": True}
    with gr.Blocks(title="Pure", analytics_enabled=False) as page:
        gr.HTML(f"<h1>Pure</h1><p>{escape(model.name_or_path)}, {model.num_parameters():,} parameters</p>")
        with gr.Row():
            with gr.Column():
                text = gr.Textbox(label="Question", lines=4, elem_id="question")
                lines = gr.Textbox(label=f"Options, one per line (2 to {MAX_OPTIONS})", lines=4, elem_id="options")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                message = gr.HTML(elem_id="message")
                samples = [[question.question, "\n".join(question.options)] for question in examples]
                gr.Examples(samples, [text, lines], visible_columns=[0], elem_id="examples")
            with gr.Column():
                answer_format = examiner.generating.formulation.answer_format
                completion = gr.HTML(label=f"Completion ({answer_format})", elem_id="completion", **shown)
                scorer = examiner.scoring.formulation.name
                probabilities = gr.HTML(label=f"Probabilities (by {scorer})", elem_id="probabilities", **shown)
        gr.HTML(f"<p role=note>{DISCLAIMER}</p>", elem_id="disclaimer")
        outputs = [message, completion, probabilities]
        button.click(ask, [text, lines], outputs, show_progress_on=probabilities, scroll_to_output=True)
    return page


def main() -> None:
    """Load the model once and serve the page."""
    if not (name := os.environ.get("MODEL")):
        raise InputError("MODEL: not set; set it to a checkpoint's folder or Hub id")
    examples = MEDQA.read("EXAMPLES", os.environ.get("EXAMPLES", str(HERE / "examples.jsonl")))[:6]
    page = build_page(Examiner.load(name), examples).queue(max_size=16)
    font = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))  # Gradio's own semibold lacks most letters
    theme = gr.themes.Default(primary_hue="teal", font=(font, "sans-serif"))
    page.launch(theme=theme, css_paths=HERE / "style.css", footer_links=[], run_history=False)


if __name__ == "__main__":
    run_script(main, "app.py")

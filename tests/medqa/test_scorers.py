"""The scorers against plain implementations."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from modeling_pure.medqa.formats import chat_prompt, format_prompt, format_stem, parse_answer
from modeling_pure.medqa.formulations import BY_LETTER, BY_TEXT, CLOZE, Formulation
from modeling_pure.medqa.questions import Question
from modeling_pure.medqa.scorers import SCORERS, Sampling, ScorerSettings
from modeling_pure.medqa.tasks import MEDMCQA, MEDQA

WRITTEN = {name: Formulation("generate", name) for name in ("letter", "text", "reasoned")}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def settings(model, tokenizer) -> ScorerSettings:
    return ScorerSettings(model, tokenizer, MEDQA, batch_size=8, sampling=Sampling(max_new_tokens=6))


@pytest.fixture(scope="module")
def writing(settings) -> ScorerSettings:
    return replace(settings, formulation=WRITTEN["letter"])


@pytest.fixture(scope="module")
def mixed(questions) -> list[Question]:
    """Questions of different lengths with options of different lengths."""
    return [
        replace(q, question=q.question * (1 + i % 3), options=tuple(f"{o} " * k + o for k, o in enumerate(q.options)))
        for i, q in enumerate(questions[:20])
    ]


def records_of(settings, questions) -> list[dict]:
    found = dict(SCORERS[settings.formulation.scorer](settings, questions))
    assert sorted(found) == list(range(len(questions)))
    return [found[i] for i in range(len(questions))]


@torch.no_grad()
def log_likelihood(settings, context: str, continuation: str) -> float:
    """One forward pass over the whole text."""
    start = len(settings.tokenizer(context).input_ids)
    ids = settings.tokenizer(context + continuation).input_ids
    log_probs = settings.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(start, len(ids)))


@pytest.mark.parametrize("formulation", [CLOZE, BY_TEXT], ids=["cloze", "text"])
def test_text_scores_match_single_forward_passes(settings, mixed, formulation):
    shown = formulation == BY_TEXT
    for question, record in zip(mixed, records_of(replace(settings, formulation=formulation), mixed), strict=True):
        prompt = format_prompt(question) if shown else format_stem(question)
        assert ("A. " in prompt) == shown
        for i, option in enumerate(question.options):
            text = f" {option} (" if shown else f" {option}"
            assert record["log_likelihoods"][i] == pytest.approx(log_likelihood(settings, prompt, text), abs=1e-4)
            assert record["unconditional"][i] == pytest.approx(log_likelihood(settings, "Answer:", text), abs=1e-4)
            assert record["tokens"][i] == len(settings.tokenizer(text).input_ids)
            assert record["characters"][i] == len(option)
        assert not record["cut"]


def test_texts_follow_the_prompt_of_the_task(settings, mixed):
    other = replace(settings, task=MEDMCQA, formulation=BY_TEXT)
    (record,) = records_of(other, mixed[1:2])
    expected = [log_likelihood(settings, MEDMCQA.prompt(mixed[1]), f" {option} (") for option in mixed[1].options]
    assert record["log_likelihoods"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("answer_format", WRITTEN)
def test_greedy_completions_match_a_plain_loop(settings, mixed, answer_format):
    eos = settings.tokenizer.eos_token_id
    writing = replace(settings, formulation=WRITTEN[answer_format])
    for question, record in zip(mixed[:6], records_of(writing, mixed[:6]), strict=True):
        ids = settings.tokenizer(format_prompt(question, answer_format)).input_ids
        written = []
        with torch.no_grad():
            while len(written) < 6 and eos not in written:
                written.append(int(settings.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
        text = settings.tokenizer.decode(written, skip_special_tokens=True)
        assert record["completions"] == [text]
        assert record["answers"] == [parse_answer(text, question.options, answer_format, eos in written).option]
        assert record["finished"] == [eos in written]
        assert record["lengths"] == [sum(token != eos for token in written)]


def test_a_long_prompt_is_cut_to_leave_room_for_the_answer(writing, questions):
    long = replace(questions[0], question="fever " * 600)
    (record,) = records_of(writing, [long])
    assert record["cut"]
    assert len(record["completions"]) == 1
    assert records_of(replace(writing, formulation=BY_LETTER), [long, questions[1]])[0]["cut"]


@pytest.mark.parametrize("scorer", SCORERS)
def test_records_do_not_depend_on_the_batch(settings, mixed, scorer):
    """Log-likelihoods to 1e-5 in fp32 (sums of a few tokens: 1e-4), completions exactly, sampled or not."""
    formulation = {"letter": BY_LETTER, "text": BY_TEXT, "cloze": CLOZE, "generate": WRITTEN["text"]}[scorer]
    settings = replace(settings, formulation=formulation)
    variants = [settings, replace(settings, batch_size=1), replace(settings, batch_size=64)]
    if scorer == "generate":
        sampling = Sampling(num_samples=3, temperature=0.7, max_new_tokens=6)
        variants += [replace(one, sampling=sampling) for one in variants]
    found = [records_of(one, mixed) for one in variants]
    for group in (found[:3], found[3:]):
        for other in group[1:]:
            for first, second in zip(group[0], other, strict=True):
                if scorer == "generate":
                    assert first == second
                else:
                    assert second["log_likelihoods"] == pytest.approx(first["log_likelihoods"], abs=1e-4)


def test_samples_are_drawn_question_by_question(writing, mixed):
    """Samples after a resume are the same as without a stop; another seed gives other samples."""
    sampling = Sampling(num_samples=4, temperature=1.5, max_new_tokens=6)
    drawing, other = replace(writing, sampling=sampling), replace(writing, sampling=replace(sampling, seed=1))
    whole = records_of(drawing, mixed[:5])
    assert records_of(drawing, mixed[3:5]) == whole[3:]
    assert records_of(other, mixed[:5]) != whole
    assert all(len(record["completions"]) == 4 for record in whole)


class Writes:
    """A model that generates the same tokens for every prompt and stores its inputs."""

    def __init__(self, model, ids, ends=None):
        self.config, self.device, self.ids = model.config, model.device, ids
        self.generation_config = GenerationConfig(eos_token_id=ends)

    def generate(self, input_ids, **kwargs):
        self.prompts, self.settings = input_ids, kwargs["generation_config"]
        return torch.cat([input_ids, torch.tensor([self.ids] * len(input_ids))], 1)


def test_the_reward_is_grpos(writing, questions):
    eos = writing.tokenizer.eos_token_id
    ids = [*writing.tokenizer(" B").input_ids, eos, eos]
    records = records_of(replace(writing, model=Writes(writing.model, ids)), questions)
    penalty = max(0.0, (4 - sum(token != eos for token in ids)) / 4)
    for question, record in zip(questions, records, strict=True):
        assert record["answers"] == [1]
        assert record["lengths"] == [1]
        assert record["rewards"] == [float(question.answer == 1) - 0.01 * penalty]
    assert penalty == 0.75


def test_reasoning_length_excludes_the_answer(settings, questions):
    question, tokenizer = questions[0], settings.tokenizer
    right = question.options[question.answer]
    wrong = "ABCD"[(question.answer + 1) % 4]
    ids = tokenizer(f" fever or cough.\nAnswer: {right} ({wrong})").input_ids
    reasoned = replace(settings, formulation=WRITTEN["reasoned"])
    finished, cut_off = (
        records_of(replace(reasoned, model=Writes(settings.model, ids + end)), [question])[0]
        for end in ([tokenizer.eos_token_id], [])
    )
    reasons = len(tokenizer(" fever or cough.").input_ids)
    assert (finished["answers"], finished["contradicts"]) == ([question.answer], [True])
    assert (finished["reasoning_lengths"], finished["lengths"]) == ([reasons], [len(ids)])
    assert (cut_off["answers"], cut_off["finished"]) == ([None], [False])
    assert cut_off["reasoning_lengths"] == [len(ids)]


def test_every_end_token_ends_a_completion(writing, questions):
    eos, (turn,) = writing.tokenizer.eos_token_id, writing.tokenizer("?").input_ids
    ids = [*writing.tokenizer(" B").input_ids, turn, *writing.tokenizer(" A").input_ids, eos]
    model = Writes(writing.model, ids, ends=[turn])
    (record,) = records_of(replace(writing, model=model), questions[:1])
    assert {*model.settings.eos_token_id} == {eos, turn}
    assert (record["finished"], record["lengths"]) == ([True], [1])


@pytest.mark.parametrize("answer_format", WRITTEN)
def test_a_chat_prompt_is_one_turn_of_the_template(settings, questions, answer_format):
    """The template holds the special tokens; a turn is parsed like a completion."""
    tokenizer = copy.deepcopy(settings.tokenizer)
    tokenizer.chat_template = TEMPLATE
    question, eos = questions[0], tokenizer.eos_token
    begins = TemplateProcessing(single=f"{eos} $A", special_tokens=[(eos, tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = begins
    written = {"letter": "B. x", "text": question.options[1], "reasoned": f"Why?\nAnswer: {question.options[1]} (B)"}
    ids = [*tokenizer(written[answer_format], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    model = Writes(settings.model, ids)
    chat = replace(settings, model=model, tokenizer=tokenizer, formulation=replace(WRITTEN[answer_format], chat=True))
    (record,) = records_of(chat, [question])
    prompt = format_prompt(question, answer_format)
    assert chat.prompt(question) == f"{eos}[user] {prompt}{eos}[assistant]" == chat_prompt(tokenizer, prompt)
    assert tokenizer.decode(model.prompts[0]) == chat.prompt(question)
    assert record["answers"] == [1]

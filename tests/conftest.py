"""No network, no telemetry, one thread a worker; a tiny tokenizer and tiny sources that all tests share."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",
)

import copy
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from modeling_pure import PureConfig, PureForCausalLM
from modeling_pure.medqa.formats import format_answer, format_prompt
from modeling_pure.medqa.questions import Question

torch.set_num_threads(1)

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
needs_compiler = pytest.mark.skipif(not COMPILER, reason="inductor needs a C++ compiler")

WORDS = ["fever", "cough", "rash", "pain", "fatigue", "aspirin", "heparin", "insulin", "statin", "lungs", "heart"]


def make_question(rng: random.Random, number: int) -> Question:
    """A question whose right answer is not to be known: tests need its form."""
    stem = " ".join(rng.choices(WORDS, k=8))
    return Question(f"Case {number}: {stem}. What is given?", tuple(rng.sample(WORDS, 4)), rng.randrange(4), "step1")


def question_row(question: Question) -> dict:
    """A question in the layout of GBaker/MedQA-USMLE-4-options."""
    return {
        "question": question.question,
        "answer": question.options[question.answer],
        "options": dict(zip("ABCD", question.options, strict=True)),
        "answer_idx": question.letter,
        "meta_info": question.meta_info,
    }


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Write rows as jsonl and return the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


CHAT_TEMPLATE = """{% for message in messages %}<|{{ message.role }}|>
{{ message.content }}<|endoftext|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""


def with_chat_template(tokenizer, template: str | None = None):
    """A copy of a tokenizer, with a chat template whose turns end in the end-of-text token."""
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = template or CHAT_TEMPLATE
    return chat


def adding(tokenizer, front: str = "", back: str = ""):
    """A copy of a tokenizer that adds these tokens before and after each text by itself."""
    copied = copy.deepcopy(tokenizer)
    pieces = [piece for piece in (front, "$A", back) if piece]
    special = [(token, copied.convert_tokens_to_ids(token)) for token in {front, back} - {""}]
    copied.backend_tokenizer.post_processor = TemplateProcessing(single=pieces, special_tokens=special)
    return copied


def numbers_in(text: str) -> list[str]:
    """The numbers in a message, as written: `1,024`, `31.2`."""
    return re.findall(r"\d[\d,]*(?:\.\d+)?(?<!,)", text)


def through_checkpoint(state):
    """What a state is after Trainer has written it to trainer_state.json, with sorted keys, and read it."""
    return json.loads(json.dumps(state, sort_keys=True))


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Undo what accelerate and transformers write into the environment: number of processes, engine, precision."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> MadeOnce:
    """`made_once(name, make)`: a folder that `make` fills once, shared by all workers."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = base / name, base / f"{name}.made"
        with FileLock(base / f"{name}.lock"):
            if not made.exists():
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def questions() -> list[Question]:
    """120 questions."""
    rng = random.Random(0)
    return [make_question(rng, number) for number in range(120)]


@pytest.fixture(scope="session")
def tokenizer_folder(made_once, questions) -> Path:
    """A byte-level BPE of 400 tokens, without a pad token, like GPT-2's."""
    texts = [format_prompt(question) + format_answer(question) for question in questions] * 3
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    return made_once("tokenizer", tokenizer.save_pretrained)


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder):
    """That tokenizer with our pad token."""
    from modeling_pure.tokenizer import load_tokenizer

    return load_tokenizer("key", str(tokenizer_folder))


@pytest.fixture(scope="session")
def corpus(made_once, questions) -> Path:
    """Three text sources of 300 documents each, and a file of questions."""

    def write(folder: Path) -> None:
        for number, name in enumerate(("finepdfs", "fineweb_edu", "c4")):
            rng = random.Random(number)
            rows = [{"text": f"{name} {i}: " + " ".join(rng.choices(WORDS, k=rng.randint(3, 60)))} for i in range(300)]
            write_jsonl(folder / f"{name}.jsonl", rows)
        write_jsonl(folder / "questions.jsonl", [question_row(question) for question in questions])

    return made_once("corpus", write)


@pytest.fixture(scope="session")
def sources(corpus) -> dict:
    """A recipe's `sources` on that corpus."""
    return {
        "finepdfs": {"path": str(corpus / "finepdfs.jsonl"), "weight": 0.45, "validation_documents": 40},
        "fineweb_edu": {"path": str(corpus / "fineweb_edu.jsonl"), "weight": 0.25, "validation_documents": 40},
        "c4": {"path": str(corpus / "c4.jsonl"), "weight": 0.2, "validation_documents": 40},
        "usmle": {"path": str(corpus / "questions.jsonl"), "weight": 0.1, "format": "medqa"},
    }


@pytest.fixture
def config() -> PureConfig:
    """The `tiny` preset with large weights: at the real scales every logit is near zero and all comparisons hold."""
    return PureConfig.from_preset("tiny", initializer_range=0.1, head_initializer_range=0.1)


@pytest.fixture
def model(config: PureConfig) -> PureForCausalLM:
    torch.manual_seed(0)
    return PureForCausalLM(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    """Two rows of 24 ordinary tokens (no end, no padding)."""
    return torch.randint(2, 2048, (2, 24), generator=torch.Generator().manual_seed(1))

"""Checks, findings, and the context that checks look at: a recipe as a run would read it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import get_session
from transformers import PreTrainedTokenizerBase

from ..configuration_pure import PureConfig
from ..data.arguments import DataArguments, Source
from ..errors import InputError, RunStopped, first_line
from ..files import SUFFIXES, looks_local
from ..modeling_pure import PureForCausalLM
from ..tokenizer import check_vocabulary, load_document_tokenizer
from ..training.arguments import ModelArguments, PureTrainingArguments, model_config
from ..training.throughput import model_flops, training_bytes, training_memory

PASS, WARN, FAIL, SKIPPED = "pass", "warn", "fail", "skipped"
HUB_SECONDS = 5.0


class Skip(InputError):
    """A check cannot run here; `cure` makes it possible."""

    def __init__(self, found: str, cure: str) -> None:
        super().__init__(found)
        self.cure = cure


@dataclass(frozen=True)
class Finding:
    """The result of a check; `cure` tells what to do unless it passed."""

    status: str
    found: str
    cure: str = ""


@dataclass(frozen=True)
class Check:
    """A check: `look` returns a finding, or only its text if it passes, or raises what a run would raise."""

    name: str
    look: Callable[["Context"], Finding | str]
    cure: str = ""

    def run(self, context: "Context") -> Finding:
        """The finding; errors become findings, too."""
        try:
            found = self.look(context)
        except Skip as skip:
            return Finding(SKIPPED, str(skip), skip.cure)
        except (InputError, RunStopped) as error:
            return Finding(FAIL, first_line(error), self.cure)
        except Exception as error:  # whatever it is, a run would fail with it
            return Finding(FAIL, f"{self.name}: {first_line(error)}", self.cure)
        return Finding(PASS, found) if isinstance(found, str) else found


@dataclass
class Context:
    """A recipe as a run would read it."""

    model: ModelArguments
    data: DataArguments
    training: PureTrainingArguments
    quick: bool = False

    def __post_init__(self) -> None:
        # A run may wait minutes for a server; a check waits seconds.
        self.data = replace(self.data, streaming_timeout=min(self.data.streaming_timeout, HUB_SECONDS))
        self.plan = self.training.batch_plan(self.data.max_seq_length)

    @property
    def sources_read(self) -> list[Source]:
        """The sources that a run opens: for pretokenized sequences, only those of its dev questions."""
        if not self.data.pretokenized_dir:
            return self.data.mixture
        return [one for one in self.data.mixture if one.format == "medqa" and self.data.medqa_dev_questions]

    @property
    def questions_read(self) -> list[str]:
        """The paths of decontamination questions; pretokenized sequences are decontaminated already."""
        return [] if self.data.pretokenized_dir else self.data.decontaminate or []

    @property
    def needs_hub(self) -> bool:
        """Whether a run reads from the Hub or writes to it."""
        texts = [path for source in (*self.sources_read, *self.data.outside) for path in paths_of(source)]
        paths = [self.data.tokenizer_name_or_path, *texts, *self.questions_read]
        return self.training.push_to_hub or any(map(on_hub, paths))

    @cached_property
    def hub_fault(self) -> str | None:
        """Why the Hub does not answer a single request; None if it does, or is not needed."""
        if not self.needs_hub:
            return None
        if constants.is_offline_mode():
            return "HF_HUB_OFFLINE is set"
        try:
            status = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS).status_code
        except HTTPError as error:
            return f"no network: {constants.ENDPOINT}: {first_line(error) or type(error).__name__}"
        # A firewall answers 403; a mirror of the Hub may answer 404 at its root.
        return f"{constants.ENDPOINT} answers HTTP {status}" if status == 403 or status >= 500 else None

    def require_hub(self, paths: list[str]) -> None:
        """Raise `Skip` if one of the paths is on the Hub and the Hub does not answer."""
        remote = [path for path in paths if on_hub(path)]
        if remote and self.hub_fault:
            raise Skip(f"{', '.join(remote)}: on the Hub", "see Hub above")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, without the Hub its downloaded copy; raises `InputError` if it cannot be loaded."""
        name = self.data.tokenizer_name_or_path
        if on_hub(name) and self.hub_fault:
            try:
                name = snapshot_download(name, local_files_only=True)
            except LocalEntryNotFoundError:
                self.require_hub([name])
        return load_document_tokenizer(name)

    @cached_property
    def config(self) -> PureConfig:
        """The model's configuration, fitted to the tokenizer if possible; raises `InputError` if it is wrong."""
        tokenizer = None
        with suppress(InputError):  # the tokenizer has its own check
            check_vocabulary(self.tokenizer, model_config(self.model, self.data.max_seq_length).vocab_size)
            tokenizer = self.tokenizer
        return model_config(self.model, self.data.max_seq_length, tokenizer)

    @cached_property
    def blueprint(self) -> PureForCausalLM:
        """The model without weights, which takes no memory."""
        with torch.device("meta"):
            return PureForCausalLM(self.config)

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self.blueprint.num_parameters()

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.training.max_steps * self.plan.sequences_per_step * self.data.max_seq_length

    @property
    def flops(self) -> int:
        """FLOPs of training on one token."""
        return model_flops(self.blueprint, self.data.max_seq_length)

    @property
    def size(self) -> tuple[int, int]:
        """Sequences of a micro-batch, and their length."""
        return self.plan.micro_batch_size, self.data.max_seq_length

    def memory(self, training: PureTrainingArguments, length: int) -> tuple[int, str]:
        """The estimated memory of a micro-batch, as in the start-up block: bytes, and as text."""
        tokens = training.batch_plan(length).micro_batch_size * length
        facts = (self.config, self.parameters, training, tokens)
        return sum(training_bytes(*facts).values()), training_memory(*facts)


def paths_of(source: Source) -> list[str]:
    """The paths of a source, including its validation documents."""
    return [*source.paths, *([source.validation_path] if source.validation_path else [])]


def on_hub(path: str) -> bool:
    """Whether a path of the recipe is on the Hub: a repository id has at most one slash and is not a local path."""
    return path.startswith("hf://") or not ("://" in path or path.count("/") > 1 or looks_local(path, SUFFIXES))

"""What a check finds, and what the checks look at: a recipe, and what several of them have to know about it."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import get_session
from transformers import PreTrainedTokenizerBase

from ..configuration_pure import PureConfig
from ..data.arguments import DataArguments, Source
from ..data.files import SUFFIXES
from ..errors import InputError, first_line
from ..modeling_pure import PureForCausalLM
from ..records import looks_local
from ..tokenizer import check_vocabulary, load_document_tokenizer
from ..training.arguments import ModelArguments, PureTrainingArguments, model_config
from ..training.report import model_flops, training_bytes, training_memory

PASS, WARN, FAIL, SKIPPED = "pass", "warn", "fail", "skipped"
HUB_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """What a check found; `cure` says in a few words what to do where `status` is not a pass."""

    status: str
    found: str
    cure: str = ""


@dataclass
class Context:
    """A recipe as a run would read it."""

    model: ModelArguments
    data: DataArguments
    training: PureTrainingArguments
    quick: bool = False

    def __post_init__(self) -> None:
        # A run may wait minutes for a server; whoever asks now whether it answers wants to know now.
        self.data = replace(self.data, streaming_timeout=min(self.data.streaming_timeout, HUB_SECONDS))
        self.training.share_out(self.data.max_seq_length)

    @cached_property
    def sources(self) -> list[Source]:
        """The mixture; `InputError` where the recipe does not state one."""
        return self.data.mixture

    @cached_property
    def outside(self) -> list[Source]:
        """The texts outside the mixture; `InputError` as above."""
        return self.data.outside

    @cached_property
    def sources_read(self) -> list[Source]:
        """Those of the mixture that a run opens: of packed rows it asks the questions of each validation only."""
        if not self.data.pretokenized_dir:
            return self.sources
        return [one for one in self.sources if one.format == "medqa" and self.data.medqa_dev_questions]

    @cached_property
    def questions_read(self) -> list[str]:
        """The paths of questions that no document may hold; in packed rows none does."""
        return [] if self.data.pretokenized_dir else self.data.decontaminate or []

    @cached_property
    def needs_hub(self) -> bool:
        """Whether a run reads from the Hub or writes to it."""
        texts = [path for source in (*self.sources_read, *self.outside) for path in paths_of(source)]
        paths = [self.data.tokenizer_name_or_path, *texts, *self.questions_read]
        return self.training.push_to_hub or any(map(on_hub, paths))

    @cached_property
    def hub_fault(self) -> str | None:
        """Why the Hub does not answer, found out by one request within seconds; None where it does, or need not."""
        if not self.needs_hub:
            return None
        if constants.is_offline_mode():
            return "HF_HUB_OFFLINE is set"
        try:
            status = get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS).status_code
        except HTTPError as error:  # of httpx, under whichever name the Hub's library has it
            return f"no network: {constants.ENDPOINT}: {first_line(error) or type(error).__name__}"
        # A firewall says 403; a mirror of the Hub may well have nothing at its root.
        return f"{constants.ENDPOINT} answers HTTP {status}" if status == 403 or status >= 500 else None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; without the Hub, the copy that was downloaded before. `InputError` where there is none."""
        key, name = "tokenizer_name_or_path", self.data.tokenizer_name_or_path
        if on_hub(name) and self.hub_fault:
            try:
                name = snapshot_download(name, local_files_only=True)
            except LocalEntryNotFoundError as error:
                raise InputError(f"{key}: '{name}' was not downloaded before, and {self.hub_fault}") from error
        return load_document_tokenizer(name)

    @cached_property
    def config(self) -> PureConfig:
        """The model's configuration, fitted to the tokenizer where there is one that fits; `InputError` if wrong."""
        try:
            tokenizer = self.tokenizer
            check_vocabulary(tokenizer, model_config(self.model, self.data.max_seq_length).vocab_size)
        except InputError:  # which a check of its own reports
            tokenizer = None
        return model_config(self.model, self.data.max_seq_length, tokenizer)

    @cached_property
    def blueprint(self) -> PureForCausalLM:
        """The model without its weights, which costs nothing."""
        with torch.device("meta"):
            return PureForCausalLM(self.config)

    @property
    def parameters(self) -> int:
        """Of the model."""
        return self.blueprint.num_parameters()

    @property
    def state_bytes(self) -> int:
        """Of weights, gradients and the optimizer's two moments, in fp32."""
        return 16 * self.parameters

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.training.max_steps * self.training.sequences_per_step * self.data.max_seq_length

    @property
    def flops(self) -> int:
        """Of training on one token."""
        return model_flops(self.blueprint, self.data.max_seq_length)

    @property
    def size(self) -> tuple[int, int]:
        """Rows of a pass, and their length."""
        return self.training.per_device_train_batch_size, self.data.max_seq_length

    def memory(self, training: PureTrainingArguments, length: int) -> tuple[float, str]:
        """What a pass takes by the arithmetic of the start-up block: bytes, and in words."""
        of_pass = (self.config, self.parameters, training, length)
        return sum(training_bytes(*of_pass).values()), training_memory(*of_pass)


def paths_of(source: Source) -> list[str]:
    """Where a source's texts are, those to validate on included."""
    return [*source.paths, *([source.validation_path] if source.validation_path else [])]


def on_hub(path: str) -> bool:
    """Whether a path of the recipe is read from the Hub: a repository's id has one slash, and is no local path."""
    return path.startswith("hf://") or not ("://" in path or path.count("/") > 1 or looks_local(path, SUFFIXES))

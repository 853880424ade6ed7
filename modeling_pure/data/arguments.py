"""What a recipe says about its data."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..options import check_above_zero, check_choices, check_numbers, check_shares, check_texts

ON_SOURCE_FAILURE = ("stop", "redistribute")


@dataclass
class DataArguments:
    """The text a run trains on."""

    # What must not change when a run resumes.
    FIXED: ClassVar = ("sources", "max_seq_length", "document_mask", "grpo_holdout", "decontaminate")

    tokenizer_name_or_path: str = field(
        default="openai-community/gpt2", metadata={"help": "tokenizer: a Hub id or a folder"}
    )
    sources: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "the mixture: name -> {path, weight, config, format, column, max_epochs, ...}"},
    )
    max_seq_length: int = field(default=2048, metadata={"help": "tokens in a row"})
    document_mask: bool = field(
        default=False, metadata={"help": "keep the documents of a row from attending to each other"}
    )
    validation_sequences: int = field(
        default=200, metadata={"help": "rows of held-out text, in the mixture's proportions, at most"}
    )
    validation_sources: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "texts outside the mixture to measure too: name -> {path, config, column, ...}"},
    )
    medqa_dev_questions: int = field(
        default=0, metadata={"help": "dev questions of the medqa source to answer at each validation, at most"}
    )
    grpo_holdout: float = field(
        default=0.0, metadata={"help": "share of the train questions kept out of pretraining for GRPO, 0 to 1"}
    )
    decontaminate: list[str] | None = field(
        default=None,
        metadata={
            "help": "MedQA-format files or Hub ids (their test split): documents that hold one of their questions are "
            "left out, as are those that hold a dev question of a medqa source"
        },
    )
    max_skipped: float = field(
        default=0.05,
        metadata={
            "help": "share of a source's documents that may be unusable, beyond the first 100, and of its files "
            "that may break off"
        },
    )
    skip_broken_files: bool = field(
        default=False, metadata={"help": "leave out files that cannot be opened at all, rather than stop"}
    )
    on_source_failure: str = field(
        default="stop",
        metadata={"help": "when a source cannot be read any more: stop, or redistribute its share to the others"},
    )
    streaming_timeout: float = field(
        default=300.0, metadata={"help": "seconds for which a failing read from the network is tried again"}
    )
    pretokenized_dir: str | None = field(
        default=None, metadata={"help": "read the rows that modeling_pure.data.pretokenize wrote to this folder"}
    )

    def __post_init__(self) -> None:
        check_texts(self)
        check_choices(self, on_source_failure=ON_SOURCE_FAILURE)
        check_shares(self, "max_skipped", "grpo_holdout")
        check_numbers(self, max_seq_length=2, validation_sequences=1, medqa_dev_questions=0)
        check_above_zero(self, "streaming_timeout")

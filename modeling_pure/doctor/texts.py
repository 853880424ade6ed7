"""Checks of what a run reads: the Hub and its token, the tokenizer, and every source."""

import time
from dataclasses import replace

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from ..data.arguments import Source
from ..data.documents import Documents
from ..data.opening import check_validation_files, open_outside, open_sources, training_files, validation_files
from ..data.pretokenized import PretokenizedMixture
from ..data.source_records import ExamRecords
from ..errors import InputError, first_line
from ..medqa.questions import read_questions
from ..tokenizer import check_vocabulary
from ..training import hub
from ..training.trainer_options import seed_of_data
from .context import WARN, Context, Finding, Skip, paths_of

NOT_NEEDED = "not needed: the recipe uses local files only"


def check_hub(context: Context) -> Finding | str:
    """Whether the Hub answers."""
    if context.hub_fault:
        cure = "connect, unset HF_HUB_OFFLINE, or use local files in the recipe"
        return Finding(WARN, context.hub_fault, cure)
    return f"{constants.ENDPOINT} answers" if context.needs_hub else NOT_NEEDED


def check_token(context: Context) -> Finding | str:
    """Whether the Hub's token is valid; a run that pushes needs one with write access."""
    token = context.training.hub_token or get_token()
    if not context.needs_hub:
        return NOT_NEEDED
    if token and context.hub_fault:
        raise Skip("found, but the Hub cannot be asked about it", "see Hub above")
    if context.training.push_to_hub:
        hub.check_hub(context.training)
        return f"can write to {context.training.hub_model_id}, or create it"
    if not token:
        return Finding(WARN, "none", "hf auth login or HF_TOKEN; needed for pushing and for gated data sets")
    try:
        return f"belongs to {HfApi().whoami(token=token)['name']}"
    except HTTPError as error:
        unknown = isinstance(error, HfHubHTTPError) and error.response.status_code == 401
        cure = "hf auth login --force, or remove HF_TOKEN: the Hub may refuse even public data with it"
        return Finding(WARN, f"cannot be checked: {first_line(error)}", cure if unknown else "try again later")


def check_tokenizer(context: Context) -> str:
    """Whether the tokenizer can be loaded and fits the model's vocabulary."""
    tokenizer, size = context.tokenizer, context.config.vocab_size
    check_vocabulary(tokenizer, size)
    name = context.data.tokenizer_name_or_path
    return f"'{name}': {len(tokenizer):,} tokens with its pad token, in a vocabulary of {size:,}"


def check_source(context: Context, source: Source) -> str:
    """Whether a source opens as in a run, with its validation documents and one document for the last worker."""
    context.require_hub(paths_of(source))
    seed, workers = seed_of_data(context.training), max(1, context.training.dataloader_num_workers)
    began = time.perf_counter()
    questions = context.data.decontaminate if source.passages else None
    data = replace(context.data, validation_sources=None, decontaminate=questions)
    (one,) = open_sources([source], data, seed).sources
    documents = Documents(one.records, seed, workers - 1, workers, source.max_epochs, context.data.max_skipped)
    if not (texts := documents.read(1)):
        raise InputError(f"{source.key}: max_epochs leaves no text for each of {workers} data workers")
    found = f"{', '.join(source.paths)}: {len(one.validation_texts):,} validation documents and one training document "
    found += f"({len(texts[0]):,} characters) in {time.perf_counter() - began:.1f} s"
    return f"{found}; {one.records.describe()}" if isinstance(one.records, ExamRecords) else found


def check_outside(context: Context, source: Source) -> str:
    """Whether a validation source outside the mixture can be read."""
    context.require_hub(source.paths)
    one = open_outside(source, validation_files([source])[source.key], context.data)
    return f"{', '.join(source.paths)}: {len(one.validation_texts):,} documents"


def check_validation(context: Context) -> str:
    """Whether no file is used for both training and validation, over all sources together."""
    sources = [*context.sources_read, *context.data.outside]
    context.require_hub([path for one in sources for path in paths_of(one)])
    files = training_files(context.sources_read, context.data)
    check_validation_files(files, validation_files(sources))
    return "; ".join(f"{name}: {found.describe()}" for name, found in files.items())


def check_questions(context: Context) -> str:
    """Whether the decontamination questions can be read."""
    context.require_hub(context.questions_read)
    count = sum(len(read_questions("decontaminate", path, split="test")) for path in context.questions_read)
    return f"{', '.join(context.questions_read)}: {count:,} questions"


def check_pretokenized(context: Context) -> str:
    """Whether pretokenized sequences were made with this recipe, and are enough for the run."""
    args = context.training
    data = PretokenizedMixture(context.data, context.tokenizer, seed_of_data(args))
    data.check_length(args.max_steps * context.plan.sequences_per_step)
    next(iter(data))
    return f"{data.num_sequences:,} sequences in {data.folder}"

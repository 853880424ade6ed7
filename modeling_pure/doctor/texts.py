"""Checks of what a run reads: the Hub and its token, the tokenizer, every source."""

import time
from dataclasses import replace

import pyarrow as pa
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from ..data.arguments import Source
from ..data.documents import Documents
from ..data.opening import (
    check_validation_files,
    open_outside,
    open_sources,
    training_files,
    validation_files,
)
from ..data.pretokenized import PretokenizedMixture
from ..data.source_records import ExamRecords
from ..errors import InputError, RunStopped, first_line
from ..medqa.questions import read_questions
from ..tokenizer import check_vocabulary
from ..training import hub
from ..training.trainer_options import seed_of_data
from .context import FAIL, PASS, SKIPPED, WARN, Context, Finding, on_hub, paths_of

GO_ONLINE = "connect, unset HF_HUB_OFFLINE, or point the recipe at local files"
SEE_HUB = "see Hub above"


def check_hub(context: Context) -> Finding:
    """Whether the Hub answers."""
    if not context.needs_hub:
        return Finding(PASS, "not needed: all that the recipe names is local")
    if context.hub_fault:
        return Finding(WARN, context.hub_fault, GO_ONLINE)
    return Finding(PASS, f"{constants.ENDPOINT} answers")


def check_token(context: Context) -> Finding:
    """Whether there is a token of the Hub, and a valid one; only a run that is pushed cannot do without."""
    token, bad = context.training.hub_token or get_token(), FAIL if context.training.push_to_hub else WARN
    if not context.needs_hub:
        return Finding(PASS, "not needed: all that the recipe names is local")
    if not token:
        return Finding(bad, "none", "hf auth login, or HF_TOKEN: for pushing, and for data behind terms of use")
    if context.hub_fault:
        return Finding(SKIPPED, "there is one, which nobody could be asked about", SEE_HUB)
    if context.training.push_to_hub:
        try:
            hub.check_hub(context.training)
        except InputError as error:
            return Finding(FAIL, first_line(error), "the key that the line is about, or another token")
        return Finding(PASS, f"may write to {context.training.hub_model_id}, or make it")
    try:
        return Finding(PASS, f"that of {HfApi().whoami(token=token)['name']}")
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            cure = "hf auth login --force, or take HF_TOKEN away: even public data may be refused with it"
            return Finding(bad, "there is one, which the Hub does not know", cure)
        return Finding(bad, f"cannot be looked at: {first_line(error)}", "try again later")
    except HTTPError as error:
        return Finding(bad, f"cannot be looked at: {first_line(error)}", "try again later")


def check_tokenizer(context: Context) -> Finding:
    """Whether the tokenizer can be had, and its ids are in the model's vocabulary."""
    name, rows = context.data.tokenizer_name_or_path, context.config.vocab_size
    try:
        tokenizer = context.tokenizer
        check_vocabulary(tokenizer, rows)
    except InputError as error:
        if on_hub(name) and context.hub_fault:
            return Finding(SKIPPED, f"'{name}': on the Hub, and not downloaded before", SEE_HUB)
        return Finding(FAIL, str(error), "--tokenizer_name_or_path, or model_overrides.vocab_size, that fit")
    return Finding(PASS, f"'{name}': {len(tokenizer):,} tokens with its pad token, in a vocabulary of {rows:,}")


def check_source(context: Context, source: Source) -> Finding:
    """Whether a source can be opened as a run does: its held-out documents, and one for the last of all readers."""
    if skipped := out_of_reach(context, paths_of(source)):
        return skipped
    seed = seed_of_data(context.training)
    readers, began = max(1, context.training.dataloader_num_workers), time.perf_counter()
    try:
        questions = context.data.decontaminate if source.passages else None
        data = replace(context.data, validation_sources=None, decontaminate=questions)
        (one,) = open_sources([source], data, seed).sources
        documents = Documents(one.records, seed, readers - 1, readers, source.max_epochs, context.data.max_skipped)
        if not (texts := documents.read(1)):
            raise InputError(f"{source.key}: max_epochs leaves no text for each of {readers} readers")
    except (InputError, RunStopped) as error:
        return Finding(FAIL, str(error), another_path(source))
    return Finding(
        PASS,
        f"{', '.join(source.paths)}: {len(one.validation_texts):,} validation documents and one to train on "
        f"({len(texts[0]):,} characters) in {time.perf_counter() - began:.1f} s"
        + (f"; {one.records.describe()}" if isinstance(one.records, ExamRecords) else ""),
    )


def check_outside(context: Context, source: Source) -> Finding:
    """Whether a text outside the mixture can be read."""
    if skipped := out_of_reach(context, source.paths):
        return skipped
    try:
        files = validation_files([source])[source.key]
        count = len(open_outside(source, files, context.data).validation_texts)
    except (InputError, RunStopped) as error:
        return Finding(FAIL, str(error), another_path(source))
    return Finding(PASS, f"{', '.join(source.paths)}: {count:,} documents")


def check_held_out(context: Context) -> Finding:
    """Whether no file is both trained on and held out, over all sources together."""
    sources, outside = context.sources_read, context.outside
    if skipped := out_of_reach(context, [path for one in (*sources, *outside) for path in paths_of(one)]):
        return skipped
    try:
        files = training_files(sources, context.data)
        check_validation_files(files, validation_files([*sources, *outside]))
    except (InputError, RunStopped) as error:
        return Finding(FAIL, str(error), "other paths, or the file taken out of one of them")
    return Finding(PASS, "; ".join(f"{name}: {found.describe()}" for name, found in files.items()))


def check_questions(context: Context) -> Finding:
    """Whether the questions can be read that no document may hold."""
    paths = context.questions_read
    if skipped := out_of_reach(context, paths):
        return skipped
    try:
        count = sum(len(read_questions("decontaminate", path, split="test")) for path in paths)
    except InputError as error:
        return Finding(FAIL, str(error), "--decontaminate PATHS, of files or data sets of MedQA's format")
    return Finding(PASS, f"{', '.join(paths)}: {count:,} questions")


def check_pretokenized(context: Context) -> Finding:
    """Whether a folder of packed rows is of this recipe, and holds as many as the run needs."""
    args, cure = context.training, "python -m modeling_pure.commands.pretokenize continues it"
    try:
        packed = PretokenizedMixture(context.data, context.tokenizer, seed_of_data(args))
        packed.check_length(args.max_steps * args.sequences_per_step)
        next(iter(packed))
    except (InputError, RunStopped) as error:
        return Finding(FAIL, str(error), cure)
    except (OSError, pa.ArrowException) as error:
        return Finding(FAIL, f"pretokenized_dir: {first_line(error)}", cure)
    return Finding(PASS, f"{packed.num_sequences:,} sequences in {packed.folder}")


def another_path(source: Source) -> str:
    """The cure for a source that cannot be read."""
    on_page = "; behind terms of use: accept them on its page, then hf auth login"
    return f"--{source.key}.path PATH" + (on_page if any(map(on_hub, source.paths)) else "")


def out_of_reach(context: Context, paths: list[str]) -> Finding | None:
    """That a check is skipped, where one of the paths is on the Hub and the Hub does not answer."""
    remote = [path for path in paths if on_hub(path)]
    if remote and context.hub_fault:
        return Finding(SKIPPED, f"{', '.join(remote)}: on the Hub", SEE_HUB)
    return None

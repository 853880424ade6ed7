"""A run's repository on the Hub: the right to write to it, looked at before a run starts, and going on from it.

`main` has the newest weights, the branch `checkpoint-N` those of one checkpoint, and with `hub_strategy: checkpoint`
the folder `last-checkpoint/` all that a run goes on from, optimizer included (`publishing`).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import gather_object
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..data.remote import is_transient
from ..errors import DISK_FULL, InputError, first_line
from .checkpoint import STATE_FILE, checkpoint_fault, checkpoint_step, require_optimizer, resume_point
from .run_folder import folder_of

T = TypeVar("T")
LAST_CHECKPOINT = "last-checkpoint"
STATE = f"{LAST_CHECKPOINT}/{STATE_FILE}"
START_SECONDS = 60.0  # how long the Hub is asked again before a run starts
DOWNLOADS = "_from_hub"  # in a run's folder, while a checkpoint comes
PREFIX = "hf://"
PUSHED = {
    HubStrategy.END: "the model at the end",
    HubStrategy.EVERY_SAVE: "weights at each checkpoint, also in a branch of its name",
    HubStrategy.CHECKPOINT: f"weights at each checkpoint, also in a branch; its full state in {LAST_CHECKPOINT}/",
}


def check_hub(args: TrainingArguments) -> None:
    """Raise `InputError` where a run that is to be pushed could not be: before anything else, and without a trace.

    Looks at the token, and at the right to write to the repository, or to make it.
    """
    if not args.push_to_hub:
        return
    if args.hub_strategy not in PUSHED:
        raise InputError(
            f"hub_strategy: expected one of {[kind.value for kind in PUSHED]}: a checkpoint that waits for a push "
            "makes room for a newer one"
        )
    repo_id = repository_id(args)
    if args.process_index == 0:
        check_rights(repo_id, repo_id.partition("/")[0], args.hub_token)


def repository_id(args: TrainingArguments) -> str:
    """The repository of a run, `user/name`; raises `InputError` if none is set."""
    owner, _, name = (args.hub_model_id or "").partition("/")
    if not owner or not name:
        raise InputError(f"hub_model_id: expected user/name, found {args.hub_model_id!r}")
    return f"{owner}/{name}"


def check_rights(repo_id: str, owner: str, token: str | None) -> None:
    """Raise `InputError` where a token has not the right to write to a repository, or to make it."""
    if not (token or get_token()):
        raise InputError("push_to_hub: there is no Hugging Face token; say `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token)
    with hub_errors("push_to_hub"):
        user = patiently(api.whoami)
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError("push_to_hub: the token may only read; make one that may write")
    if owner not in owners:
        raise InputError(f"hub_model_id: '{repo_id}' would not belong to {' or '.join(owners)}, as the token does")
    with hub_errors(f"hub_model_id: '{repo_id}'"):
        if patiently(api.repo_exists, repo_id):
            patiently(api.auth_check, repo_id, write=True)


def create_repository(args: TrainingArguments) -> str:
    """Make the repository of a run, and the branch that it is to be pushed to; returns its id, `user/name`."""
    api, repo_id = HfApi(token=args.hub_token), repository_id(args)
    with hub_errors(f"hub_model_id: '{repo_id}'"):
        api.create_repo(repo_id, private=args.hub_private_repo, exist_ok=True)
        if args.hub_revision:
            api.create_branch(repo_id, branch=args.hub_revision, exist_ok=True)
    return repo_id


def hub_facts(args: TrainingArguments) -> dict[str, str]:
    """The line of the start-up block on what goes to the Hub; none for a run that is not pushed."""
    return {"Hub": f"{args.hub_model_id}: {PUSHED[HubStrategy(args.hub_strategy)]}"} if args.push_to_hub else {}


def checkpoint_to_resume(args: TrainingArguments) -> Path | None:
    """The checkpoint to go on from: the one that is asked for, else the newest here, else the newest on the Hub.

    The Hub is asked where this disk has nothing of the run, as on a machine that takes the place of another: for what
    `hf://` names, or for the state that the run keeps there. A checkpoint of the Hub is brought to the run's folder.

    Raises:
        InputError: there is no whole checkpoint where one is asked for, the Hub cannot be reached, or the processes
            do not all see the same one.
    """
    asked = args.resume_from_checkpoint or ""
    from_hub = asked.startswith(PREFIX)
    with args.main_process_first(local=False, desc="looking for a checkpoint"):
        found = resume_point(folder_of(args), None if from_hub else asked)
        if not found and from_hub:
            repo_id, _, revision = asked.removeprefix(PREFIX).partition("@")
            found = download_checkpoint(repo_id, revision or None, args)
            if not found:
                raise InputError(f"resume_from_checkpoint: there is no {LAST_CHECKPOINT}/ in '{asked}'")
        elif not found and args.push_to_hub and args.hub_strategy == HubStrategy.CHECKPOINT:
            found = download_checkpoint(repository_id(args), args.hub_revision, args)
    if found:
        require_optimizer(found, by_deepspeed=bool(args.deepspeed_plugin))
    steps = {*gather_object([checkpoint_step(found) if found else 0])}
    if len(steps) > 1:
        raise InputError(
            f"output_dir: in '{args.output_dir}' processes see checkpoints of different steps, {sorted(steps)}; "
            "machines that train together need a folder that they share"
        )
    return found


def download_checkpoint(repo_id: str, revision: str | None, args: TrainingArguments) -> Path | None:
    """Bring a repository's `last-checkpoint/` to the run's folder as `checkpoint-N`; None where there is none."""
    api = HfApi(token=args.hub_token)
    with hub_errors(f"Hub repository '{repo_id}'"):
        try:
            info = patiently(api.model_info, repo_id, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        if STATE not in {file.rfilename for file in info.siblings or ()}:
            return None
        # All of one commit: a newer one may come half-way through.
        state_file = patiently(api.hf_hub_download, repo_id, STATE, revision=info.sha)
        folder = Path(folder_of(args)) / f"checkpoint-{json.loads(Path(state_file).read_text())['global_step']}"
        print(f"bringing {folder.name} from the Hub's {repo_id}")
        place, files = Path(folder_of(args)) / DOWNLOADS, f"{LAST_CHECKPOINT}/*"
        patiently(api.snapshot_download, repo_id, revision=info.sha, allow_patterns=files, local_dir=place)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(place / LAST_CHECKPOINT, folder)
    shutil.rmtree(place)
    if fault := checkpoint_fault(folder):
        raise InputError(f"Hub repository '{repo_id}': {LAST_CHECKPOINT}/ is not whole: {fault}")
    return folder


def patiently(ask: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What the Hub answers; it is asked again where it is busy or a network fails, for it is asked at every start."""
    retrying = Retrying(
        stop=stop_after_delay(START_SECONDS),
        wait=wait_exponential(max=15),
        retry=retry_if_exception(is_temporary),
        reraise=True,
    )
    return retrying(ask, *args, **kwargs)


def is_temporary(error: BaseException) -> bool:
    """Whether the Hub may answer later. Its library says of a file that was not given that there is no copy here."""
    if isinstance(error, OfflineModeIsEnabled):
        return False
    return isinstance(error, LocalEntryNotFoundError) or is_transient(error)


@contextmanager
def hub_errors(key: str) -> Iterator[None]:
    """Turns what the Hub, or the way to it, has against a request into an `InputError`."""
    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:  # HTTPError is that of httpx, which is no OSError
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        raise InputError(f"{key}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What an error of the Hub's library says, in one line with the cure."""
    answer = error.response if isinstance(error, HfHubHTTPError) else None
    if answer is None and not isinstance(error, HFValidationError):
        return f"cannot reach {constants.ENDPOINT}: {first_line(error)}"
    if answer is not None and answer.status_code == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub does not know this token; say `hf auth login`, or set HF_TOKEN anew"
    if answer is not None and answer.status_code == 403:
        return f"the token does not give this right: {first_line(error)}"
    return first_line(error)

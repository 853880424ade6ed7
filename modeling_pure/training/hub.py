"""A run's repository on the Hub: permission to write, checked before a run starts; resuming from it; pushing to it.

`main` has the newest weights, the branch `checkpoint-N` those of one checkpoint, and with `hub_strategy: checkpoint`
the folder `last-checkpoint/` all that a run resumes from, optimizer included. Checkpoints are pushed in a thread,
which retries when the network fails and never holds up the run.
"""

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import gather_object
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_exponential,
)
from tenacity.stop import stop_base
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..data.remote import is_transient, last_error
from ..errors import DISK_FULL, InputError, RunStopped, first_line
from .checkpoint import STATE_FILE, checkpoint_fault, complete_step, last_complete_checkpoint, require_optimizer
from .run_folder import folder_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
LAST_CHECKPOINT = "last-checkpoint"
START_SECONDS = 60.0  # how long the Hub is asked again before a run starts
DOWNLOADS = "_from_hub"  # in a run's folder, while a checkpoint comes
PREFIX = "hf://"
# What makes a model, and what people look at: no pickles, and nothing that tells of this machine as TensorBoard's do.
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("*.py", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "chat_template*", "README.md"),
)
REPORTS = ("curves.png", "metrics.jsonl")
RETRY_SECONDS = 600.0  # how long a push is tried again
PUSHED = {
    HubStrategy.END: "the model at the end",
    HubStrategy.EVERY_SAVE: "weights at each checkpoint, also in a branch of its name",
    HubStrategy.CHECKPOINT: f"weights at each checkpoint, also in a branch; its full state in {LAST_CHECKPOINT}/",
}


def check_hub(args: TrainingArguments) -> None:
    """Raise `InputError` unless a run that is to be pushed may write to its repository, or create it.

    Nothing is changed on the Hub.
    """
    if not args.push_to_hub:
        return
    if args.hub_strategy not in PUSHED:
        raise InputError(
            f"hub_strategy: expected one of {[kind.value for kind in PUSHED]}: a checkpoint that waits for a push "
            "makes room for a newer one"
        )
    repo_id = repository_id(args)
    if args.process_index:
        return
    if not (args.hub_token or get_token()):
        raise InputError("push_to_hub: there is no Hugging Face token; run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=args.hub_token)
    with hub_errors("push_to_hub"):
        user = patiently(api.whoami)
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError("push_to_hub: the token may only read; create one that may write")
    if repo_id.partition("/")[0] not in owners:
        raise InputError(f"hub_model_id: '{repo_id}' would not belong to {' or '.join(owners)}, as the token does")
    with hub_errors(f"hub_model_id: '{repo_id}'"):
        if patiently(api.repo_exists, repo_id):
            patiently(api.auth_check, repo_id, write=True)


def repository_id(args: TrainingArguments) -> str:
    """The repository of a run, `user/name`; raises `InputError` if none is set."""
    owner, _, name = (args.hub_model_id or "").partition("/")
    if not owner or not name:
        raise InputError(f"hub_model_id: expected user/name, found {args.hub_model_id!r}")
    return f"{owner}/{name}"


def create_repository(args: TrainingArguments) -> str:
    """Create the repository of a run and the branch to push to; returns its id, `user/name`."""
    api, repo_id = HfApi(token=args.hub_token), repository_id(args)
    with hub_errors(f"hub_model_id: '{repo_id}'"):
        api.create_repo(repo_id, private=args.hub_private_repo, exist_ok=True)
        if args.hub_revision:
            api.create_branch(repo_id, branch=args.hub_revision, exist_ok=True)
    return repo_id


def find_checkpoint(args: TrainingArguments) -> Path | None:
    """The checkpoint to resume from: the given one, else the newest in the run's folder, else the newest on the Hub.

    Only a disk without a checkpoint of the run asks the Hub: for what `hf://` names, or for the state that the run
    keeps there. The checkpoint is downloaded to the run's folder.

    Raises:
        InputError: the given checkpoint is not complete, the Hub cannot be reached, or the processes do not all see
            the same checkpoint.
    """
    given, folder = args.resume_from_checkpoint or "", Path(folder_of(args))
    with args.main_process_first(local=False, desc="looking for a checkpoint"):
        if given and not given.startswith(PREFIX):
            complete_step(Path(given))
            found: Path | None = Path(given)
        elif not (found := last_complete_checkpoint(folder)) and given:
            repo_id, _, revision = given.removeprefix(PREFIX).partition("@")
            found = download_checkpoint(repo_id, revision or None, folder, args.hub_token)
            if not found:
                raise InputError(f"resume_from_checkpoint: there is no {LAST_CHECKPOINT}/ in '{given}'")
        elif not found and args.push_to_hub and args.hub_strategy == HubStrategy.CHECKPOINT:
            found = download_checkpoint(repository_id(args), args.hub_revision, folder, args.hub_token)
    if found:
        require_optimizer(found, by_deepspeed=bool(args.deepspeed_plugin))
    steps = {*gather_object([complete_step(found) if found else 0])}
    if len(steps) > 1:
        raise InputError(
            f"output_dir: in '{args.output_dir}' processes see checkpoints of different steps, {sorted(steps)}; "
            "machines that train together need a folder that they share"
        )
    return found


def download_checkpoint(repo_id: str, revision: str | None, run_folder: Path, token: str | None) -> Path | None:
    """Download a repository's `last-checkpoint/` to the run's folder as `checkpoint-N`; None if it has none."""
    api, state = HfApi(token=token), f"{LAST_CHECKPOINT}/{STATE_FILE}"
    with hub_errors(f"Hub repository '{repo_id}'"):
        try:
            info = patiently(api.model_info, repo_id, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        if state not in {file.rfilename for file in info.siblings or ()}:
            return None
        # All of one commit: a newer one may come half-way through.
        state_file = patiently(api.hf_hub_download, repo_id, state, revision=info.sha)
        folder = run_folder / f"checkpoint-{json.loads(Path(state_file).read_text())['global_step']}"
        print(f"downloading {folder.name} from the Hub's {repo_id}")
        place, files = run_folder / DOWNLOADS, f"{LAST_CHECKPOINT}/*"
        patiently(api.snapshot_download, repo_id, revision=info.sha, allow_patterns=files, local_dir=place)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(place / LAST_CHECKPOINT, folder)
    shutil.rmtree(place)
    if fault := checkpoint_fault(folder):
        raise InputError(f"Hub repository '{repo_id}': {LAST_CHECKPOINT}/ is not complete: {fault}")
    return folder


def patiently(ask: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call the Hub, retrying transient failures."""

    def is_temporary(error: BaseException) -> bool:
        # The Hub's library reports a file that it could not download as one without a local copy.
        missing = isinstance(error, LocalEntryNotFoundError) or is_transient(error)
        return missing and not isinstance(error, OfflineModeIsEnabled)

    stop, wait = stop_after_delay(START_SECONDS), wait_exponential(max=15)
    return Retrying(stop=stop, wait=wait, retry=retry_if_exception(is_temporary), reraise=True)(ask, *args, **kwargs)


@contextmanager
def hub_errors(key: str) -> Iterator[None]:
    """Turn errors of the Hub, and of the way to it, into an `InputError` of one line with the cure."""
    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:  # HTTPError is that of httpx, which is no OSError
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = first_line(error)
        if status is None and not isinstance(error, HFValidationError):
            reason = f"cannot reach {constants.ENDPOINT}: {reason}"
        elif status == 401 and not isinstance(error, RepositoryNotFoundError):
            reason = "the Hub does not know this token; run `hf auth login`, or update HF_TOKEN"
        elif status == 403:
            reason = f"the token lacks this permission: {reason}"
        raise InputError(f"{key}: {reason}") from error


class Publisher:
    """Pushes checkpoints of a run to `user/name`, one at a time, in a thread that neither holds up nor ends the run.

    A checkpoint that still waits when a newer one comes is skipped, and so is one that cannot be pushed.
    """

    def __init__(self, args: TrainingArguments, repo_id: str) -> None:
        self.args, self.repo_id, self.api = args, repo_id, HfApi(token=args.hub_token)
        self.skipped: list[str] = []  # names of the checkpoints that were not pushed
        self._current: Path | None = None
        self._waiting: Path | None = None
        self._patient = True
        self._hurry = threading.Event()  # do not wait before the next attempt
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> set[Path]:
        """The folders that are being pushed or wait for it, which must not be deleted."""
        with self._lock:
            return {folder for folder in (self._current, self._waiting) if folder}

    def push(self, checkpoint: Path) -> None:
        """Have a checkpoint pushed; returns at once."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        with self._lock:
            if self._waiting:
                self._skip(self._waiting, "there is a newer one")
            if self._current:
                self._waiting = checkpoint
                self._hurry.set()
                return
            self._current = checkpoint
            self._hurry.clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wait(self, patient: bool = True) -> None:
        """Return when all has been pushed or given up; without patience, failures are not retried."""
        if not patient:
            self._patient = False
            self._hurry.set()
        if self._thread and self._thread.is_alive():
            print(f"pushing {' and '.join(sorted(folder.name for folder in self.busy))} to {self.repo_id}")
            self._thread.join()

    def finish(self) -> None:
        """Push the run's folder: model, card, curves; raises `RunStopped` if it fails."""
        self.wait()
        folder = folder_of(self.args)
        try:
            # Of a LoRA run the checkpoints are adapters, and the end is the whole model.
            delete = [] if any(Path(folder).glob("adapter_*")) else ["adapter_*"]
            files = MODEL_FILES + REPORTS
            self._retrying()(self._upload, folder, "End of training", files, delete_patterns=delete)
        except Exception as error:  # of the network, the Hub and their libraries
            raise RunStopped(
                f"push_to_hub: {self.repo_id}: {first_line(root(error))}; the model is in '{folder}', and the "
                "same command pushes it"
            ) from error
        skipped = f"; not pushed: {', '.join(self.skipped)}" if self.skipped else ""
        print(f"{folder} is on the Hub: {constants.ENDPOINT}/{self.repo_id}{skipped}")

    def _work(self) -> None:
        while self._current:
            try:
                self._retrying(stop_when_event_set(self._hurry))(self._upload_checkpoint, self._current)
            except Exception as error:  # a failed push does not end the run
                self._skip(self._current, first_line(root(error)))
            with self._lock:
                self._current, self._waiting = self._waiting, None
                if self._patient:
                    self._hurry.clear()

    def _upload_checkpoint(self, folder: Path) -> None:
        """Push what would be missed most first; files that are already there are not sent again."""
        name, message = folder.name, f"Training in progress: {folder.name}"
        if self.args.hub_strategy == HubStrategy.CHECKPOINT:
            self._upload(folder, message, delete_patterns="*", path_in_repo=LAST_CHECKPOINT)
        self._upload(folder, message, MODEL_FILES)
        self.api.create_branch(self.repo_id, branch=name, revision=self.args.hub_revision, exist_ok=True)
        self._upload(folder, message, MODEL_FILES, delete_patterns="*", revision=name)

    def _upload(self, folder: str | Path, message: str, files: tuple[str, ...] | None = None, **where: Any) -> None:
        self.api.upload_folder(
            folder_path=folder,
            commit_message=message,
            allow_patterns=None if files is None else [*files],
            ignore_patterns=["checkpoint-*/*", "_*"],  # of a run's folder
            **{"repo_id": self.repo_id, "revision": self.args.hub_revision, **where},
        )

    def _retrying(self, *stop: stop_base) -> Retrying:
        return Retrying(
            stop=stop_any(stop_after_delay(RETRY_SECONDS), *stop),
            wait=wait_exponential(max=60),
            retry=retry_if_exception(lambda error: is_transient(root(error))),
            sleep=sleep_using_event(self._hurry),
            before_sleep=self._report,
            reraise=True,
        )

    def _report(self, attempt: RetryCallState) -> None:
        if attempt.attempt_number == 1:
            logger.warning(f"{self.repo_id}: {first_line(root(last_error(attempt)))}; retrying")

    def _skip(self, folder: Path, why: str) -> None:
        self.skipped.append(folder.name)
        logger.warning(f"{folder.name} was not pushed to {self.repo_id}: {why}; the run continues")


def root(error: BaseException) -> BaseException:
    """The cause of an error: the Hub's library wraps those of large files in a RuntimeError."""
    return root(error.__cause__) if type(error) is RuntimeError and error.__cause__ else error

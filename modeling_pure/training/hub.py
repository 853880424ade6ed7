"""A run's repository on the Hub: checking permissions before the run starts, resuming from it, and pushing to it.

`main` has the newest weights, the branch `checkpoint-N` those of one checkpoint. With `hub_strategy: checkpoint` the
folder `last-checkpoint/` holds the full state, optimizer included, to resume from. A background thread pushes
checkpoints and retries on network errors; it never blocks the run.
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
START_SECONDS = 60.0  # how long to retry before the run starts
DOWNLOADS = "_from_hub"  # folder in the run folder for a checkpoint that is being downloaded
PREFIX = "hf://"
# The model and its reports: no pickles, and nothing about this machine, such as TensorBoard's files.
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("*.py", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "chat_template*", "README.md"),
)
RETRY_SECONDS = 600.0  # how long to retry a push
PUSHED = {
    HubStrategy.END: "the model at the end",
    HubStrategy.EVERY_SAVE: "the weights of each checkpoint, also in a branch of its own",
    HubStrategy.CHECKPOINT: f"the weights of each checkpoint, also in a branch; the full state in {LAST_CHECKPOINT}/",
}


def check_hub(args: TrainingArguments) -> None:
    """Raise `InputError` if `push_to_hub` is set and the token may not write to or create the repository.

    Changes nothing on the Hub.
    """
    if not args.push_to_hub:
        return
    if args.hub_strategy not in PUSHED:
        raise InputError(
            f"hub_strategy: expected one of {[kind.value for kind in PUSHED]}, since only the newest checkpoint waits "
            "for a push"
        )
    repo_id = repository_id(args)
    if args.process_index:
        return
    if not (args.hub_token or get_token()):
        raise InputError("push_to_hub: no Hugging Face token found; run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=args.hub_token)
    with hub_errors("push_to_hub"):
        user = patiently(api.whoami)
    owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError("push_to_hub: the token is read-only; create one with write permission")
    if repo_id.partition("/")[0] not in owners:
        raise InputError(f"hub_model_id: '{repo_id}' has another owner than the token, {' or '.join(owners)}")
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
    """Create a run's repository and the branch to push to; returns its id, `user/name`."""
    api, repo_id = HfApi(token=args.hub_token), repository_id(args)
    with hub_errors(f"hub_model_id: '{repo_id}'"):
        api.create_repo(repo_id, private=args.hub_private_repo, exist_ok=True)
        if args.hub_revision:
            api.create_branch(repo_id, branch=args.hub_revision, exist_ok=True)
    return repo_id


def find_checkpoint(args: TrainingArguments) -> Path | None:
    """The checkpoint to resume from: the given one, else the newest in the run folder, else the newest on the Hub.

    The Hub is used only if the run folder has no checkpoint: either the repository that `hf://` names, or the run's
    own. The checkpoint is downloaded to the run folder.

    Raises:
        InputError: the given checkpoint is incomplete, the Hub is unreachable, or processes see different checkpoints.
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
            f"output_dir: processes see different checkpoints in '{args.output_dir}', of steps {sorted(steps)}; use a "
            "folder that all machines share"
        )
    return found


def download_checkpoint(repo_id: str, revision: str | None, run_folder: Path, token: str | None) -> Path | None:
    """Download a repository's `last-checkpoint/` to the run folder as `checkpoint-N`; None if it has none."""
    api, state = HfApi(token=token), f"{LAST_CHECKPOINT}/{STATE_FILE}"
    with hub_errors(f"Hub repository '{repo_id}'"):
        try:
            info = patiently(api.model_info, repo_id, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        if state not in {file.rfilename for file in info.siblings or ()}:
            return None
        # Everything from one commit: another push may arrive meanwhile.
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
        # huggingface_hub raises LocalEntryNotFoundError for a failed download.
        failed = isinstance(error, LocalEntryNotFoundError) or is_transient(error)
        return failed and not isinstance(error, OfflineModeIsEnabled)

    stop, wait = stop_after_delay(START_SECONDS), wait_exponential(max=15)
    return Retrying(stop=stop, wait=wait, retry=retry_if_exception(is_temporary), reraise=True)(ask, *args, **kwargs)


@contextmanager
def hub_errors(key: str) -> Iterator[None]:
    """Turn errors of the Hub and the network into a one-line `InputError` with the cure."""
    try:
        yield
    except (OSError, HTTPError, HFValidationError) as error:  # httpx's HTTPError is not an OSError
        if getattr(error, "errno", None) in DISK_FULL:
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = first_line(error)
        if status is None and not isinstance(error, HFValidationError):
            reason = f"cannot reach {constants.ENDPOINT}: {reason}"
        elif status == 401 and not isinstance(error, RepositoryNotFoundError):
            reason = "the Hub rejects this token; run `hf auth login`, or update HF_TOKEN"
        elif status == 403:
            reason = f"the token lacks this permission: {reason}"
        raise InputError(f"{key}: {reason}") from error


class Publisher:
    """Pushes a run's checkpoints to `user/name`, one at a time, in a background thread.

    A checkpoint is skipped if it is still waiting when a newer one arrives, or if its push fails.
    """

    def __init__(self, args: TrainingArguments, repo_id: str) -> None:
        self.args, self.repo_id, self.api = args, repo_id, HfApi(token=args.hub_token)
        self.skipped: list[str] = []  # names of checkpoints
        self._current: Path | None = None
        self._waiting: Path | None = None
        self._patient = True
        self._hurry = threading.Event()  # set: stop waiting between attempts
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> set[Path]:
        """The folders being pushed or waiting, which must not be deleted."""
        with self._lock:
            return {folder for folder in (self._current, self._waiting) if folder}

    def push(self, checkpoint: Path) -> None:
        """Push a checkpoint in the background."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        with self._lock:
            if self._waiting:
                self._skip(self._waiting, "a newer one is ready")
            if self._current:
                self._waiting = checkpoint
                self._hurry.set()
                return
            self._current = checkpoint
            self._hurry.clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wait(self, patient: bool = True) -> None:
        """Wait until everything is pushed or skipped; `patient=False` stops retrying."""
        if not patient:
            self._patient = False
            self._hurry.set()
        if self._thread and self._thread.is_alive():
            print(f"pushing {' and '.join(sorted(folder.name for folder in self.busy))} to {self.repo_id}")
            self._thread.join()

    def finish(self) -> None:
        """Push the run folder: model, card, curves; raises `RunStopped` if that fails."""
        self.wait()
        folder = folder_of(self.args)
        try:
            # A LoRA run pushes adapters as checkpoints but ends with a merged model.
            delete = [] if any(Path(folder).glob("adapter_*")) else ["adapter_*"]
            files = (*MODEL_FILES, "curves.png", "metrics.jsonl")
            self._retrying()(self._upload, folder, "End of training", files, delete_patterns=delete)
        except Exception as error:  # network, Hub or library
            raise RunStopped(
                f"push_to_hub: {self.repo_id}: {first_line(root(error))}; the model is in '{folder}'; the same "
                "command pushes it again"
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
        """Push the most important first; the Hub skips files that it already has."""
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
            ignore_patterns=["checkpoint-*/*", "_*"],  # in a run folder
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
    """The cause of an error: huggingface_hub wraps those of large files in a RuntimeError."""
    return root(error.__cause__) if type(error) is RuntimeError and error.__cause__ else error

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
    HfHubHTTPError,
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
from .checkpoint import STATE_FILE, checkpoint_fault, checkpoint_step, require_optimizer, resume_point
from .run_folder import folder_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
LAST_CHECKPOINT = "last-checkpoint"
STATE = f"{LAST_CHECKPOINT}/{STATE_FILE}"
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


def find_checkpoint(args: TrainingArguments) -> Path | None:
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


class Publisher:
    """Pushes checkpoints one at a time. A run neither waits for it nor ends by it.

    A checkpoint whose turn has not come when a newer one is there is left out, and so is one that cannot be pushed.

    Args:
        repo_id: `user/name`.
    """

    def __init__(self, args: TrainingArguments, repo_id: str) -> None:
        self.args, self.repo_id, self.api = args, repo_id, HfApi(token=args.hub_token)
        self.left_out: list[str] = []  # names of the checkpoints that were not pushed
        self._current: Path | None = None
        self._waiting: Path | None = None
        self._patient = True
        self._hurry = threading.Event()  # not to wait before another try
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> set[Path]:
        """The folders that are being pushed or wait for it, and must not go."""
        with self._lock:
            return {folder for folder in (self._current, self._waiting) if folder}

    def push(self, checkpoint: Path) -> None:
        """Have a checkpoint pushed; returns at once."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        with self._lock:
            if self._waiting:
                self._leave_out(self._waiting, "a newer one is there")
            if self._current:
                self._waiting = checkpoint
                self._hurry.set()
                return
            self._current = checkpoint
            self._hurry.clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wait(self, patient: bool = True) -> None:
        """Return when all has been pushed or given up; without patience, what fails is not tried again."""
        if not patient:
            self._patient = False
            self._hurry.set()
        if self._thread and self._thread.is_alive():
            print(f"pushing {' and '.join(sorted(folder.name for folder in self.busy))} to {self.repo_id}")
            self._thread.join()

    def finish(self) -> None:
        """Push the run's folder: model, card, curves. What is there already is not sent again.

        Raises:
            RunStopped: it could not be; the folder is as it was.
        """
        self.wait()
        folder = folder_of(self.args)
        try:
            # Of a LoRA run the checkpoints are adapters, and the end is the whole model.
            delete = [] if any(Path(folder).glob("adapter_*")) else ["adapter_*"]
            files = MODEL_FILES + REPORTS
            self._retrying()(self._upload, folder, "End of training", files, delete_patterns=delete)
        except Exception as error:  # whatever the network, the Hub and their libraries have against it
            raise RunStopped(
                f"push_to_hub: {self.repo_id}: {first_line(root(error))}; the model is whole in '{folder}', and the "
                "same command pushes it"
            ) from error
        left_out = f"; not pushed: {', '.join(self.left_out)}" if self.left_out else ""
        print(f"{folder} is on the Hub: {constants.ENDPOINT}/{self.repo_id}{left_out}")

    def _work(self) -> None:
        while self._current:
            try:
                self._retrying(stop_when_event_set(self._hurry))(self._upload_checkpoint, self._current)
            except Exception as error:  # no run ends because a push does
                self._leave_out(self._current, first_line(root(error)))
            with self._lock:
                self._current, self._waiting = self._waiting, None
                if self._patient:
                    self._hurry.clear()

    def _upload_checkpoint(self, folder: Path) -> None:
        """What would be missed most comes first; of a file that is there already only the name is sent."""
        name, message = folder.name, f"Training in progress: {folder.name}"
        if self.args.hub_strategy == HubStrategy.CHECKPOINT:
            self._upload(folder, message, delete_patterns="*", path_in_repo=LAST_CHECKPOINT)
        self._upload(folder, message, MODEL_FILES)
        self.api.create_branch(self.repo_id, branch=name, revision=self.args.hub_revision, exist_ok=True)
        self._upload(folder, message, MODEL_FILES, delete_patterns="*", revision=name)

    def _upload(self, folder: str | Path, message: str, files: tuple[str, ...] | None = None, **where: Any) -> None:
        place: dict[str, Any] = {"repo_id": self.repo_id, "revision": self.args.hub_revision, **where}
        self.api.upload_folder(
            folder_path=folder,
            commit_message=message,
            allow_patterns=None if files is None else [*files],
            ignore_patterns=["checkpoint-*/*", "_*"],  # of a run's folder
            **place,
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
            logger.warning(f"{self.repo_id}: {first_line(root(last_error(attempt)))}; trying again")

    def _leave_out(self, folder: Path, why: str) -> None:
        self.left_out.append(folder.name)
        logger.warning(f"{folder.name} was not pushed to {self.repo_id}: {why}; the run goes on")


def push_finished(args: TrainingArguments) -> None:
    """Push a run that has finished before, where that is asked for."""
    if args.push_to_hub and not args.process_index:
        Publisher(args, create_repository(args)).finish()


def root(error: BaseException) -> BaseException:
    """What lies under an error: the Hub's library wraps what happens to a large file in a RuntimeError."""
    return root(error.__cause__) if type(error) is RuntimeError and error.__cause__ else error

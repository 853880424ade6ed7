"""Pushing a run to the Hub while it trains: in a thread, again where the network fails, and never in the run's way."""

import logging
import threading
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
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
from ..errors import RunStopped, first_line
from .hub import LAST_CHECKPOINT, create_repository
from .run_folder import folder_of

logger = logging.getLogger(__name__)

# What makes a model, and what people look at: no pickles, and nothing that tells of this machine as TensorBoard's do.
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("*.py", "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "chat_template*", "README.md"),
)
REPORTS = ("curves.png", "metrics.jsonl")
RETRY_SECONDS = 600.0  # how long a push is tried again


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

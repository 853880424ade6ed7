"""Open local and remote files for reading. Network failures are retried here, below the decoders."""

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import aiohttp
import fsspec
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_delay,
    wait_exponential,
)

from ..errors import InputError, RunStopped, first_line

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

T = TypeVar("T")
logger = logging.getLogger(__name__)

# By default, aiohttp stops after five minutes however large the file is, and waits as long for a silent server.
HTTP_OPTIONS = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=30)}}
NETWORK_LIBRARIES = {"aiohttp", "httpx", "httpx2", "requests", "urllib3"}


class SourceFailed(RunStopped):
    """A source can no longer be read; the message names the source, file and place."""


@contextmanager
def failures_as_input_errors() -> Iterator[None]:
    """Raise `SourceFailed` as `InputError`: before a run starts, a source that cannot be read is wrong input."""
    try:
        yield
    except SourceFailed as error:
        raise InputError(str(error)) from error


def open_file(key: str, path: str, timeout: float) -> BinaryIO:
    """Open a local path or a URL (`hf://`, `https://` or another that fsspec supports) as a seekable file.

    Failing reads of a remote file are retried for `timeout` seconds; then `SourceFailed` names the recipe's `key`.
    """
    try:
        return io.BufferedReader(RetryingFile(key, path, timeout), 1 << 20) if "://" in path else open(path, "rb")
    except OSError as error:
        raise SourceFailed(f"{key}: cannot open '{path}': {first_line(error)}") from error


class RetryingFile(io.RawIOBase):
    """A remote file that retries a failed or short read from the same byte.

    Below the decoders, a dropped connection costs only time. `datasets` and fsspec retry above a decoder, which has
    lost the bytes that it had consumed: after a refused connection, a .gz file ends in "JSON parse error" (datasets
    issue 5053), and a lasting 503 ends the run.
    """

    def __init__(self, key: str, path: str, timeout: float) -> None:
        self.key, self.path, self.timeout = key, path, timeout
        self.position = 0
        self._file: BinaryIO | None = None
        self._retrying = Retrying(
            stop=stop_after_delay(timeout),
            wait=wait_exponential(multiplier=0.5, max=30),
            # A busy Hub may report a missing file, so ask again once.
            retry=retry_if_exception(is_transient)
            | (retry_if_exception_type(FileNotFoundError) & (lambda state: state.attempt_number == 1)),
            before_sleep=self._report,
            reraise=True,
        )
        _, self.size = self._retry(self._open)

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Change the position of the next read."""
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read into `buffer` up to the end of the file."""
        view = memoryview(buffer)
        count = min(len(view), max(0, self.size - self.position))
        if count:
            view[:count] = self._retry(lambda: self._read(count))
            self.position += count
        return count

    def close(self) -> None:
        """Close the connection."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _filesystem(self) -> tuple[Any, str]:
        located: tuple[Any, str] = fsspec.core.url_to_fs(
            self.path, **(HTTP_OPTIONS if self.path.startswith("http") else {})
        )
        return located

    def _open(self) -> tuple[BinaryIO, int]:
        filesystem, path = self._filesystem()
        try:
            size: int | None = filesystem.size(path)
            file: BinaryIO = filesystem.open(path, "rb")
            self._file = file
        except FileNotFoundError as error:  # fsspec also raises it for a server that cannot be reached
            if error.__cause__ is not None and is_transient(error.__cause__):
                raise error.__cause__ from None
            raise
        if size is None:
            raise SourceFailed(f"{self.key}: the server of '{self.path}' does not report the size of the file")
        return file, size

    def _read(self, count: int) -> bytes:
        file = self._file
        if file is None:
            file, size = self._open()
            if size != self.size:
                raise SourceFailed(f"{self.key}: '{self.path}' changed from {self.size:,} to {size:,} bytes")
        file.seek(self.position)
        data = file.read(count)
        if len(data) < count:
            raise ConnectionError(f"received {len(data)} of {count} bytes")
        return data

    def _retry(self, call: Callable[[], T]) -> T:
        try:
            return self._retrying(call)
        except SourceFailed:
            raise
        except Exception as error:  # libraries have their own errors, which are not all OSErrors
            place = f"'{self.path}' at byte {self.position:,}"
            reason = f"{type(error).__name__}: {first_line(error)}"
            tried = f" (retried for {self.timeout:g} s: streaming_timeout)" if is_transient(error) else ""
            raise SourceFailed(f"{self.key}: cannot read {place}: {reason}{tried}") from error

    def _report(self, state: RetryCallState) -> None:
        error = last_error(state)
        self._file = None  # open a new connection
        if isinstance(error, FileNotFoundError):
            self._filesystem()[0].invalidate_cache()
        logger.warning(
            f"{self.key}: '{self.path}' at byte {self.position:,}: {type(error).__name__}: {first_line(error)}; "
            f"retrying in {state.upcoming_sleep:.1f} s"
        )


def last_error(state: RetryCallState) -> BaseException:
    """The error of the last attempt of a retried call."""
    if state.outcome is None or (error := state.outcome.exception()) is None:
        raise ValueError("the last attempt has not failed")
    return error


def is_transient(error: BaseException) -> bool:
    """Whether a read may succeed later: after a lost connection, a timeout, a short response, HTTP 408, 429 or 5xx."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status in (408, 429) or status >= 500
    if isinstance(error, OSError):
        return not isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError)
    return any(kind.__module__.split(".")[0] in NETWORK_LIBRARIES for kind in type(error).__mro__)

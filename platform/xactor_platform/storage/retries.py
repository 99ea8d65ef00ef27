"""Retry storage operations that fail for a short time, and raise at once when a retry would not help."""

import errno
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

STORAGE_TIMEOUT_S = 60.0
_LOG_EVERY_S = 10.0
# Errors after which a retry would not help: by type, by errno, and by a word in the message of an object store.
_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_PERMANENT_NUMBERS = {errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL}
_PERMANENT_WORDS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH")

Result = TypeVar("Result")


class StorageUnavailable(OSError):
    """Report that a storage failed in every try until the timeout."""


def with_retries(work: Callable[[], Result], what: str, timeout_s: float = STORAGE_TIMEOUT_S) -> Result:
    """Return the result of `work`. Call it again while it fails with a transient error.

    Examples of transient errors are a store's 500 response, a cut connection and a full disk.

    Args:
        work: the operation. It may run several times, each time from its beginning.
        what: names the file or folder in messages, such as `runs/tiny/config.json`.
        timeout_s: a failure after this many seconds is final. With 0 there is one try.

    Raises:
        StorageUnavailable: the last try failed with a transient error.
        OSError: a permanent error, such as a missing file or a missing permission.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        wait=wait_exponential_jitter(multiplier=0.1, max=10.0),
        stop=stop_after_delay(timeout_s),
        before_sleep=_RetryLog(what),
        reraise=True,
    )
    try:
        return retrying(work)
    except OSError as error:
        if is_transient(error):
            raise StorageUnavailable(f"{what}: the storage failed for {timeout_s:g} s: {error}") from error
        raise


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed after this error."""
    if not isinstance(error, OSError) or isinstance(error, (StorageUnavailable, *_PERMANENT)):
        return False
    return error.errno not in _PERMANENT_NUMBERS and not any(word in str(error) for word in _PERMANENT_WORDS)


class _RetryLog:
    """Print the first retry, and then at most one retry every ten seconds."""

    def __init__(self, what: str):
        self._what, self._logged_s = what, float("-inf")

    def __call__(self, state: RetryCallState) -> None:
        passed_s = state.seconds_since_start or 0.0
        if passed_s - self._logged_s >= _LOG_EVERY_S and state.outcome is not None:
            self._logged_s = passed_s
            print(f"{self._what}: retrying after {state.outcome.exception()}", flush=True)

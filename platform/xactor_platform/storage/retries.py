"""Patience with storage: what fails for a moment is tried again, what fails for good is named."""

import errno
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

PATIENCE_S = 60.0  # an object store's bad minute; a run may be given more
_FOR_GOOD = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_FOR_GOOD_NUMBERS = {errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL}
_FOR_GOOD_WORDS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH")

Result = TypeVar("Result")


class StorageLost(OSError):
    """A storage failed for as long as it was given."""


def patiently(work: Callable[[], Result], what: str, seconds: float = PATIENCE_S) -> Result:
    """What `work` gives, tried again while its storage fails for a moment: 500s, cut connections, a full disk.

    Args:
        work: may run several times, each from the beginning.
        what: named in messages, such as `runs/tiny/config.json`.
        seconds: how long to go on trying.

    Raises:
        StorageLost: it failed for so long.
        OSError: what another try would not change, such as a file that is missing or not allowed.
    """
    tries = Retrying(
        retry=retry_if_exception(may_pass),
        wait=wait_exponential_jitter(multiplier=0.1, max=10.0),
        stop=stop_after_delay(seconds),
        before_sleep=_Saying(what),
        reraise=True,
    )
    try:
        return tries(work)
    except OSError as error:
        if may_pass(error):
            raise StorageLost(f"{what}: the storage failed for {seconds:g} s: {error}") from error
        raise


def may_pass(error: BaseException) -> bool:
    """Whether another try may go well."""
    if not isinstance(error, OSError) or isinstance(error, (StorageLost, *_FOR_GOOD)):
        return False
    return error.errno not in _FOR_GOOD_NUMBERS and not any(word in str(error) for word in _FOR_GOOD_WORDS)


class _Saying:
    """Says once, and then each time it takes ten seconds or more, that something is tried again."""

    def __init__(self, what: str):
        self._what, self._said_s = what, float("-inf")

    def __call__(self, state: RetryCallState) -> None:
        passed = state.seconds_since_start or 0.0
        if passed - self._said_s >= 10.0 and state.outcome is not None:
            self._said_s = passed
            print(f"{self._what}: trying again after {state.outcome.exception()}", flush=True)

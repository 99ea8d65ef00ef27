"""Define the result and the errors with which a training ends.

The driver receives objects of these classes from the ranks. The driver must not import torch, so this module does not.
"""

from dataclasses import dataclass

from ray.exceptions import OutOfMemoryError

from xactor_platform.storage.retries import StorageUnavailable
from xactor_platform.training.run.lease import LeaseLost


@dataclass(frozen=True)
class RankResult:
    """Tell the driver how the ranks ended. If no field is set, the ranks did all steps."""

    stopped: str | None = None
    """The reason why the training cannot go on, even after a restart. None if there is no such reason."""
    requested: bool = False
    """True if a signal or a file asked the ranks to stop before the last step."""


class TrainingStopped(ValueError):
    """Stop the run on every rank, because it cannot go on and a restart would not help."""


class CollectiveTimeout(RuntimeError):
    """Report ranks that did not join a collective in time, or that left it; the message names them."""


class OutOfMemory(RuntimeError):
    """Report that a rank has no memory left."""


NAMED = (CollectiveTimeout, OutOfMemory, StorageUnavailable, LeaseLost, OutOfMemoryError)
"""Errors whose own message states the cause, so that `root_cause` does not search the errors inside them."""


def root_cause(error: BaseException) -> str:
    """Return the innermost cause of Ray's error, in one line.

    If several ranks failed, return the cause of one rank, preferably an error whose type is in NAMED.
    """
    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [_innermost(failure) for failure in failures.values()]
    named = [cause for cause in causes if isinstance(cause, NAMED)]
    # A rank that ran out of memory is the cause of the ranks that lost their connection to it.
    named.sort(key=lambda cause: isinstance(cause, CollectiveTimeout))
    cause = (named or causes)[0]
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    # An error whose type is in NAMED states the cause in its first line, any other error in its last line.
    return f"{type(cause).__name__}: {lines[0 if named else -1] if lines else ''}"


def _innermost(cause: BaseException) -> BaseException:
    """Return the innermost of the errors that `cause` wraps, or the first one whose type is in NAMED."""
    while not isinstance(cause, NAMED):
        inner = getattr(cause, "cause", None) or cause.__cause__
        if inner is None:
            break
        cause = inner
    return cause

"""Turn an error that a dubbing stage raises into a failure of the manifest row that the stage was working on."""

import atexit
import errno
import os
from concurrent.futures import Future
from typing import Any, TypeVar

from xactor.decoding import DecodingPool, Refused
from xactor.sandbox import ProcessLost
from xactor_platform.dubbing.messages import Failed, Row

T = TypeVar("T")

# Errors that would stop all other rows too: the disk is full, or writing to the output is not allowed.
_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class DubStage:
    """Turn the errors of a stage into failures of rows. All dubbing stages inherit this class.

    Their `node_group` is the value of the nodes' label `ray.io/node-group`. If the run uses node groups, the stages up
    to `motion` run on nodes of the group `motion`, and the other stages on nodes of the group `render`.
    """

    def failed(self, message: Any, error: Exception) -> Failed:
        """Return the failure of the message's row.

        An error that is not the row's fault is raised again, so that the next pass over the rows retries the row.
        """
        if isinstance(error, ProcessLost):
            raise error
        return failure(message if isinstance(message, Row) else message.row, error)


class DecodingStage(DubStage):
    """Read users' files in a child process. Files of unknown origin are opened in such processes only.

    Args:
        decode_s: maximum seconds for one file.
    """

    node_group = "motion"

    def __init__(self, decode_s: float):
        self.pool = DecodingPool(processes=1, timeout_s=decode_s)
        # Ray ends an actor's child processes before the actor. The actor would therefore print an error for each child
        # when it exits. To avoid this, the exiting actor redirects its stderr to /dev/null.
        atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)

    def decoded(self, future: Future[T]) -> T:
        """Return the result of a future of the pool. Raise Refused if the file is at fault."""
        try:
            return future.result()
        except Exception as error:
            if refusal := self.pool.refusal(error):
                raise refusal from error
            raise


def failure(row: Row, error: BaseException) -> Failed:
    """Return the failure of a row, with a code for the kind of error and the error's message as one line."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
        code = "storage"
    elif isinstance(error, Refused):
        code = error.code
    else:
        code = "failed"
        if not isinstance(error, ValueError | OSError):
            message = f"{type(error).__name__}: {message}"
    return Failed(number=row.number, id=row.id, code=code, message=message)

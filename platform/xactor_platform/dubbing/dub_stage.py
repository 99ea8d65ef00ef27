"""Turn an error that a dubbing stage raises into a failure of the manifest row that the stage was working on."""

import errno
from typing import Any

from xactor.decoding import Refused
from xactor.sandbox import ProcessLost
from xactor_platform.dubbing.messages import Failed, Row

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

"""Turn an error of any dubbing stage into the failure of its row."""

import errno
from typing import Any

from xactor.decoding import Refused
from xactor_platform.dubbing.messages import Failed, Row

# Errors that every other row would meet too: the disk is full, or the output may not be written to.
_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class DubStage:
    """Turn the errors of a stage into failures of rows.

    Dubbing's stages up to the motion model run on the node group `motion`, those from the renderer on on `render`.
    """

    def failed(self, message: Any, error: Exception) -> Failed:
        """Return the failure of the message's row."""
        return failure(message if isinstance(message, Row) else message.row, error)


def failure(row: Row, error: BaseException) -> Failed:
    """Return a row's failure, with its code and the error in one line."""
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

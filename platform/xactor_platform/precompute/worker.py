"""Set up a process of a pool that has one process per core."""

import os
import sys


def start_worker() -> None:
    """Limit this process to one thread, so that the processes do not compete for cores, and silence MediaPipe.

    MediaPipe's C++ code logs every graph that it starts, whatever the settings are. Therefore file descriptor 2 is
    redirected to /dev/null. Python's own stderr is kept.
    """
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    os.close(silent)

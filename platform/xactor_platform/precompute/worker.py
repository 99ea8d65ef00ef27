"""A process of a corpus's pool: one of as many as there are cores."""

import os
import sys


def start_worker() -> None:
    """Makes this process compute on one thread, so that the processes do not fight for cores, and keeps it quiet:
    MediaPipe's C++ logs every graph it starts, past every setting.
    """
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    os.close(silent)

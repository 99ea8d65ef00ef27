"""Recognise RAVDESS's videos (Livingstone and Russo 2018) by file names such as Actor_07/01-01-05-02-01-02-07.mp4.

The numbers are, in order: modality (01 sound and pictures, 02 pictures alone), vocal channel (01 speech, 02 song),
emotion, intensity, statement, repetition and actor. Only videos with both sound and pictures are used.
"""

import os
import re
from dataclasses import replace

from xactor_platform.curation.messages import Video

_NAME = re.compile(r"01-0[12]-0[1-8]-0[12]-0[12]-0[12]-(\d\d)")


def ravdess(videos: list[Video]) -> list[Video]:
    """Return those of the given videos that belong to RAVDESS and have sound and pictures."""
    found = []
    for video in videos:
        if match := _NAME.fullmatch(os.path.splitext(os.path.basename(video.name))[0]):
            found.append(replace(video, corpus="ravdess", speaker=f"ravdess-{match[1]}"))
    return found

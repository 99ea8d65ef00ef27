"""Sound and pictures in and out of files, through PyAV alone: no system ffmpeg is needed.

Time 0 is where a player would start the file, for sound and pictures alike, so that what is read stays in step
whichever of the two begins first.
"""

from xactor.media.fragments import FragmentedVideo
from xactor.media.pictures import read_frames
from xactor.media.sound import LiveSound, Sound, TooLong, read_audio, resample
from xactor.media.span import read_span
from xactor.media.writer import join_videos, remux, write_video

__all__ = [
    "FragmentedVideo",
    "LiveSound",
    "Sound",
    "TooLong",
    "join_videos",
    "read_audio",
    "read_frames",
    "read_span",
    "remux",
    "resample",
    "write_video",
]

"""Read and write files with sound and pictures by PyAV, without a system ffmpeg.

Time 0 is where a player would start the file, for sound and pictures alike, so the two stay in step even if one of them
begins later.
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

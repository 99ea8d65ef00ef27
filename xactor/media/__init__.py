"""Read and write files with sound and pictures. PyAV does the work, so no ffmpeg has to be installed.

Time 0 is where a player starts the file, for sound and pictures alike. So they stay in sync even if one of the two
tracks begins later.
"""

from xactor.media.fragments import FragmentedVideo
from xactor.media.pictures import read_frames
from xactor.media.sound import LiveSound, Sound, TooLong, mono, read_audio, resample
from xactor.media.span import read_span
from xactor.media.writer import join_videos, remux, write_sound, write_video

__all__ = [
    "FragmentedVideo",
    "LiveSound",
    "Sound",
    "TooLong",
    "join_videos",
    "mono",
    "read_audio",
    "read_frames",
    "read_span",
    "remux",
    "resample",
    "write_sound",
    "write_video",
]

"""Read and write files with sound and pictures. PyAV does the work, so no ffmpeg has to be installed.

Time 0 is where a player starts the file, for sound and pictures alike. They stay in sync even if one of the two tracks
begins later, if the file's clock jumps, or if the sound's clock runs fast or slow.
"""

from xactor.media.fragments import FragmentedVideo
from xactor.media.sound import LiveSound, Sound, TooLong, mono, read_audio, resample
from xactor.media.span import read_frames, read_span
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

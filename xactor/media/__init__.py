"""Sound and pictures in and out of files, through PyAV alone: no system ffmpeg is needed.

Time 0 is where a player would start the file, for sound and pictures alike, so that what is read stays in step
whichever of the two begins first.
"""

from xactor.media.pictures import read_frames
from xactor.media.sound import Sound, read_audio, resample
from xactor.media.writer import write_video

__all__ = ["Sound", "read_audio", "read_frames", "resample", "write_video"]

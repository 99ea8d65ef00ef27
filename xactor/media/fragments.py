"""Encode a video as a fragmented mp4: a sequence of pieces that a player can show before the rest exists."""

import io
from fractions import Fraction

import av
import numpy as np

from xactor.media.sound import LiveSound, Sound
from xactor.media.writer import Pictures, Speech
from xactor.rates import FPS, SAMPLE_RATE_HZ


class FragmentedVideo:
    """Encode pictures and sound to fragments of an h264 + aac mp4. A fragment is ready when its pictures have arrived.

        video = FragmentedVideo(sound)
        for frame in frames:
            send(video.add(frame))
        send(video.end())

    The encoder does not delay pictures. The object is not thread-safe.

    Args:
        samples: Float32 [N] mono at `sample_rate_hz`, the sound of a file, or live sound. Live sound must arrive no
            later than the pictures of the same time.
        sample_rate_hz: Rate of an array or of live sound. The sound of a file has its own rate.
        fps: Pictures per second.
        fragment_frames: Pictures in a fragment.
        crf: Quality of x264: 0 is lossless, larger is worse.
        preset: Preset of x264.
        metadata: Tags of the mp4.
    """

    def __init__(
        self,
        samples: np.ndarray | Sound | LiveSound,
        *,
        sample_rate_hz: int = SAMPLE_RATE_HZ,
        fps: int = FPS,
        fragment_frames: int = 8,
        crf: int = 18,
        preset: str = "veryfast",
        metadata: dict[str, str] | None = None,
    ):
        self._fps = fps
        self._out = _UntakenBytes()
        options = {
            # Write the index with the first fragment and not earlier, because it contains the delay of the AAC encoder,
            # which is unknown until then.
            "movflags": "delay_moov+default_base_moof+skip_trailer",
            "frag_duration": str(fragment_frames * 1_000_000 // fps),
        }
        self._container = av.open(self._out, "w", format="mp4", options=options)
        self._container.metadata.update(metadata or {})
        coding: dict[str, object] = {"crf": str(crf), "preset": preset, "tune": "zerolatency", "threads": "1"}
        self._pictures = Pictures(self._container, fps, coding)
        self._speech = Speech(self._container, samples, sample_rate_hz, fast=False)

    def add(self, picture: np.ndarray) -> bytes:
        """Add a picture uint8 [H, W, 3]. Return the bytes of the fragments that are now finished, often none."""
        self._pictures.write(picture)
        self._speech.write(until=Fraction(self._pictures.count, self._fps))
        return self._out.take()

    def end(self) -> bytes:
        """Return the rest of the bytes. Raises ValueError if there was no picture."""
        if not self._pictures.count:
            raise ValueError("a video needs at least one frame, got none")
        self._speech.close()
        self._pictures.close()
        self._container.close()
        return self._out.take()


class _UntakenBytes(io.RawIOBase):
    """Collect the bytes that the container writes, until `take` returns and forgets them."""

    def __init__(self):
        self._bytes = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self._bytes += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken

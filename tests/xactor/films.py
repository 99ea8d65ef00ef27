"""Write films whose flashes and clicks tell where their pictures and sound are, with clocks of many kinds."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

EVENTS_S = (1.0, 3.0, 5.0)
FRAME_S = 0.04
SAMPLES = {"pcm_s16le": "s16", "aac": "fltp", "mp2": "s16"}


def film(
    path: Path,
    seconds: float = 6.0,
    *,
    start_s: float = 0.0,
    sound_late_s: float = 0.0,
    stretch: float = 1.0,
    gap: tuple[float, float] = (0.0, 0.0),
    missing: range = range(0),
    events_s: tuple[float, ...] = EVENTS_S,
    tone: np.ndarray | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a film with a flash and a click at each event.

    Args:
        path: The file; its suffix decides the codecs.
        seconds: Length.
        start_s: Time of the first picture on the file's clock.
        sound_late_s: Seconds by which the sound starts later than the pictures.
        stretch: Seconds of the sound's times per second of its samples.
        gap: Second of the sound before a gap, and length of the gap.
        missing: Numbers of pictures that are left out.
        events_s: Times of the events.
        tone: Samples that are added to the sound.
        options: Options of the container.
    """
    picture_codec, sound_codec, rate_hz = {
        ".mkv": ("libx264", "pcm_s16le", 16_000),
        ".mpg": ("mpeg2video", "mp2", 48_000),
    }.get(path.suffix, ("libx264", "aac", 48_000))
    clock = Fraction(1, 90_000) if picture_codec == "libx264" and path.suffix != ".avi" else Fraction(1, 25)
    sound = np.zeros(round(seconds * rate_hz)) if tone is None else tone[: round(seconds * rate_hz)].copy()
    for event_s in events_s:
        sound[round(event_s * rate_hz) :][:200] += 0.8 * np.sin(np.arange(200) / 3)
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(picture_codec, rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = clock
        video.options = {"g": "25", "threads": "1"}
        audio = container.add_stream(sound_codec, rate=rate_hz, layout="mono")
        block = 1152 if sound_codec == "mp2" else 1024
        done = 0
        for number in range(round(seconds * 25)):
            time_s = number / 25
            if number not in missing:
                bright = any(event_s <= time_s + 1e-9 < event_s + 0.08 for event_s in events_s)
                picture = np.full((48, 64, 3), 255 if bright else 20, np.uint8)
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = round((start_s + time_s) / clock), clock
                container.mux(video.encode(frame))
            while done < len(sound) and done <= (time_s + FRAME_S) * rate_hz:
                samples = sound[done : done + block].astype(np.float32)
                if SAMPLES[sound_codec] == "s16":
                    samples = (samples * 32_767).astype(np.int16)
                heard = av.AudioFrame.from_ndarray(samples[None], format=SAMPLES[sound_codec], layout="mono")
                heard.sample_rate, heard.time_base = rate_hz, Fraction(1, rate_hz)
                silence_s = gap[1] if done >= gap[0] * rate_hz else 0.0
                heard.pts = round((start_s + sound_late_s + silence_s) * rate_hz + done * stretch)
                container.mux(audio.encode(heard))
                done += block
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def join(path: Path, *parts: Path) -> Path:
    """Join files as `cat` does."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def flashes(pictures, first: int = 0) -> list[float]:
    """Return the times at which pictures turn white, in seconds."""
    bright = np.array([False, *(picture.mean() > 120 for picture in pictures)])
    return list((np.flatnonzero(bright[1:] & ~bright[:-1]) + first) / 25)


def clicks(samples: np.ndarray) -> list[float]:
    """Return the times at which a sound becomes loud, in seconds."""
    loud = np.flatnonzero(np.abs(samples) > 0.3)
    return list(loud[np.diff(loud, prepend=-16_000) > 1_600] / 16_000)

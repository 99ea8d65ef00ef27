"""Make sounds for tests, and write audio files of many kinds with PyAV."""

import io
import struct
from pathlib import Path

import av
import numpy as np


def voice(seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    """Return a tone that rises and falls like speech, float32 [N]."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    carrier = np.sin(2 * np.pi * 180 * t) + 0.5 * np.sin(2 * np.pi * 440 * t)
    return (0.2 * carrier * (1 + np.sin(2 * np.pi * 3 * t)) / 2).astype(np.float32)


def write_sound(
    path: Path,
    seconds: float = 1.0,
    *,
    rate_hz: int = 16_000,
    layout: str = "mono",
    codec: str = "pcm_s16le",
    samples: np.ndarray | None = None,
) -> Path:
    """Write an audio file in the format of its suffix. Each channel is a little quieter than the one before."""
    samples = voice(seconds, rate_hz) if samples is None else samples
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout)
        channels = len(stream.layout.channels)
        sound = samples[None] * np.linspace(1, 0.5, channels, dtype=np.float32)[:, None]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate_hz, frame_size=960)
        for part in (frame, None):  # None flushes the resampler
            for block in resampler.resample(part):
                container.mux(stream.encode(block))
        container.mux(stream.encode(None))
    return path


def index_bomb(samples: int = 15_000_000) -> bytes:
    """Return a .mov of some KB with a second of sound, and a second track whose index claims this many samples."""
    out = io.BytesIO()
    with av.open(out, "w", format="mov") as container:
        for _ in range(2):
            container.add_stream("aac", rate=16_000, layout="mono")
        for stream in container.streams.audio:
            frame = av.AudioFrame.from_ndarray(voice(1)[None], format="flt", layout="mono")
            frame.sample_rate = 16_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    bomb = bytearray(out.getvalue())
    # One chunk of samples of one byte and 1024 ticks each.
    struct.pack_into(">II", bomb, bomb.rindex(b"stsz") + 8, 1, samples)
    struct.pack_into(">III", bomb, bomb.rindex(b"stts") + 8, 1, samples, 1024)
    struct.pack_into(">IIII", bomb, bomb.rindex(b"stsc") + 8, 1, 1, samples, 1)
    return bytes(bomb)


def sound(frames: int, seed: int = 1) -> np.ndarray:
    """Return noise whose loudness changes all the time, float32 [640 * frames]."""
    generator = np.random.default_rng(seed)
    loudness = np.repeat(generator.uniform(0.01, 0.3, 4 * frames), 160)
    return (loudness * generator.standard_normal(640 * frames)).astype(np.float32)

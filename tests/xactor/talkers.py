"""Make small talking videos for tests of curation: drawn faces with their own sound, good ones and faulty ones."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from xactor.media import write_video
from xactor.media.writer import Speech
from xactor_platform.demo_corpus import performance
from xactor_platform.demo_corpus.identity import held_out_identities, render_frame, training_identities

SIDE, SECONDS = 160, 4


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Return syllables of a buzzing voice, which sound like speech, float32 [N] at 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.3 * time)
    buzz = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16_000) / k for k in range(1, 20))
    # Syllables differ in length and strength, so that no two moments sound alike.
    edges = np.cumsum(rng.uniform(0.12, 0.4, int(seconds * 9)))
    strength = rng.uniform(0, 1, len(edges)) * (rng.uniform(0, 1, len(edges)) > 0.3)
    level = strength[np.searchsorted(edges, time).clip(0, len(edges) - 1)]
    level = np.convolve(level, np.hanning(1200) / 600, mode="same")
    return (0.1 * buzz * level + 1e-4 * rng.standard_normal(len(time))).astype(np.float32)


class Talker:
    """Draw a person who speaks.

    Args:
        number: Which of three people.
        seed: Seed of the sound and of the movements.
        seconds: Length of the sound.

    Attributes:
        frames: uint8 [T, S, S, 3] at 25 fps.
        samples: Float32 [T x 640] at 16 kHz.
    """

    def __init__(self, number: int, seed: int, seconds: float = SECONDS):
        people = [held_out_identities()[1], *training_identities(2)]
        self.samples = babble(seconds, seed)
        controls = performance.perform(self.samples, seed)
        self.frames = np.stack([render_frame(people[number], row, SIDE) for row in controls])


def write_timed(
    path: Path, frames: np.ndarray, times: list[Fraction], samples: np.ndarray, *, rotation: int = 0
) -> None:
    """Write a video whose frame i is shown at times[i] seconds; the sound starts at 0."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.options = {"crf": "14", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        video.codec_context.time_base = Fraction(1, 90_000)
        if rotation:
            video.set_display_rotation(rotation)
        speech = Speech(container, samples, 16_000, fast=True)
        for picture, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = round(time * 90_000), Fraction(1, 90_000)
            container.mux(video.encode(frame))
            speech.write(until=time)
        container.mux(video.encode(None))
        speech.close()


def frames_at(talker: Talker, times: list[Fraction]) -> np.ndarray:
    """Return the talker's frames at the given times."""
    return talker.frames[[min(int(time * 25), len(talker.frames) - 1) for time in times]]


def delayed(samples: np.ndarray, frames: int) -> np.ndarray:
    """Delay the sound by a number of frames, or advance it if negative; noise fills the gap."""
    shift = abs(frames) * 640
    noise = (1e-4 * np.random.default_rng(0).standard_normal(shift)).astype(np.float32)
    return np.concatenate([noise, samples[:-shift]] if frames > 0 else [samples[shift:], noise])


def write_good(folder: Path, a: Talker, b: Talker) -> None:
    """Write videos that curation must keep whole."""
    rates = {
        "ntsc": [Fraction(n * 1001, 30_000) for n in range(SECONDS * 30 - 1)],
        "fifty": [Fraction(n, 50) for n in range(SECONDS * 50)],
        "variable": [Fraction(n, 100) for n in range(SECONDS * 100) if n % 7 in (0, 2, 3)],
    }
    for name, times in rates.items():
        write_timed(folder / f"{name}.mp4", frames_at(a, times), times, a.samples)
    times = [Fraction(n, 25) for n in range(len(a.frames))]
    turned = np.rot90(a.frames, -1, axes=(1, 2))  # the file's display matrix turns it back
    write_timed(folder / "rotated.mp4", turned, times, a.samples, rotation=90)
    for name, talker in (("plain", a), ("photo", b)):
        write_video(folder / f"{name}.mp4", talker.frames, samples=talker.samples)
    frames, samples = np.concatenate([a.frames, b.frames]), np.concatenate([a.samples, b.samples])
    write_video(folder / "two shots.mp4", frames, samples=samples)
    write_video(folder / "early.mp4", a.frames, samples=delayed(a.samples, -4))
    (folder / "below").mkdir()
    write_video(folder / "below" / "late.mkv.mp4", a.frames, samples=delayed(a.samples, 9))


def write_faults(folder: Path, a: Talker, b: Talker) -> None:
    """Write videos that curation must reject."""
    write_video(folder / "swapped.mp4", a.frames, samples=b.samples)
    wall = np.random.default_rng(0).integers(90, 110, (SIDE, SIDE, 3), dtype=np.uint8)
    write_video(folder / "wall.mp4", [wall] * len(a.frames), samples=a.samples)
    write_video(folder / "silent.mp4", a.frames, samples=np.zeros_like(a.samples))
    write_video(folder / "mute.mp4", a.frames[:50], samples=np.zeros(0, np.float32))
    time = np.arange(len(a.samples)) / 16_000
    chord = sum(0.1 * np.sin(2 * np.pi * hz * time) for hz in (220, 277, 330))
    write_video(folder / "music.mp4", a.frames, samples=np.asarray(chord, np.float32))
    write_video(folder / "short.mp4", a.frames[:20], samples=a.samples[: 20 * 640])
    write_video(folder / "large.mp4", np.zeros((3, 640, 640, 3), np.uint8), samples=a.samples[:1920])
    write_timed(folder / "endless.mp4", a.frames[:2], [Fraction(0), Fraction(9000)], a.samples[:32_000])
    good = (folder / "plain.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(good[: len(good) // 2])
    damaged = bytearray(good)
    rng = np.random.default_rng(1)
    for position in rng.integers(len(good) // 4, len(good), 4000):
        damaged[position] = rng.integers(256)
    (folder / "corrupt.mp4").write_bytes(bytes(damaged))
    (folder / "empty.mp4").touch()
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile 'plain.mp4'\n")
    (folder / "a; rm -rf $HOME\n.mp4").write_bytes(b"no video")
    (folder / "out.mp4").symlink_to("/etc/hostname")
    (folder / "nowhere.mp4").symlink_to(folder / "none.mp4")

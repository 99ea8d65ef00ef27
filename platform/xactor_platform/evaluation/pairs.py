"""Which portrait speaks which sound: the self-driven and the cross-driven setting (Paper 4.1)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".mp4", ".mov", ".mkv", ".webm")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One video to make.

    Attributes:
        id: its name, of letters, digits, `-` and `_`.
        portrait: a picture, or a video of which a frame is taken.
        part: where in that video, 0..1 of its length; None of a picture.
        audio: what it speaks.
        truth: the video that really speaks it, in the self-driven setting.
    """

    id: str
    portrait: Path
    part: float | None
    audio: Path
    truth: Path | None


def self_driven(ravdess: Path, *, pairs: int, seed: int) -> list[Pair]:
    """A random frame of one clip and the sound of another one of the same actor, whose video is the truth.

    RAVDESS's layout: `Actor_07/01-01-05-02-01-02-07.mp4`, of which a first number of 01 means sound and pictures. No
    two pairs speak the same clip while there are enough.

    Raises:
        ValueError: no such folder, or no actor with two clips.
    """
    if not ravdess.is_dir():
        raise ValueError(f"{ravdess}: no such folder")
    actors: dict[str, list[Path]] = {}
    for clip in sorted(ravdess.glob("Actor_*/01-*.mp4")):
        actors.setdefault(clip.parent.name, []).append(clip)
    spoken = [(name, clip) for name, clips in actors.items() if len(clips) > 1 for clip in clips]
    if not spoken:
        raise ValueError(f"{ravdess}: no actor with two clips (Actor_*/01-*.mp4)")
    rng = np.random.default_rng([seed, 1])
    order = np.concatenate([rng.permutation(len(spoken)) for _ in range(-(-pairs // len(spoken)))])[:pairs]
    found = []
    for number, at in enumerate(order):
        actor, audio = spoken[int(at)]
        others = [clip for clip in actors[actor] if clip != audio]
        portrait = others[int(rng.integers(len(others)))]
        found.append(
            Pair(
                id=f"{number:03d}-{audio.stem}",
                portrait=portrait,
                part=float(rng.random()),
                audio=audio,
                truth=audio,
            )
        )
    return found


def cross_driven(images: Path, audios: Path, *, seed: int) -> list[Pair]:
    """Every picture of a folder with a sound of another, matched once by the seed; as many as the smaller has.

    Raises:
        ValueError: no such folder, or nothing in it.
    """
    pictures, sounds = _files(images, _PICTURES), _files(audios, _SOUNDS)
    rng = np.random.default_rng([seed, 2])
    count = min(len(pictures), len(sounds))
    matched = zip(rng.permutation(len(pictures))[:count], rng.permutation(len(sounds))[:count], strict=True)
    return [
        Pair(
            id=f"{number:03d}-{pictures[i].stem}-{sounds[j].stem}".replace(" ", "_").replace(".", "_"),
            portrait=pictures[i],
            part=None,
            audio=sounds[j],
            truth=None,
        )
        for number, (i, j) in enumerate(matched)
    ]


def _files(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)
    if not found:
        raise ValueError(f"{folder}: no file that ends in {', '.join(endings)}")
    return found

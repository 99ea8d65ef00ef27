"""Pair portraits with sounds, in the self-driven and in the cross-driven setting (Paper 4.1).

In the self-driven setting the sound is from the person in the portrait, and a true video of this speech exists. In the
cross-driven setting portrait and sound are from different sources, and there is no true video.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SOUNDS = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus", ".mp4", ".mov", ".mkv", ".webm")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Describe one video to make."""

    id: str
    """The video's name: letters, digits, `-` and `_`."""
    portrait: Path
    """A picture, or a video from which one frame is taken."""
    position: float | None
    """Position of that frame in the video, as a fraction 0..1 of the video's length. None for a picture."""
    audio: Path
    """The sound to speak."""
    truth: Path | None
    """The real video of the person who speaks the sound. None in the cross-driven setting."""


def self_driven(ravdess: Path, *, pairs: int, seed: int) -> list[Pair]:
    """Pair a random frame of one clip with the sound of another clip of the same actor. The sound's clip is the truth.

    The file names of RAVDESS are as in `Actor_07/01-01-05-02-01-02-07.mp4`. A first number of 01 in the file name means
    that the file has sound and pictures. No clip's sound is used a second time before every clip's sound was used once.

    Args:
        ravdess: The folder of RAVDESS.
        pairs: Number of pairs, at least 1.
        seed: Seed of the pairs.

    Raises:
        ValueError: The folder does not exist, or no actor has two clips.
    """
    if pairs < 1:
        raise ValueError(f"pairs must be >= 1, got {pairs}")
    if not ravdess.is_dir():
        raise ValueError(f"{ravdess}: no such folder")
    actors: dict[str, list[Path]] = {}
    for clip in sorted(ravdess.glob("Actor_*/01-*.mp4")):
        actors.setdefault(clip.parent.name, []).append(clip)
    usable = [(name, clip) for name, clips in actors.items() if len(clips) > 1 for clip in clips]
    if not usable:
        raise ValueError(f"{ravdess}: no actor with two clips (Actor_*/01-*.mp4)")
    rng = np.random.default_rng([seed, 1])
    rounds = math.ceil(pairs / len(usable))
    order = np.concatenate([rng.permutation(len(usable)) for _ in range(rounds)])[:pairs]
    found = []
    for number, chosen in enumerate(order):
        actor, audio = usable[int(chosen)]
        others = [clip for clip in actors[actor] if clip != audio]
        portrait = others[int(rng.integers(len(others)))]
        found.append(
            Pair(
                id=f"{number:03d}-{audio.stem}",
                portrait=portrait,
                position=float(rng.random()),
                audio=audio,
                truth=audio,
            )
        )
    return found


def cross_driven(images: Path, audios: Path, *, seed: int) -> list[Pair]:
    """Pair the pictures of one folder at random with the sounds of another, each file at most once.

    There are as many pairs as there are files in the smaller folder.

    Args:
        images: Folder of portraits.
        audios: Folder of sounds, or of videos with sound.
        seed: Seed of the pairs.

    Raises:
        ValueError: A folder does not exist or has no usable file.
    """
    pictures, sounds = _files(images, _PICTURES), _files(audios, _SOUNDS)
    rng = np.random.default_rng([seed, 2])
    count = min(len(pictures), len(sounds))
    matched = zip(rng.permutation(len(pictures))[:count], rng.permutation(len(sounds))[:count], strict=True)
    return [
        Pair(
            id=f"{number:03d}-{pictures[i].stem}-{sounds[j].stem}".replace(" ", "_").replace(".", "_"),
            portrait=pictures[i],
            position=None,
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

"""Plan the clips of a demo corpus: the speaker, the speech and the length of each clip."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xactor.rates import SAMPLE_RATE_HZ
from xactor_platform.demo_corpus.identity import Identity, held_out_identities, training_identities
from xactor_platform.demo_corpus.speech import MIN_CLIP_S, cut_recording, recordings, sentences

# Pictures of still faces: those to train on, and those that are held out (not used for training).
Stills = tuple[Sequence[Path], Sequence[Path]]
# Lengths of the held-out clips in seconds. One clip is longer than a minute, to show a long rollout.
HELD_OUT_S = (64.0, 20.0, 12.0, 16.0)


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """Describe one clip completely."""

    key: str
    """Key of the sample."""
    split: str
    """`train` or `test`."""
    identity: Identity
    """The person."""
    seed: tuple[int, ...]
    """Seed of the speech and of the performance."""
    lines: tuple[str, ...] = ()
    """Sentences of synthetic speech, in order."""
    duration_s: float = 0.0
    """Length of synthetic speech, in seconds."""
    recording: str | None = None
    """Path of the recording that is spoken. None means synthetic speech."""
    segment: int = 0
    """Number of the clip among the clips that `cut_recording` cuts out of the recording, from 0."""


def plan_synthetic(
    *, seed: int, train_s: float, held_out_s: float, identities: int, stills: Stills = ((), ())
) -> list[ClipPlan]:
    """Plan the clips of a corpus that the synthetic voice speaks. The clips of the split `train` come first.

    Args:
        seed: seed of all random choices.
        train_s: minimum seconds of speech to train on.
        held_out_s: minimum seconds of held-out speech.
        identities: number of people to train on.
        stills: pictures of still faces to train on, and of held-out ones.
    """
    # The second number of each seed separates the random choices of the plan (1), of `train` (2) and of `test` (3).
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    people = training_identities(identities, stills[0])
    plans: list[ClipPlan] = []
    lines = sentences("train")
    # Short and long clips are mixed, as in the paper's data. No clip is longer than half a minute, so that each clip
    # fits into one context, the frames that the motion model sees at once.
    planned = 0.0
    while planned < train_s:
        duration_s = float(rng.choice([8.0, 10.0, 13.0, 17.0, 22.0]))
        duration_s = max(min(duration_s, train_s - planned), MIN_CLIP_S)
        number = len(plans)
        # The clip holds as many of these 24 sentences, in this order, as fit into its length.
        order = tuple(lines[i] for i in rng.permutation(len(lines))[:24])
        plans.append(
            ClipPlan(
                key=f"train-{number:04d}",
                split="train",
                identity=people[number % len(people)],
                seed=(seed, 2, number),
                lines=order,
                duration_s=duration_s,
            )
        )
        planned += duration_s
    lines = sentences("test")
    people = held_out_identities(stills[1])
    number, planned = 0, 0.0
    while planned < held_out_s:
        duration_s = min(HELD_OUT_S[number % len(HELD_OUT_S)], max(held_out_s - planned, MIN_CLIP_S))
        order = tuple(lines[i] for i in rng.permutation(len(lines)))
        plans.append(
            ClipPlan(
                key=f"test-{number:04d}",
                split="test",
                identity=people[number % len(people)],
                seed=(seed, 3, number),
                lines=order,
                duration_s=duration_s,
            )
        )
        planned += duration_s
        number += 1
    return plans


def plan_recordings(
    speech: str | Path,
    *,
    seed: int,
    train_s: float,
    held_out_s: float,
    identities: int,
    stills: Stills = ((), ()),
) -> list[ClipPlan]:
    """Plan the clips of a corpus whose speech is recorded. The clips of the split `train` come first.

    Every sixth recording is held out. All speech of the recordings is used, up to the given lengths.

    Args:
        speech: folder of the recordings.
        seed: seed of the performances.
        train_s: maximum seconds of speech to train on. The last clip may exceed it.
        held_out_s: maximum seconds of held-out speech. The last clip may exceed it.
        identities: number of people to train on.
        stills: pictures of still faces to train on, and of held-out ones.

    Raises:
        ValueError: there are fewer than two recordings, or they are too short.
    """
    found = recordings(speech)
    if len(found) < 2:
        raise ValueError(
            f"{speech}: needs at least 2 recordings, so that one can be held out; found {len(found)}"
        )
    held_out = set(found[5::6])
    if not held_out:
        # If there are fewer than six recordings, the last one is held out.
        held_out = {found[-1]}
    plans: list[ClipPlan] = []
    for split, max_s, people in (
        ("train", train_s, training_identities(identities, stills[0])),
        ("test", held_out_s, held_out_identities(stills[1])),
    ):
        planned, number = 0.0, 0
        paths = [path for path in found if (path in held_out) == (split == "test")]
        for path in paths:
            for segment, clip in enumerate(cut_recording(path)):
                if planned >= max_s:
                    break
                plans.append(
                    ClipPlan(
                        key=f"{split}-{number:04d}",
                        split=split,
                        identity=people[number % len(people)],
                        seed=(seed, 2 if split == "train" else 3, number),
                        recording=str(path),
                        segment=segment,
                    )
                )
                planned += len(clip) / SAMPLE_RATE_HZ
                number += 1
        if not number:
            raise ValueError(
                f"{speech}: the recordings for {split!r} hold less than {MIN_CLIP_S:g} s of sound"
            )
    return plans

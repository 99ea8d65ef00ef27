"""The demo corpus: talking clips with known ground truth, the same from the same seed.

    <output>/clips/<split>/<key>.mp4            the clip, 25 fps, with sound
    <output>/clips/<split>/<key>.controls.npy   its control track, float32 [T, 57]
    <output>/shards/<split>-000000.tar ...      stage 2's samples and their index
    <output>/audio_encoder/                     what made the audio features

Until a motion encoder is trained, the shards' motion is the fixed embedding of the control track
(`xactor.controls.embed_controls`). Neither a face nor a sentence of `test` is ever in `train`.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from xactor.audio import LogMelEncoder, load_audio_encoder
from xactor.audio.windows import FPS, SAMPLE_RATE_HZ
from xactor.controls import embed_controls
from xactor.media import write_video
from xactor_platform.corpus.identity import (
    Identity,
    held_out_identities,
    render_frame,
    training_identities,
)
from xactor_platform.corpus.performance import perform
from xactor_platform.corpus.speech import (
    LEAST_S,
    Synthesiser,
    cut_recording,
    recordings,
    sentences,
    synthesise,
)
from xactor_platform.index import load_index
from xactor_platform.shards import ShardWriter

# Seconds of the held-out clips, by turns of the held-out people; one is a minute long, to see a long rollout.
_HELD_OUT_S = (64.0, 20.0, 12.0, 16.0)


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """Everything that decides one clip."""

    key: str
    split: str
    identity: Identity
    seed: tuple[int, ...]
    lines: tuple[str, ...] = ()
    duration_s: float = 0.0
    recording: str | None = None
    part: int = 0


@dataclass(frozen=True, kw_only=True)
class DemoCorpus:
    """What was made, and where."""

    folder: Path
    shards: Path
    clips: dict[str, int]
    minutes: dict[str, float]
    seconds: float


def make_demo_corpus(
    output: str | Path,
    *,
    seed: int = 0,
    minutes: float = 10.0,
    held_out_minutes: float | None = None,
    size_px: int = 256,
    identities: int = 6,
    speech: str | Path | None = None,
    audio_encoder: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> DemoCorpus:
    """Makes clips and shards in a folder.

    Args:
        seed: the same seed gives the same bytes.
        minutes: of talk to train on, at least.
        held_out_minutes: of talk held out, at least; by default 1.9, with one clip of over a minute.
        size_px: the frames' side, even.
        identities: people to train on.
        speech: a folder of recordings to speak instead of the synthetic voice; every sixth is held out.
        audio_encoder: a folder that holds one; log-mel without weights where it is not given.
        workers: processes; as many as there are cores where it is not given.

    Raises:
        ValueError: an argument that cannot be, a folder without usable recordings, a missing extra.
    """
    began = time.monotonic()
    if not 0 < minutes <= 10_000:
        raise ValueError(f"minutes must be within 0..10000, got {minutes:g}")
    if size_px < 32 or size_px % 2:
        raise ValueError(f"size_px must be even and >= 32, got {size_px}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    folder = Path(output)
    encoder = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    held_out_s = 60 * held_out_minutes if held_out_minutes is not None else sum(_HELD_OUT_S)
    if speech is None:
        plans = plan_synthetic(seed=seed, train_s=60 * minutes, held_out_s=held_out_s, identities=identities)
    else:
        plans = plan_recordings(
            speech, seed=seed, train_s=60 * minutes, held_out_s=held_out_s, identities=identities
        )
    encoder.save_pretrained(folder / "audio_encoder")
    clips: dict[str, int] = {}
    frames: dict[str, int] = {}
    shards = folder / "shards"
    made = _make_clips(plans, folder, size_px, workers or os.cpu_count() or 1, progress)
    for split in ("train", "test"):
        with ShardWriter(str(shards), split, samples_per_shard=16, overwrite=True) as writer:
            for plan in (p for p in plans if p.split == split):
                key, members = next(made)
                assert key == plan.key
                writer.write(key, members)
                clips[split] = clips.get(split, 0) + 1
                frames[split] = frames.get(split, 0) + members["json"]["frames"]
    load_index(str(shards))
    return DemoCorpus(
        folder=folder,
        shards=shards,
        clips=clips,
        minutes={split: count / FPS / 60 for split, count in frames.items()},
        seconds=time.monotonic() - began,
    )


def plan_synthetic(*, seed: int, train_s: float, held_out_s: float, identities: int) -> list[ClipPlan]:
    """The clips of a corpus spoken by the synthetic voice, train first."""
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    people = training_identities(identities)
    plans: list[ClipPlan] = []
    lines = sentences("train")
    # Short and long clips by turns, as in the paper's data, none over half a minute: every clip is one context.
    planned = 0.0
    while planned < train_s:
        duration_s = float(rng.choice([8.0, 10.0, 13.0, 17.0, 22.0]))
        duration_s = max(min(duration_s, train_s - planned), LEAST_S)
        number = len(plans)
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
    people = held_out_identities()
    number, planned = 0, 0.0
    while planned < held_out_s:
        duration_s = min(_HELD_OUT_S[number % len(_HELD_OUT_S)], max(held_out_s - planned, LEAST_S))
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
    speech: str | Path, *, seed: int, train_s: float, held_out_s: float, identities: int
) -> list[ClipPlan]:
    """The clips of a corpus spoken by recordings, train first; every sixth recording is held out.

    All that the recordings hold is used, up to the minutes asked for.
    """
    found = recordings(speech)
    if len(found) < 2:
        raise ValueError(
            f"{speech}: at least 2 recordings are needed, so that one can be held out; found {len(found)}"
        )
    held_out = {
        path for i, path in enumerate(found) if i % 6 == 5 or (len(found) < 6 and i == len(found) - 1)
    }
    plans: list[ClipPlan] = []
    for split, most_s, people in (
        ("train", train_s, training_identities(identities)),
        ("test", held_out_s, held_out_identities()),
    ):
        planned, number = 0.0, 0
        for path in (p for p in found if (p in held_out) == (split == "test")):
            for part, clip in enumerate(cut_recording(path)):
                if planned >= most_s:
                    break
                plans.append(
                    ClipPlan(
                        key=f"{split}-{number:04d}",
                        split=split,
                        identity=people[number % len(people)],
                        seed=(seed, 2 if split == "train" else 3, number),
                        recording=str(path),
                        part=part,
                    )
                )
                planned += len(clip) / SAMPLE_RATE_HZ
                number += 1
        if not number:
            raise ValueError(f"{speech}: the recordings for {split!r} hold no {LEAST_S:g} s of sound")
    return plans


def speak(plan: ClipPlan) -> tuple[np.ndarray, list[str]]:
    """The sound of a planned clip, float32 [N] at 16 kHz, and the sentences in it (none for a recording)."""
    if plan.recording is not None:
        return _parts(plan.recording)[plan.part], []
    rng = np.random.Generator(np.random.PCG64(list(plan.seed)))
    return synthesise(_synthesiser(), list(plan.lines), plan.duration_s, plan.identity.voice, rng)


def make_clip(plan: ClipPlan, folder: Path, size_px: int) -> tuple[str, dict]:
    """Writes one clip and its control track; returns its key and its members for a shard."""
    samples, text = speak(plan)
    controls = perform(samples, seed=hash_seed(plan.seed))  # [T, 57]
    target = folder / "clips" / plan.split
    target.mkdir(parents=True, exist_ok=True)
    pictures = (render_frame(plan.identity, row, size_px) for row in controls)
    write_video(
        target / f"{plan.key}.mp4",
        pictures,
        fps=FPS,
        samples=samples,
        preset="ultrafast",
        metadata={"comment": "drawn by a program"},
    )
    np.save(target / f"{plan.key}.controls.npy", controls)
    features = _encoder(str(folder / "audio_encoder")).features(samples)  # [T, L, F]
    meta = {
        "frames": len(controls),
        "fps": FPS,
        "source": "demo" if plan.recording is None else Path(plan.recording).name,
        "speaker": plan.identity.name,
        "sync_confidence": None,
        "motion": "controls",
        "text": text,
    }
    (target / f"{plan.key}.json").write_text(json.dumps(meta, sort_keys=True) + "\n")
    return plan.key, {
        "motion.npy": embed_controls(controls).astype(np.float16),
        "audio.npy": features.astype(np.float16),
        "json": meta,
    }


def hash_seed(seed: tuple[int, ...]) -> int:
    """One number from several, the same everywhere."""
    return int(np.random.SeedSequence(list(seed)).generate_state(1)[0])


def _make_clips(
    plans: list[ClipPlan], folder: Path, size_px: int, workers: int, progress: Callable[[str], None]
) -> Iterator[tuple[str, dict]]:
    """The clips in the plan's order, made by a pool of processes with one thread each."""
    if workers == 1:
        for number, plan in enumerate(plans):
            yield make_clip(plan, folder, size_px)
            progress(f"{number + 1}/{len(plans)} clips")
        return
    # The long ones first, so that no core waits for one at the end.
    order = sorted(range(len(plans)), key=lambda i: -plans[i].duration_s)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(plans)), mp_context=context, initializer=one_thread) as pool:
        futures = {i: pool.submit(make_clip, plans[i], folder, size_px) for i in order}
        try:
            for number, done in enumerate(as_completed(futures.values())):
                done.result()
                progress(f"{number + 1}/{len(plans)} clips")
            for i in range(len(plans)):
                yield futures.pop(i).result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def one_thread() -> None:
    """Makes this process compute on one thread, so that as many processes as cores do not fight."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


@lru_cache(maxsize=1)
def _synthesiser() -> Synthesiser:
    return Synthesiser()


@lru_cache(maxsize=1)
def _encoder(folder: str):
    return load_audio_encoder(folder)


@lru_cache(maxsize=1)
def _parts(recording: str) -> list[np.ndarray]:
    return cut_recording(recording)

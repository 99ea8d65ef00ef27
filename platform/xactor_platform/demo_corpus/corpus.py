"""Make the demo corpus: clips of talking faces whose motion is known. The same seed gives the same corpus.

    <output>/clips/<split>/<key>.mp4            the clip, 25 fps, with sound
    <output>/clips/<split>/<key>.controls.npy   its control track: the motion of the face, float32 [T, 57]
    <output>/videos/<split>-000000.tar ...      samples for stage 1, the training of the renderer and the motion
                                                encoder: square face crops with sound, control track and landmarks
    <output>/shards/<split>-000000.tar ...      samples for stage 2, the training of the motion model: motion and
                                                audio features
    <output>/audio_encoder/                     the encoder of the audio features

A clip has the same key in all folders. The motion in `shards` is the fixed embedding of the control track
(`xactor.controls.embed_controls`), for use without a motion encoder. With a motion encoder, `jobs/precompute.py` makes
the motion from `videos`. No face and no sentence of `test` occurs in `train`. In the default ten minutes nearly every
clip has a different face, so that a renderer learns to generalise to new faces.
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
from typing import Any

import numpy as np

from xactor.audio.encoder import LogMelEncoder, load_audio_encoder
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.controls import embed_controls
from xactor.faces import CropBox, Face
from xactor.faces.landmarks import landmark_frames, landmark_track
from xactor.media import write_video
from xactor.origin import AUDIO, LATENTS
from xactor.rates import FPS
from xactor_platform.data.face_video import ClipSamples, face_video
from xactor_platform.data.index import CONTROLS, LANDMARKS
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.demo_corpus.clip_plan import HELD_OUT_S, ClipPlan, plan_recordings, plan_synthetic
from xactor_platform.demo_corpus.identity import DETECTED_PX, find_crop, find_face, render_frame, split_stills
from xactor_platform.demo_corpus.performance import perform
from xactor_platform.demo_corpus.speech import Synthesiser, cut_recording, synthesise
from xactor_platform.precompute.worker import start_worker


@dataclass(frozen=True, kw_only=True)
class DemoCorpus:
    """Describe the corpus that was made."""

    folder: Path
    """Folder of the corpus."""
    shards: Path
    """Folder of the shards for stage 2, the training of the motion model."""
    videos: Path
    """Folder of the shards for stage 1, the training of the renderer and the motion encoder."""
    clips: dict[str, int]
    """Number of clips by split."""
    minutes: dict[str, float]
    """Minutes of video by split."""
    seconds: float
    """Seconds that it took to make the corpus."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Hold the sizes of the pictures in a corpus."""

    size_px: int
    """Side of a clip's frames in pixels."""
    crop_px: int
    """Side of the face crops in pixels."""


def make_demo_corpus(
    output: str | Path,
    *,
    seed: int = 0,
    minutes: float = 10.0,
    held_out_minutes: float | None = None,
    size_px: int = 192,
    crop_px: int = 64,
    identities: int = 48,
    stills: str | Path | None = None,
    speech: str | Path | None = None,
    audio_encoder: str | Path | None = None,
    workers: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> DemoCorpus:
    """Make clips and shards in a folder.

    Args:
        output: folder of the corpus.
        seed: seed of the corpus. The same seed gives the same bytes.
        minutes: minimum minutes of speech to train on (maximum with `speech`), more than 0 and at most 10,000.
        held_out_minutes: minimum minutes of held-out speech (maximum with `speech`). The default is 1.9, with one clip
            longer than a minute.
        size_px: side of the clips in pixels, even, at least 32.
        crop_px: side of the face crops in the video shards in pixels, even, at least 32.
        identities: number of people to train on.
        stills: folder of still faces, photographs or paintings (.jpg, .png). Every sixth still is held out. Every
            second person to train on is a puppet, a still that a program animates, until all stills are used.
        speech: folder of recordings that replace the synthetic voice. Every sixth recording is held out.
        audio_encoder: folder of a Wav2Vec2 model. The default is log-mel features, which need no weights.
        workers: number of processes. The default is the number of cores.
        progress: is called with a line after each clip.

    Raises:
        ValueError: an argument is out of bounds, a folder holds no usable recordings or stills, or an optional package
            is missing.
    """
    began = time.monotonic()
    if not 0 < minutes <= 10_000:
        raise ValueError(f"minutes must be > 0 and <= 10000, got {minutes:g}")
    for name, px in (("size_px", size_px), ("crop_px", crop_px)):
        if px < 32 or px % 2:
            raise ValueError(f"{name} must be even and >= 32, got {px}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    folder = Path(output)
    encoder = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    held_out_s = 60 * held_out_minutes if held_out_minutes is not None else sum(HELD_OUT_S)
    amounts: dict[str, Any] = {
        "seed": seed,
        "train_s": 60 * minutes,
        "held_out_s": held_out_s,
        "identities": identities,
        "stills": split_stills(stills, progress) if stills else ((), ()),
    }
    plans = plan_synthetic(**amounts) if speech is None else plan_recordings(speech, **amounts)
    encoder.save_pretrained(folder / "audio_encoder")
    clips: dict[str, int] = {}
    frames: dict[str, int] = {}
    shards, videos = folder / "shards", folder / "videos"
    sizes = Sizes(size_px=size_px, crop_px=crop_px)
    made = _make_clips(plans, folder, sizes, workers or os.cpu_count() or 1, progress)
    for split in ("train", "test"):
        with (
            ShardWriter(str(shards), split, samples_per_shard=16, overwrite=True) as motion,
            ShardWriter(str(videos), split, samples_per_shard=16, overwrite=True) as pictures,
        ):
            for plan in (p for p in plans if p.split == split):
                clip = next(made)
                assert clip.video is not None
                motion.write(plan.key, clip.motion)
                pictures.write(plan.key, clip.video)
                clips[split] = clips.get(split, 0) + 1
                frames[split] = frames.get(split, 0) + clip.motion["json"]["frames"]
    load_index(str(shards))
    load_index(str(videos))
    return DemoCorpus(
        folder=folder,
        shards=shards,
        videos=videos,
        clips=clips,
        minutes={split: count / FPS / 60 for split, count in frames.items()},
        seconds=time.monotonic() - began,
    )


def speak(plan: ClipPlan) -> tuple[np.ndarray, list[str]]:
    """Return the sound of a planned clip, float32 [N] at 16 kHz, and its sentences (an empty list for a recording)."""
    if plan.recording is not None:
        return _segments(plan.recording)[plan.segment], []
    rng = np.random.Generator(np.random.PCG64(list(plan.seed)))
    return synthesise(_synthesiser(), list(plan.lines), plan.duration_s, plan.identity.voice, rng)


def make_clip(plan: ClipPlan, folder: Path, sizes: Sizes) -> ClipSamples:
    """Write one clip and its control track, and return its samples for the shards."""
    samples, text = speak(plan)
    controls = perform(samples, seed=hash_seed(plan.seed))  # [T, 57]
    box = find_crop(plan.identity, sizes.size_px)
    # If no face is found, the crops show the whole frames.
    square = box or CropBox(left=0, top=0, side=sizes.size_px)
    target = folder / "clips" / plan.split
    target.mkdir(parents=True, exist_ok=True)
    crops: list[np.ndarray] = []
    measured: list[Face | None] = []

    def pictures() -> Iterator[np.ndarray]:
        for number, row in enumerate(controls):
            picture = render_frame(plan.identity, row, sizes.size_px)
            crops.append(square.cut(picture, sizes.crop_px))
            if number in landmark_frames(len(controls)):
                measured.append(find_face(picture))
            yield picture

    metadata = {"comment": "drawn by a program"}
    clip = target / f"{plan.key}.mp4"
    write_video(clip, pictures(), fps=FPS, samples=samples, preset="ultrafast", metadata=metadata)
    np.save(target / f"{plan.key}.controls.npy", controls)
    meta = {
        "frames": len(controls),
        "fps": FPS,
        "source": "demo" if plan.recording is None else Path(plan.recording).name,
        "speaker": plan.identity.name,
        "sync_confidence": None,
        "text": text,
        "crop": vars(box) if box else None,
    }
    (target / f"{plan.key}.json").write_text(json.dumps(meta, sort_keys=True) + "\n")
    encoder = _encoder(str(folder / "audio_encoder"))
    features = encoder.features(samples)  # [T, L, F]
    return ClipSamples(
        motion={
            "motion.npy": embed_controls(controls).astype(np.float16),
            "audio.npy": features.astype(np.float16),
            "json": {**meta, "motion": "controls", LATENTS: CONTROLS_ORIGIN, AUDIO: encoder.origin},
        },
        video={
            "mp4": face_video(crops, samples),
            CONTROLS: controls,
            LANDMARKS: landmark_track(measured, square.scaled(DETECTED_PX / sizes.size_px)),
            "json": meta,
        },
    )


def hash_seed(seed: tuple[int, ...]) -> int:
    """Return one number that depends on all given numbers. It is the same on every machine."""
    return int(np.random.SeedSequence(list(seed)).generate_state(1)[0])


def _make_clips(
    plans: list[ClipPlan], folder: Path, sizes: Sizes, workers: int, progress: Callable[[str], None]
) -> Iterator[ClipSamples]:
    """Make the clips in a pool of processes with one thread each. Yield their samples in the order of the plans."""
    if workers == 1:
        for number, plan in enumerate(plans):
            yield make_clip(plan, folder, sizes)
            progress(f"{number + 1}/{len(plans)} clips")
        return
    # The longest clips are made first, so that no core waits for a long clip at the end.
    order = sorted(range(len(plans)), key=lambda i: -plans[i].duration_s)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(plans)), mp_context=context, initializer=start_worker) as pool:
        futures = {i: pool.submit(make_clip, plans[i], folder, sizes) for i in order}
        try:
            for number, done in enumerate(as_completed(futures.values())):
                # Raise the error of a clip that failed.
                done.result()
                progress(f"{number + 1}/{len(plans)} clips")
            for i in range(len(plans)):
                # Removing the future frees the memory of its samples.
                yield futures.pop(i).result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@lru_cache(maxsize=1)
def _synthesiser() -> Synthesiser:
    return Synthesiser()


@lru_cache(maxsize=1)
def _encoder(folder: str):
    return load_audio_encoder(folder)


@lru_cache(maxsize=1)
def _segments(recording: str) -> list[np.ndarray]:
    return cut_recording(recording)

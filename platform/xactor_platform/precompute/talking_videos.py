"""Any talking videos to shards, by a landmark model.

Stage 2's hold the control track, embedded by the fixed map, and the sound's features. Stage 1's, where crops are asked
for, hold the square around the face with its sound, under the same keys.

A video that cannot be used is one line of the report, never the end of the job.
"""

import glob
import json
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from xactor.audio.encoder import LogMelEncoder, load_audio_encoder
from xactor.controls import embed_controls
from xactor.faces import FaceLandmarker, control_track, crop_box
from xactor.media import read_audio, read_frames
from xactor.rates import FPS, SAMPLES_PER_FRAME, frame_count
from xactor_platform.data.face_video import ClipSamples, face_video
from xactor_platform.data.index import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.precompute.worker import start_worker
from xactor_platform.storage.location import Location, sibling_uri

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp"}
LEAST_S = 1.0
REPORT = "report.jsonl"
SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class VideoFate:
    """What became of one video: a line of the report."""

    file: str
    status: str  # ok | failed
    reason: str | None
    frames: int
    split: str
    key: str


@dataclass(frozen=True, kw_only=True)
class VideoCorpus:
    """What became of all."""

    shards: str
    fates: list[VideoFate]

    @property
    def failed(self) -> list[VideoFate]:
        return [fate for fate in self.fates if fate.status != "ok"]


def find_videos(where: str) -> list[Path]:
    """The videos of a folder (and below it) or of a glob pattern, sorted. ValueError where there are none."""
    if Path(where).is_dir():
        found = [p for p in Path(where).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    else:
        found = [Path(p) for p in glob.glob(where, recursive=True) if Path(p).is_file()]
    if not found:
        raise ValueError(f"{where}: no videos found")
    return sorted(found)


def shards_from_videos(
    videos: str,
    output: str,
    *,
    landmarks: str | Path | None = None,
    crops: int = 0,
    crops_output: str | None = None,
    held_out: float = 0.2,
    audio_encoder: str | Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[VideoFate], None] = lambda fate: None,
) -> VideoCorpus:
    """Makes shards, their index, `audio_encoder/` and `report.jsonl` in the folder `output` (a path or URI).

    Args:
        videos: a folder or a glob pattern.
        landmarks: another landmark model than the packaged one.
        crops: the side of face crops in pixels, for video shards; 0 makes none.
        crops_output: folder or URI of the video shards; `videos` beside `output` where it is not given.
        held_out: so many videos (1 or more), or that part of them (below 1), go to the split `test`.
        audio_encoder: a folder that holds one; log-mel without weights where it is not given.
        seed: of which videos are held out.
        workers: processes; as many as there are cores where it is not given.

    Raises:
        ValueError: an argument that cannot be, or not one video to train on.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    if crops and (crops < 32 or crops % 2):
        raise ValueError(f"crops must be 0, or even and >= 32, got {crops}")
    crops_output = crops_output or sibling_uri(output, "videos")
    if crops and Path(crops_output) in (Path(videos).absolute(), Path(output).absolute()):
        raise ValueError(f"crops_output must be a folder of its own, got {crops_output}")
    files = find_videos(videos)
    splits = _splits(len(files), held_out, seed)
    FaceLandmarker(landmarks)  # A missing extra or model is said before any work.
    target = Location.parse(output)
    encoder = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "audio_encoder"
        encoder.save_pretrained(folder)
        for part in sorted(folder.iterdir()):
            with target.atomic_write(f"audio_encoder/{part.name}") as stream:
                stream.write(part.read_bytes())
        fates = []
        with ExitStack() as stack:
            motion = {
                split: stack.enter_context(ShardWriter(output, split, overwrite=True)) for split in SPLITS
            }
            pictures = {
                split: stack.enter_context(ShardWriter(crops_output, split, overwrite=True))
                for split in SPLITS
                if crops
            }
            task = partial(
                _try_video,
                encoder_folder=str(folder),
                landmarks=str(landmarks) if landmarks else None,
                crops=crops,
            )
            for number, made in enumerate(_in_pool(files, workers or os.cpu_count() or 1, task)):
                key = f"{number:05d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', files[number].stem)[:80]}"
                failed = isinstance(made, str)
                if not failed:
                    motion[splits[number]].write(key, made.motion)
                    if made.video is not None:
                        pictures[splits[number]].write(key, made.video)
                fate = VideoFate(
                    file=str(files[number]),
                    status="failed" if failed else "ok",
                    reason=made if failed else None,
                    frames=0 if failed else made.motion["json"]["frames"],
                    split=splits[number],
                    key=key,
                )
                fates.append(fate)
                progress(fate)
    with target.atomic_write(REPORT) as stream:
        stream.write("".join(json.dumps(vars(fate)) + "\n" for fate in fates).encode())
    if not any(fate.status == "ok" and fate.split == "train" for fate in fates):
        first = next((fate.reason for fate in fates if fate.reason), "all are held out")
        raise ValueError(
            f"{videos}: none of {len(files)} videos can be trained on ({first}); see {REPORT} in {output}"
        )
    for shards in (output, crops_output) if crops else (output,):
        load_index(shards)
    return VideoCorpus(shards=output, fates=fates)


def read_video(file: str, encoder_folder: str, landmarks: str | None = None, crops: int = 0) -> ClipSamples:
    """One video's members for the shards.

    Raises:
        ValueError: naming why the video cannot be used.
    """
    samples = read_audio(file)
    if np.abs(samples).max() < 1e-3:
        raise ValueError(f"{file}: the sound is silence")
    faces = list(_landmarker(landmarks).follow(read_frames(file, FPS), FPS))
    # Sound and pictures seldom end at the same moment: what both have is used.
    frames = min(len(faces), frame_count(len(samples)))
    if frames < LEAST_S * FPS:
        raise ValueError(
            f"{file}: too short, {frames / FPS:.2f} s of sound and pictures; at least {LEAST_S:g} s is needed"
        )
    try:
        controls = control_track(faces[:frames])  # [T, 57]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    features = _encoder(encoder_folder).features(samples)[:frames]  # [T, L, F]
    meta = {
        "frames": frames,
        "fps": FPS,
        "source": Path(file).name,
        "speaker": Path(file).stem,
        "sync_confidence": None,
    }
    motion = {
        "motion.npy": embed_controls(controls).astype(np.float16),
        "audio.npy": features.astype(np.float16),
        "json": {**meta, "motion": "controls"},
    }
    if not crops:
        return ClipSamples(motion=motion, video=None)
    box = crop_box([face for face in faces[:frames] if face is not None])
    # Decoded once more: a long video's pictures would not fit into memory.
    pictures = (box.cut(picture, crops) for picture in islice(read_frames(file, FPS), frames))
    video = {
        "mp4": face_video(pictures, samples[: frames * SAMPLES_PER_FRAME]),
        "controls.npy": controls,
        "json": {**meta, "crop": vars(box)},
    }
    return ClipSamples(motion=motion, video=video)


def _splits(count: int, held_out: float, seed: int) -> list[str]:
    if held_out < 0 or (held_out >= 1 and held_out != int(held_out)):
        raise ValueError(f"held_out must be a fraction below 1 or a whole number, got {held_out:g}")
    number = int(held_out) if held_out >= 1 else round(held_out * count)
    if held_out > 0 and count > 1:
        number = max(number, 1)
    if number >= count and number:
        raise ValueError(f"held_out must leave videos to train on: {number} of {count} would be held out")
    chosen = set(np.random.Generator(np.random.PCG64([seed, 6])).permutation(count)[:number].tolist())
    return ["test" if i in chosen else "train" for i in range(count)]


def _try_video(file: Path, **options) -> ClipSamples | str:
    """The members, or the reason why there are none."""
    try:
        return read_video(str(file), **options)
    except Exception as error:  # Whatever a strange file does to a decoder is that file's failure.
        reason = str(error).removeprefix(f"{file}: ") or type(error).__name__
        return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"


def _in_pool(jobs: list, workers: int, work: Callable) -> Iterator[Any]:
    """Results in order. A file that kills its process fails alone: what was in flight with it runs again."""
    done = 0
    alone = False
    while done < len(jobs):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            1 if alone else min(workers, len(jobs) - done), context, start_worker
        ) as pool:
            batch = jobs[done : done + 1] if alone else jobs[done:]
            futures = [pool.submit(work, job) for job in batch]
            alone = False
            for future in futures:
                try:
                    result = future.result()
                except BrokenProcessPool:
                    if len(batch) == 1:
                        done += 1
                        yield "the decoder crashed on it"
                    else:
                        alone = True
                    break
                done += 1
                yield result


@lru_cache(maxsize=1)
def _landmarker(model: str | None) -> FaceLandmarker:
    return FaceLandmarker(model)


@lru_cache(maxsize=1)
def _encoder(folder: str):
    return load_audio_encoder(folder)

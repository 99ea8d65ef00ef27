"""Any talking videos to stage-2 shards: a landmark model's control track, embedded by the fixed map, and the sound.

A video that cannot be used is one line of the report, never the end of the job.
"""

import glob
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from xactor.audio import LogMelEncoder, load_audio_encoder
from xactor.audio.windows import FPS, frame_count
from xactor.controls import embed_controls
from xactor.faces import FaceLandmarker, control_track
from xactor.media import read_audio, read_frames
from xactor_platform.index import load_index
from xactor_platform.location import Location
from xactor_platform.shards import ShardWriter

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp"}
LEAST_S = 1.0
REPORT = "report.jsonl"


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
        held_out: so many videos (1 or more), or that part of them (below 1), go to the split `test`.
        audio_encoder: a folder that holds one; log-mel without weights where it is not given.
        seed: of which videos are held out.
        workers: processes; as many as there are cores where it is not given.

    Raises:
        ValueError: an argument that cannot be, or not one video to train on.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    files = find_videos(videos)
    splits = _splits(len(files), held_out, seed)
    FaceLandmarker(landmarks)  # A missing extra or model is said before any work.
    target = Location.parse(output)
    encoder = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "audio_encoder"
        encoder.save_pretrained(folder)
        for part in sorted(folder.iterdir()):
            with Location.parse(_inside(output, "audio_encoder")).replace(part.name) as stream:
                stream.write(part.read_bytes())
        fates = []
        with (
            ShardWriter(output, "train", overwrite=True) as train,
            ShardWriter(output, "test", overwrite=True) as test,
        ):
            writers = {"train": train, "test": test}
            jobs = [(str(file), str(folder), str(landmarks) if landmarks else None) for file in files]
            for number, made in enumerate(_in_pool(jobs, workers or os.cpu_count() or 1)):
                key = f"{number:05d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', files[number].stem)[:80]}"
                members = {} if isinstance(made, str) else made
                if members:
                    writers[splits[number]].write(key, members)
                fate = VideoFate(
                    file=str(files[number]),
                    status="ok" if members else "failed",
                    reason=made if isinstance(made, str) else None,
                    frames=members["json"]["frames"] if members else 0,
                    split=splits[number],
                    key=key,
                )
                fates.append(fate)
                progress(fate)
    with target.replace(REPORT) as stream:
        stream.write("".join(json.dumps(vars(fate)) + "\n" for fate in fates).encode())
    if not any(fate.status == "ok" and fate.split == "train" for fate in fates):
        first = next((fate.reason for fate in fates if fate.reason), "all are held out")
        raise ValueError(
            f"{videos}: none of {len(files)} videos can be trained on ({first}); see {REPORT} in {output}"
        )
    load_index(output)
    return VideoCorpus(shards=output, fates=fates)


def read_video(file: str, encoder_folder: str, landmarks: str | None = None) -> dict:
    """One video's members for a shard.

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
    return {
        "motion.npy": embed_controls(controls).astype(np.float16),
        "audio.npy": features.astype(np.float16),
        "json": {
            "frames": frames,
            "fps": FPS,
            "source": Path(file).name,
            "speaker": Path(file).stem,
            "sync_confidence": None,
            "motion": "controls",
        },
    }


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


def _try_video(job: tuple[str, str, str | None]) -> dict | str:
    """The members, or the reason why there are none."""
    try:
        return read_video(*job)
    except Exception as error:  # Whatever a strange file does to a decoder is that file's failure.
        reason = str(error).removeprefix(f"{job[0]}: ") or type(error).__name__
        return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"


def _in_pool(jobs: list, workers: int, work: Callable = _try_video) -> Iterator[dict | str]:
    """Results in order. A file that kills its process fails alone: what was in flight with it runs again."""
    done = 0
    alone = False
    while done < len(jobs):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            1 if alone else min(workers, len(jobs) - done), context, _start_worker
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


def _start_worker() -> None:
    """One computing thread, and quiet: MediaPipe's C++ logs every graph it starts, past every setting."""
    import torch

    torch.set_num_threads(1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    os.close(silent)


def _inside(folder: str, name: str) -> str:
    """A folder inside a folder, where the outer may be a URI with query options."""
    path, mark, query = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


@lru_cache(maxsize=1)
def _landmarker(model: str | None) -> FaceLandmarker:
    return FaceLandmarker(model)


@lru_cache(maxsize=1)
def _encoder(folder: str):
    return load_audio_encoder(folder)

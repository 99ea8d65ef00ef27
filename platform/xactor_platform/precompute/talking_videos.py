"""Make shards from any videos of talking people, with the help of a model that finds facial landmarks.

Stage 1 is the training of the renderer, stage 2 that of the motion model. A control track holds numbers that describe
the face's motion in each frame; `embed_controls` turns them into motion latents.

    <output>/                 stage 2's shards: the embedded control track and the audio features
    <output>/report.jsonl     a line for each video
    <parent>/audio_encoder/   the encoder of the audio features, where stage 2's training looks for it
    <parent>/videos/          stage 1's shards, only on request, under the same keys: face crops with sound,
                              control tracks and landmarks

If a video cannot be used, its line in the report says why, and the job continues.
"""

import glob
import json
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xactor.audio.encoder import LogMelEncoder, load_audio_encoder
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.controls import embed_controls
from xactor.faces import FaceLandmarker, control_track, crop_box
from xactor.faces.landmarks import landmark_frames, landmark_track
from xactor.media import read_audio, read_frames
from xactor.media.container import VIDEO_SUFFIXES
from xactor.origin import AUDIO, LATENTS
from xactor.rates import FPS, SAMPLES_PER_FRAME, frame_count
from xactor_platform.data.face_video import ClipSamples, face_video
from xactor_platform.data.index import CONTROLS, LANDMARKS
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.precompute.encoder_folder import save_encoder
from xactor_platform.precompute.worker import start_worker
from xactor_platform.storage.location import Location, sibling_uri

# Minimum length of a video in seconds.
MIN_S = 1.0
REPORT = "report.jsonl"
SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """Hold the line of one video in the report."""

    file: str
    """The video's path."""
    status: Literal["ok", "failed"]
    """Whether the video is in the shards."""
    reason: str | None
    """Why the video failed; None if it did not."""
    frames: int
    """Number of the video's frames in the shards; 0 if the video failed."""
    split: str
    """The split, train or test."""
    key: str
    """The sample's key in the shards."""


@dataclass(frozen=True, kw_only=True)
class VideoCorpus:
    """Hold the place of the shards, and the results of all videos."""

    shards: str
    """Folder or URI of stage 2's shards."""
    results: list[VideoResult]
    """One result for each video, in the order of the files."""

    @property
    def failed(self) -> list[VideoResult]:
        """Return the results of the videos that are not in the shards."""
        return [result for result in self.results if result.status != "ok"]


def list_videos(folder_or_pattern: str) -> list[Path]:
    """Return the videos below a folder, or those that match a glob pattern, sorted.

    Raises:
        ValueError: No video is found.
    """
    if Path(folder_or_pattern).is_dir():
        found = [
            p
            for p in Path(folder_or_pattern).rglob("*")
            if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file()
        ]
    else:
        found = [Path(p) for p in glob.glob(folder_or_pattern, recursive=True) if Path(p).is_file()]
    if not found:
        raise ValueError(f"{folder_or_pattern}: no videos found")
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
    progress: Callable[[VideoResult], None] = lambda result: None,
) -> VideoCorpus:
    """Make shards, their index and `report.jsonl` in the folder `output`, and `audio_encoder/` next to it.

    Args:
        videos: Folder or glob pattern.
        output: Folder or URI of stage 2's shards.
        landmarks: File of the landmark model. By default the file in this package.
        crops: Side of the face crops for video shards, in pixels; 0 makes none.
        crops_output: Folder or URI of the video shards. By default `videos` next to `output`.
        held_out: Number of videos in the split `test` if >= 1, fraction of all videos if below 1.
        audio_encoder: Folder of an audio encoder. By default log-mel features, which have no weights.
        seed: Seed of the choice of held-out videos.
        workers: Number of processes. By default one per core.
        progress: Called with each video's result.

    Raises:
        ValueError: An argument is out of its bounds, or no video can be trained on.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}")
    if crops and (crops < 32 or crops % 2):
        raise ValueError(f"crops must be 0, or even and >= 32, got {crops}")
    crops_output = crops_output or sibling_uri(output, "videos")
    taken = {Path(videos).absolute(), Path(output).absolute()}
    if crops and Path(crops_output).absolute() in taken:
        raise ValueError(f"crops_output must be a folder of its own, got {crops_output}")
    files = list_videos(videos)
    splits = _splits(len(files), held_out, seed)
    # Load the models here only to report a missing Python package or file before any work.
    FaceLandmarker(landmarks)
    encoder = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        save_encoder(Path(folder), sibling_uri(output, "audio_encoder"))
        task = partial(
            _try_video,
            encoder_folder=folder,
            landmarks=str(landmarks) if landmarks else None,
            crops=crops,
        )
        samples = _in_pool(files, workers or os.cpu_count() or 1, task)
        written = _write(
            zip(files, splits, samples, strict=True), output, crops_output=crops_output if crops else None
        )
        for result in written:
            results.append(result)
            progress(result)
    with Location.parse(output).atomic_write(REPORT) as stream:
        stream.write("".join(json.dumps(vars(result)) + "\n" for result in results).encode())
    if not any(result.status == "ok" and result.split == "train" for result in results):
        first = next((result.reason for result in results if result.reason), "all are held out")
        raise ValueError(
            f"{videos}: none of {len(files)} videos can be trained on ({first}); see {REPORT} in {output}"
        )
    for shards in (output, crops_output) if crops else (output,):
        load_index(shards)
    return VideoCorpus(shards=output, results=results)


def _write(
    videos: Iterable[tuple[Path, str, ClipSamples | str]], output: str, crops_output: str | None
) -> Iterator[VideoResult]:
    """Write shards and yield each video's result.

    Args:
        videos: Each file, its split, and its samples or the reason why it has no samples.
        output: Folder or URI of stage 2's shards.
        crops_output: Folder or URI of stage 1's shards; None writes none.
    """
    with ExitStack() as stack:

        def open_writers(folder: str) -> dict[str, ShardWriter]:
            return {
                split: stack.enter_context(ShardWriter(folder, split, overwrite=True)) for split in SPLITS
            }

        motion_writers = open_writers(output)
        crop_writers = open_writers(crops_output) if crops_output else {}
        for number, (file, split, samples) in enumerate(videos):
            key = f"{number:05d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', file.stem)[:80]}"
            if isinstance(samples, str):
                yield VideoResult(
                    file=str(file), status="failed", reason=samples, frames=0, split=split, key=key
                )
                continue
            motion_writers[split].write(key, samples.motion)
            if samples.video is not None:
                crop_writers[split].write(key, samples.video)
            frames = samples.motion["json"]["frames"]
            yield VideoResult(file=str(file), status="ok", reason=None, frames=frames, split=split, key=key)


def read_video(file: str, encoder_folder: str, landmarks: str | None = None, crops: int = 0) -> ClipSamples:
    """Read one video and return its samples for the shards of both stages.

    Args:
        file: Path of the video.
        encoder_folder: Local folder of the audio encoder.
        landmarks: File of the landmark model. By default the file in this package.
        crops: Side of the face crops in pixels; 0 makes no sample for stage 1.

    Raises:
        ValueError: The video cannot be used; the message says why.
    """
    samples = read_audio(file)
    # Samples lie within -1..1, so a peak below 0.001 is more than 60 dB below full scale.
    if np.abs(samples).max() < 1e-3:
        raise ValueError(f"{file}: the sound is silence")
    faces = list(_landmarker(landmarks).follow(read_frames(file, FPS), FPS))
    # Sound and pictures seldom end together. Only the time that has both is used.
    frames = min(len(faces), frame_count(len(samples)))
    if frames < MIN_S * FPS:
        raise ValueError(
            f"{file}: too short, {frames / FPS:.2f} s of sound and pictures; at least {MIN_S:g} s is needed"
        )
    try:
        controls = control_track(faces[:frames])  # [T, 57]
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    encoder = _encoder(encoder_folder)
    features = encoder.features(samples)[:frames]  # [T, L, F]
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
        "json": {**meta, "motion": "controls", LATENTS: CONTROLS_ORIGIN, AUDIO: encoder.origin},
    }
    if not crops:
        return ClipSamples(motion=motion, video=None)
    box = crop_box([face for face in faces[:frames] if face is not None])
    # The pictures are decoded a second time, because those of a long video do not fit into memory.
    pictures = (box.cut(picture, crops) for picture in islice(read_frames(file, FPS), frames))
    video = {
        "mp4": face_video(pictures, samples[: frames * SAMPLES_PER_FRAME]),
        CONTROLS: controls,
        LANDMARKS: landmark_track(faces[:frames], box)[landmark_frames(frames)],
        "json": {**meta, "crop": vars(box)},
    }
    return ClipSamples(motion=motion, video=video)


def _splits(count: int, held_out: float, seed: int) -> list[str]:
    """Draw the split of each of `count` videos. See `shards_from_videos` for `held_out`."""
    if held_out < 0 or (held_out >= 1 and held_out != int(held_out)):
        raise ValueError(f"held_out must be a fraction below 1 or a whole number, got {held_out:g}")
    number = int(held_out) if held_out >= 1 else round(held_out * count)
    if held_out > 0 and count > 1:
        number = max(number, 1)
    if number >= count and number:
        raise ValueError(f"held_out must leave videos to train on: {number} of {count} would be held out")
    # 6 separates this draw from other draws with the same seed.
    chosen = set(np.random.Generator(np.random.PCG64([seed, 6])).permutation(count)[:number].tolist())
    return ["test" if i in chosen else "train" for i in range(count)]


def _try_video(file: Path, **options) -> ClipSamples | str:
    """Return the samples of a video, or the reason why it has no samples."""
    try:
        return read_video(str(file), **options)
    # A damaged file can raise any error in a decoder. Only this file has failed then.
    except Exception as error:
        reason = str(error).removeprefix(f"{file}: ") or type(error).__name__
        return reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"


def _in_pool(jobs: list, workers: int, work: Callable) -> Iterator[Any]:
    """Run `work` on each job, a file, in a pool of processes, and yield the results in order.

    A file that kills its process does not affect the other files; its result is an error message. A killed process
    breaks the pool, and the pool does not say which file killed the process. A new pool then runs the first file
    without a result alone. If that file breaks this pool too, it is the culprit. After that, the other files run
    together again.
    """
    done = 0
    run_alone = False
    context = multiprocessing.get_context("spawn")
    while done < len(jobs):
        batch = jobs[done : done + 1] if run_alone else jobs[done:]
        with ProcessPoolExecutor(min(workers, len(batch)), context, start_worker) as pool:
            futures = [pool.submit(work, job) for job in batch]
            run_alone = False
            for future in futures:
                try:
                    result = future.result()
                except BrokenProcessPool:
                    if len(batch) == 1:
                        done += 1
                        yield "the decoder crashed on it"
                    else:
                        run_alone = True
                    break
                done += 1
                yield result


@lru_cache(maxsize=1)
def _landmarker(model: str | None) -> FaceLandmarker:
    return FaceLandmarker(model)


@lru_cache(maxsize=1)
def _encoder(folder: str):
    return load_audio_encoder(folder)

"""Make shards from a folder of talking videos on one machine, without Ray.

Curation's stages cut the videos into clips that show one face in one shot, and drop clips of bad quality. Only the
judgement of lip-sync is left out. A control track holds numbers that describe the face's motion in each frame;
`embed_controls` turns them into motion latents.

    <output>/                 stage 2's shards: the embedded control track and the audio features
    <output>/report.jsonl     a line for each clip, and for each video that gave none
    <parent>/audio_encoder/   the encoder of the audio features, where stage 2's training looks for it
    <parent>/videos/          stage 1's shards, only on request, under the same keys: face crops with sound,
                              control tracks and landmarks

Stage 1 is the training of the renderer, stage 2 that of the motion model.
"""

import glob
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from xactor.audio.encoder import LogMelEncoder, load_audio_encoder
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.controls import embed_controls
from xactor.faces import FaceLandmarker
from xactor.origin import AUDIO, LATENTS
from xactor.sandbox import Sandbox
from xactor_platform.curation.curation_config import Bounds, Gates
from xactor_platform.curation.curation_stage import (
    clip_fate,
    failed_piece,
    refusal_of,
    refused_fate,
)
from xactor_platform.curation.cut import Cut, sound_of_clip
from xactor_platform.curation.messages import Facts, Fate, Piece, Probed, Video
from xactor_platform.curation.probe import Probe
from xactor_platform.curation.scan import Scan, pieces_of
from xactor_platform.curation.track import Track
from xactor_platform.curation.video_files import list_videos, video_of
from xactor_platform.curation.write import sample_of
from xactor_platform.data.index import CONTROLS
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.precompute.encoder_folder import save_encoder
from xactor_platform.precompute.worker import start_worker
from xactor_platform.storage.location import Location, sibling_uri

T = TypeVar("T")
R = TypeVar("R")
REPORT = "report.jsonl"
SPLITS = ("train", "test")
# Maximum size of a video file in bytes.
_MAX_BYTES = 64 << 30
# Side, in pixels, of the crops that are measured if the caller asks for no crops.
_MEASURED_PX = 256
# Seconds that all stages together may take for a video of any length, and for each second of video.
_BASE_TIMEOUT_S, _TIMEOUT_FACTOR = 120, 16
# Results that may wait to be written, for each process. A result holds all clips of a video.
_WAITING_RESULTS = 2
# In a process of the sandbox: the stages' functions. `_prepare` sets them.
_stages: dict[str, Callable[[Any], Any]] = {}


@dataclass(frozen=True, kw_only=True)
class VideoCorpus:
    """Hold the place of the shards, and the fates of all clips."""

    shards: str
    """Folder or URI of stage 2's shards."""
    fates: list[Fate]
    """A fate for each clip, and for each video that gave no clip, in the order of the videos."""

    @property
    def unused(self) -> set[str]:
        """Return the names of the videos without a kept clip."""
        return {fate.video for fate in self.fates} - {
            fate.video for fate in self.fates if fate.status == "kept"
        }


class _Result(NamedTuple):
    """Hold one clip. The members and the sound are None if the clip is not kept.

    Attributes:
        fate: the clip's fate.
        members: the clip's members in stage 1's shards.
        samples: the clip's sound at 16 kHz, float32 [frames x 640].
    """

    fate: Fate
    members: dict[str, Any] | None = None
    samples: np.ndarray | None = None


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
    progress: Callable[[Fate], None] = lambda fate: None,
) -> VideoCorpus:
    """Make shards, their index and `report.jsonl` in the folder `output`, and `audio_encoder/` next to it.

    Args:
        videos: Folder or URI of videos, or a glob pattern.
        output: Folder or URI of stage 2's shards.
        landmarks: File of the landmark model. By default the file in this package.
        crops: Side of the face crops for video shards, in pixels; 0 makes none.
        crops_output: Folder or URI of the video shards. By default `videos` next to `output`.
        held_out: Number of speakers in the split `test` if >= 1, fraction of all speakers if below 1.
        audio_encoder: Folder of an audio encoder. By default log-mel features, which have no weights.
        seed: Seed of the choice of held-out speakers.
        workers: Number of processes. By default one per core.
        progress: Called with the fate of each clip, and of each video that gave no clip.

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
    found, refused = _find_videos(videos)
    split_of = _splits(sorted({video.speaker for video in found}), held_out, seed)
    # Load the models here only to report a missing Python package or file before any work.
    FaceLandmarker(landmarks)
    encoder = load_audio_encoder(audio_encoder) if audio_encoder else LogMelEncoder()
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_pretrained(folder)
        save_encoder(Path(folder), sibling_uri(output, "audio_encoder"))
    origins = {LATENTS: CONTROLS_ORIGIN, AUDIO: encoder.origin}
    # Crops are enlarged twofold at most.
    gates = Gates(min_crop_px=max(crops // 2, 32))
    prepare = partial(_prepare, str(landmarks) if landmarks else None, gates, crops or _MEASURED_PX)
    fates = list(refused)
    with ExitStack() as stack:
        for fate in refused:
            progress(fate)

        def open_writers(place: str) -> dict[str, ShardWriter]:
            return {split: stack.enter_context(ShardWriter(place, split, overwrite=True)) for split in SPLITS}

        motion_writers = open_writers(output)
        crop_writers = open_writers(crops_output) if crops else None
        for result in stack.enter_context(closing(_results(found, workers or os.cpu_count() or 1, prepare))):
            fate, members = result.fate, result.members
            if members is not None:
                assert result.samples is not None
                split = split_of[fate.speaker]
                fate = replace(fate, split=split)
                features = encoder.features(result.samples)  # [T, L, F]
                motion = {
                    "motion.npy": embed_controls(members[CONTROLS]).astype(np.float16),
                    "audio.npy": features.astype(np.float16),
                    "json": {**members["json"], "motion": "controls", **origins},
                }
                motion_writers[split].write(fate.clip, motion)
                if crop_writers:
                    crop_writers[split].write(fate.clip, members)
            fates.append(fate)
            progress(fate)
    with Location.parse(output).atomic_write(REPORT) as stream:
        stream.write("".join(json.dumps(asdict(fate)) + "\n" for fate in fates).encode())
    if not any(fate.split == "train" for fate in fates):
        first = next((fate.detail for fate in fates if fate.detail), "all are held out")
        count = len(found) + len(refused)
        raise ValueError(
            f"{videos}: none of {count} videos can be trained on ({first}); see {REPORT} in {output}"
        )
    for shards in (output, crops_output) if crops else (output,):
        load_index(shards)
    return VideoCorpus(shards=output, fates=fates)


def _find_videos(folder_or_pattern: str) -> tuple[list[Video], list[Fate]]:
    """Return the videos of a folder, or those that match a glob pattern, in order, and the fates of refused videos.

    Raises:
        ValueError: No video is found.
    """
    if "://" in folder_or_pattern or Path(folder_or_pattern).is_dir():
        videos, refused = list_videos(folder_or_pattern)
        return videos, [fate for _, fate in refused]
    files = [name for name in sorted(glob.glob(folder_or_pattern, recursive=True)) if Path(name).is_file()]
    if not files:
        raise ValueError(f"{folder_or_pattern}: no videos found")
    return [video_of(".", name) for name in files], []


def _splits(speakers: list[str], held_out: float, seed: int) -> dict[str, str]:
    """Draw the split of each speaker. See `shards_from_videos` for `held_out`."""
    count = len(speakers)
    if held_out < 0 or (held_out >= 1 and held_out != int(held_out)):
        raise ValueError(f"held_out must be a fraction below 1 or a whole number, got {held_out:g}")
    number = int(held_out) if held_out >= 1 else round(held_out * count)
    if held_out > 0 and count > 1:
        number = max(number, 1)
    if number >= count and number:
        raise ValueError(
            f"held_out must leave speakers to train on: {number} of {count} would be held out (files in one "
            f"folder below the top one count as one speaker)"
        )
    # 6 separates this draw from other draws with the same seed.
    chosen = set(np.random.Generator(np.random.PCG64([seed, 6])).permutation(count)[:number].tolist())
    return {speaker: "test" if i in chosen else "train" for i, speaker in enumerate(speakers)}


def _results(videos: list[Video], workers: int, prepare: Callable[[], None]) -> Generator[_Result]:
    """Yield the clips of all videos in the order of the videos.

    The videos are decoded in a sandbox, because a damaged file may crash or hang a decoder.
    """
    bounds = Bounds()
    memory_bytes = int(bounds.memory_gib * 2**30)
    with closing(Sandbox(processes=workers, memory_bytes=memory_bytes, prepare=prepare)) as sandbox:

        def probe(video: Video) -> Future[Probed]:
            return sandbox.submit(_probe, video, timeout_s=_BASE_TIMEOUT_S)

        def make_clips(one: Probed | Fate) -> Future[list[_Result]]:
            if isinstance(one, Fate):
                refused: Future[list[_Result]] = Future()
                refused.set_result([_Result(one)])
                return refused
            seconds = _BASE_TIMEOUT_S + _TIMEOUT_FACTOR * one.facts.seconds
            return sandbox.submit(_make_clips, one, timeout_s=seconds)

        # All videos are probed first, because the timeout of the other stages depends on a video's length.
        probed = [
            _fate_of_error(video, None, outcome) if isinstance(outcome, Exception) else outcome
            for video, outcome in _in_order(videos, probe, workers)
        ]
        for one, outcome in _in_order(probed, make_clips, workers):
            if isinstance(outcome, Exception):
                assert isinstance(one, Probed)
                yield _Result(_fate_of_error(one.video, one.facts, outcome))
            else:
                yield from outcome


def _in_order(
    items: Iterable[T], submit: Callable[[T], Future[R]], workers: int
) -> Iterator[tuple[T, R | Exception]]:
    """Submit all items and yield each with its result or error, in order. Few results wait in memory at a time."""
    waiting: deque[tuple[T, Future[R]]] = deque()

    def first() -> tuple[T, R | Exception]:
        item, future = waiting.popleft()
        error = future.exception()
        if error is None:
            return item, future.result()
        if not isinstance(error, Exception):
            raise error
        return item, error

    for item in items:
        waiting.append((item, submit(item)))
        if len(waiting) >= _WAITING_RESULTS * workers:
            yield first()
    while waiting:
        yield first()


def _fate_of_error(video: Video, facts: Facts | None, error: Exception) -> Fate:
    """Return the fate of a video whose work raised an error. A damaged file can raise any error in a decoder."""
    reason, detail = refusal_of(error) or ("unreadable", f"{type(error).__name__}: {error}")
    return refused_fate(video, facts, reason, detail)


def _prepare(landmarks: str | None, gates: Gates, size_px: int) -> None:
    """Make the stages' functions. The sandbox calls this once in each process that it starts."""
    start_worker()
    bounds = Bounds()
    _stages["probe"] = Probe.make(
        max_input_bytes=_MAX_BYTES, max_s=bounds.max_s, max_pixels=bounds.max_pixels
    )
    _stages["scan"] = Scan.make(max_s=bounds.max_s)
    _stages["track"] = Track.make(landmarks=landmarks)
    _stages["cut"] = Cut.make(gates=gates, size_px=size_px)


def _probe(video: Video) -> Probed:
    (probed,) = _stages["probe"](video)
    return probed


def _make_clips(probed: Probed) -> list[_Result]:
    """Pass a video through the stages. Return its clips in order, each with its fate."""
    results = []
    for piece in pieces_of(probed, *_stages["scan"]((probed, None))):
        piece = _cut_piece(piece)
        for number, clip in enumerate(piece.clips):
            fate = clip_fate(piece, number)
            if clip.status == "kept":
                results.append(_Result(fate, sample_of(piece, clip, fate), sound_of_clip(piece, clip)))
            else:
                results.append(_Result(fate))
    return results


def _cut_piece(piece: Piece) -> Piece:
    """Return a piece with its clips. If the piece cannot be decoded, its clips have failed."""
    try:
        for name in ("track", "cut"):
            (piece,) = _stages[name](piece)
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        return failed_piece(piece, *refusal)
    return piece

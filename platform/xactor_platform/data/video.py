"""Read the pictures of planned samples from video shards, decoding only the frames that are trained on."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from PIL import Image

from xactor.controls import CONTROL_COUNT
from xactor.media.seek import pick_frames
from xactor.rates import FPS
from xactor_platform.data.batch import Batch, weigh_samples
from xactor_platform.data.index import CONTROLS, Index
from xactor_platform.data.plan import MicroBatch
from xactor_platform.data.reading import REMOTE_READS, Raw
from xactor_platform.storage.location import Location
from xactor_platform.storage.retries import StorageUnavailable, with_retries

# Minimum distance of a reference from its targets in frames. A nearer reference would already show their motion.
MIN_REFERENCE_DISTANCE = FPS


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoBatch(Batch):
    """Hold the pictures of B samples. Each has F targets and one reference, all from the same clip."""

    targets: np.ndarray
    """Target pictures, uint8 [B, F, S, S, 3]."""
    references: np.ndarray
    """Reference pictures, uint8 [B, S, S, 3]."""
    controls: np.ndarray | None = None
    """Controls of the reference and of the targets, float32 [B, 1 + F, 57]. None if they were not read."""


@dataclass(frozen=True, eq=False)
class VideoRequest:
    """Name what to decode for one micro-batch."""

    keys: list[str]
    """Keys of the clips, [B]."""
    shards: list[str]
    """Names of the clips' shards, [B]. Empty for a filler."""
    starts: np.ndarray
    """First frame of each sample in its clip, int64 [B]."""
    frames: np.ndarray
    """Length of each sample, int64 [B]."""
    offset: np.ndarray
    """First byte of the mp4 in its shard, int64 [B]."""
    length: np.ndarray
    """Bytes of the mp4, int64 [B]."""
    controls: np.ndarray | None
    """First byte of the control track in its shard and its number of bytes, int64 [B, 2]. None without controls."""
    wanted: np.ndarray
    """Frame numbers of the targets, and of the reference at the end, int64 [B, F + 1]."""


class VideoReader:
    """Read the pictures for a stream.

    Args:
        index: a corpus of videos with square pictures.
        image_size: side in pixels that pictures are resized to.
        seed: decides which frames are drawn, together with the epoch and the sample.
        stills: function of the number of a global step. Returns how many frames to draw for each sample, None for all.
        controls: read the control tracks too, if all samples have one.
    """

    def __init__(
        self,
        index: Index,
        *,
        image_size: int,
        seed: int,
        stills: Callable[[int], int | None],
        controls: bool = False,
    ):
        if "mp4" not in index.offset:
            raise ValueError(f"{index.location.uri}: holds latents, not videos")
        self.index, self._image_size, self._seed, self._stills = index, image_size, seed, stills
        self._has_controls = controls and index.controls == index.samples
        # 3 bytes per pixel. There are at most as many references as targets, hence the factor 2.
        self.bytes_per_frame = 2 * 3 * image_size**2
        self.read = partial(read_videos, index.location, image_size)

    def request(self, micro_batch: MicroBatch, *, step: int, epoch: int | str) -> VideoRequest:
        """Draw the frames of a micro-batch, and return what to decode."""
        rows = micro_batch.row
        keys, clips = self.index.key[rows].tolist(), self.index.frames[rows].tolist()
        starts, frames = micro_batch.start.tolist(), micro_batch.frames.tolist()
        draws = [
            draw_frames((self._seed, epoch, key, start), start, count, clip, self._stills(step))
            for key, start, count, clip in zip(keys, starts, frames, clips, strict=True)
        ]
        shards = [] if micro_batch.is_filler else [self.index.shard_names[s] for s in self.index.shard[rows]]
        return VideoRequest(
            keys=keys,
            shards=shards,
            starts=micro_batch.start,
            frames=micro_batch.frames,
            offset=self.index.offset["mp4"][rows],
            length=self.index.length["mp4"][rows],
            controls=np.stack([self.index.offset[CONTROLS][rows], self.index.length[CONTROLS][rows]], axis=1)
            if self._has_controls
            else None,
            wanted=np.stack(draws),
        )

    def batch(self, request: VideoRequest, raw: Raw) -> VideoBatch:
        """Shape the decoded pictures into a batch."""
        weight, bad = weigh_samples(request.keys, request.shards, raw)
        side = self._image_size
        # A copy, because arrays from Ray are read-only, and torch needs writable ones.
        pictures = raw.arrays["pictures"].reshape(*request.wanted.shape, side, side, 3).copy()
        controls = None
        if self._has_controls:
            rows = raw.arrays["controls"].view(np.float32).reshape(*request.wanted.shape, CONTROL_COUNT)
            controls = np.roll(rows, 1, axis=1)  # the reference first
        return VideoBatch(
            keys=request.keys,
            starts=request.starts,
            frames=request.frames,
            weight=weight,
            bad=bad,
            targets=pictures[:, :-1],
            references=pictures[:, -1],
            controls=controls,
        )


def draw_frames(
    key: tuple[str | int, ...], start: int, frames: int, clip_frames: int, stills: int | None
) -> np.ndarray:
    """Draw the frames of a clip that are targets, and the frame that is their reference.

    The reference is at least a second away from all targets, or as far as the clip allows.

    Args:
        key: determines the draw.
        start: first frame of the sample.
        frames: length of the sample.
        clip_frames: length of the clip.
        stills: number of targets. One is in the sample, the others are anywhere in its clip, because neighbouring
            frames teach little that is new. None takes all frames of the sample.

    Returns:
        frame numbers, int64 [F + 1]: the targets in rising order, then the reference.
    """
    # Imported here, because processes that only read shards do not need torch.
    import torch

    from xactor.randomness import keyed_generator

    generator = keyed_generator(*key, "frames")

    def draw(end: int, count: int = 1) -> np.ndarray:
        """Return `count` random numbers in 0..end - 1."""
        return torch.randint(end, (count,), generator=generator).numpy()

    if stills is None:
        targets = start + np.arange(frames)
    else:
        targets = np.sort(np.append(start + draw(frames), draw(clip_frames, stills - 1)))
    # Distance of each frame of the clip from the nearest target.
    distance = np.abs(np.arange(clip_frames)[:, None] - targets).min(axis=1)
    far = np.flatnonzero(distance >= MIN_REFERENCE_DISTANCE)
    reference = far[draw(len(far))] if len(far) else [distance.argmax()]
    return np.append(targets, reference)


def read_videos(location: Location, image_size: int, requests: Sequence[VideoRequest]) -> list[Raw]:
    """Read and decode several micro-batches together.

    A sample whose video or control track cannot be read or decoded is listed in `bad`, and its arrays are zero.

    Raises:
        StorageUnavailable: the storage fails. This makes no sample bad.
    """
    buffers = [np.zeros((*request.wanted.shape, image_size, image_size, 3), np.uint8) for request in requests]
    tracks = [
        None if request.controls is None else np.zeros((*request.wanted.shape, CONTROL_COUNT), np.float32)
        for request in requests
    ]
    raws = [
        Raw({"pictures": buffer.reshape(-1), **_track_bytes(track)}, [])
        for buffer, track in zip(buffers, tracks, strict=True)
    ]
    # Each clip, as (shard, offset, length), with its samples, as (number of the request, position in the request).
    clips: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
    for number, request in enumerate(requests):
        for place, shard in enumerate(request.shards):
            clip = shard, int(request.offset[place]), int(request.length[place])
            clips.setdefault(clip, []).append((number, place))

    def read_clip(clip: tuple[str, int, int]) -> list[tuple[int, int, str]]:
        """Decode one clip's samples into their buffers. Return the samples that failed, each with the reason."""
        shard, offset, length = clip
        number, place = clips[clip][0]
        controls = requests[number].controls
        track_offset, track_length = (0, 0) if controls is None else controls[place].tolist()

        def read() -> tuple[bytes, bytes]:
            with location.open(shard) as file:
                return file.read_at(length, offset), file.read_at(track_length, track_offset)

        try:
            video, track = with_retries(read, f"{location.uri}/{shard}")
        except StorageUnavailable:
            # The storage failed, so the samples may be good.
            raise
        except OSError as error:
            return [(*sample, f"cannot be read: {error}") for sample in clips[clip]]
        if len(video) < length:
            reason = f"ends at byte {offset + len(video)}, the index says {offset + length}"
            return [(*sample, reason) for sample in clips[clip]]
        problems = []
        for number, place in clips[clip]:
            # Decode each sample alone: whether it is bad must not depend on the samples that are read together with it.
            try:
                wanted, rows = requests[number].wanted[place], tracks[number]
                found = None if rows is None else _parse_track(track, wanted)
                _decode(video, wanted, buffers[number][place])
                if rows is not None:
                    rows[place] = found
            except ValueError as error:
                problems.append((number, place, str(error)))
        return problems

    if location.is_local:
        problems_of_clips = [read_clip(clip) for clip in clips]
    else:
        with ThreadPoolExecutor(REMOTE_READS) as pool:
            problems_of_clips = list(pool.map(read_clip, clips))
    for number, place, reason in sorted(chain.from_iterable(problems_of_clips)):
        raws[number].bad.append((place, reason))
    return raws


def _track_bytes(track: np.ndarray | None) -> dict[str, np.ndarray]:
    return {} if track is None else {"controls": track.view(np.uint8).reshape(-1)}


def _parse_track(data: bytes, wanted: np.ndarray) -> np.ndarray:
    """Return the wanted rows [F + 1, 57] of a control track, given as a .npy file. Raise ValueError if it is faulty."""
    try:
        track = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{CONTROLS} is not an array: {error}") from None
    numbers = track.dtype.kind in "fiu"
    if track.ndim != 2 or track.shape[1] != CONTROL_COUNT or not numbers or not np.isfinite(track).all():
        raise ValueError(
            f"{CONTROLS} must be finite numbers [frames, {CONTROL_COUNT}], got {track.dtype} {list(track.shape)}"
        )
    if len(track) <= wanted.max():
        raise ValueError(f"{CONTROLS} ends after {len(track)} frames, frame {wanted.max()} was requested")
    return track[wanted]


def _decode(video: bytes, wanted: np.ndarray, buffer: np.ndarray) -> None:
    """Decode the wanted pictures into `buffer`, uint8 [F + 1, S, S, 3]. If it raises ValueError, it wrote none."""
    numbers = np.unique(wanted)
    pictures = np.stack([_fit(p, buffer.shape[1]) for p in pick_frames(video, numbers.tolist(), FPS)])
    buffer[:] = pictures[np.searchsorted(numbers, wanted)]


def _fit(picture: np.ndarray, image_size: int) -> np.ndarray:
    """Resize a square picture to the model's size. Average areas if it becomes smaller."""
    height, width = picture.shape[:2]
    if height != width:
        raise ValueError(f"pictures must be square, got {width}x{height}")
    if height == image_size:
        return picture
    resampling = Image.Resampling.BOX if height > image_size else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((image_size, image_size), resampling))

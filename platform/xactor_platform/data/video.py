"""Reads pictures of planned samples out of video shards: of each clip's mp4 only those that are trained on."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from xactor.media.seek import pick_frames
from xactor.rates import FPS
from xactor_platform.data.batch import Batch, judge
from xactor_platform.data.index import Index
from xactor_platform.data.plan import MicroBatch
from xactor_platform.data.reading import REMOTE_READS, Raw
from xactor_platform.storage.location import Location

REFERENCE_APART = (
    FPS  # frames between a reference and its target, or a still picture would be as good as motion
)


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoBatch(Batch):
    """Pictures of B samples: F targets of each, and one reference of its clip."""

    targets: np.ndarray  # uint8 [B, F, S, S, 3]
    references: np.ndarray  # uint8 [B, S, S, 3]


@dataclass(frozen=True, eq=False)
class VideoRequest:
    """What to decode for one micro-batch."""

    keys: list[str]
    shards: list[str]  # empty for a filler
    starts: np.ndarray  # int64 [B]
    frames: np.ndarray  # int64 [B]
    offset: np.ndarray  # int64 [B], of the mp4 in its shard, bytes
    length: np.ndarray  # int64 [B], bytes
    wanted: np.ndarray  # int64 [B, F + 1], frame numbers: targets, and the reference at the end


class VideoReader:
    """Reads the pictures for a stream.

    Args:
        index: of a corpus of videos, of square pictures.
        image_size: what they are resized to, in pixels.
        seed: of the draws, with the epoch and the sample.
        stills: of a global step, how many frames are drawn of each sample; None for all of them.
    """

    def __init__(self, index: Index, *, image_size: int, seed: int, stills: Callable[[int], int | None]):
        if "mp4" not in index.offset:
            raise ValueError(f"{index.location.uri}: holds latents, not videos")
        self.index, self._image_size, self._seed, self._stills = index, image_size, seed, stills
        self.bytes_per_frame = 2 * 3 * image_size**2  # as many references as targets at the most
        self.read = partial(read_videos, index.location, image_size)

    def request(self, micro_batch: MicroBatch, *, step: int, epoch: int | str) -> VideoRequest:
        rows = micro_batch.row
        keys, clips = self.index.key[rows].tolist(), self.index.frames[rows].tolist()
        starts, frames = micro_batch.start.tolist(), micro_batch.frames.tolist()
        draws = [
            draw_frames((self._seed, epoch, key, start), start, count, clip, self._stills(step))
            for key, start, count, clip in zip(keys, starts, frames, clips, strict=True)
        ]
        return VideoRequest(
            keys=keys,
            shards=[]
            if micro_batch.is_filler
            else [self.index.shard_names[s] for s in self.index.shard[rows]],
            starts=micro_batch.start,
            frames=micro_batch.frames,
            offset=self.index.offset["mp4"][rows],
            length=self.index.length["mp4"][rows],
            wanted=np.stack(draws),
        )

    def batch(self, request: VideoRequest, raw: Raw) -> VideoBatch:
        weight, bad = judge(request.keys, request.shards, raw)
        side = self._image_size
        # A copy, since what came through Ray cannot be written to, which torch insists on.
        pictures = raw.parts["pictures"].reshape(*request.wanted.shape, side, side, 3).copy()
        return VideoBatch(
            keys=request.keys,
            starts=request.starts,
            frames=request.frames,
            weight=weight,
            bad=bad,
            targets=pictures[:, :-1],
            references=pictures[:, -1],
        )


def draw_frames(
    key: tuple[str | int, ...], start: int, frames: int, clip_frames: int, stills: int | None
) -> np.ndarray:
    """Which frames of a clip are targets, rising, and which is their reference: int64 [F + 1].

    The reference lies at least a second from all targets, or as far as the clip allows.

    Args:
        key: decides the draw.
        start, frames: of the sample. clip_frames: of its clip.
        stills: how many targets, one in the sample and the others anywhere in its clip, since neighbours teach little
            that is new; None for the whole sample.
    """
    import torch  # processes that only read never load it

    from xactor.randomness import keyed_generator

    generator = keyed_generator(*key, "frames")

    def draw(end: int, count: int = 1) -> np.ndarray:
        return torch.randint(end, (count,), generator=generator).numpy()

    if stills is None:
        targets = start + np.arange(frames)
    else:
        targets = np.sort(np.append(start + draw(frames), draw(clip_frames, stills - 1)))
    apart = np.abs(np.arange(clip_frames)[:, None] - targets).min(axis=1)
    far = np.flatnonzero(apart >= REFERENCE_APART)
    reference = far[draw(len(far))] if len(far) else [apart.argmax()]
    return np.append(targets, reference)


def read_videos(location: Location, image_size: int, requests: Sequence[VideoRequest]) -> list[Raw]:
    """Reads and decodes several micro-batches at once.

    A sample whose video cannot be read or decoded is named in `bad` and its pictures are zero.
    """
    rooms = [np.zeros((*request.wanted.shape, image_size, image_size, 3), np.uint8) for request in requests]
    raws = [Raw({"pictures": room.reshape(-1)}, []) for room in rooms]
    clips: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
    for number, request in enumerate(requests):
        for place, shard in enumerate(request.shards):
            clip = shard, int(request.offset[place]), int(request.length[place])
            clips.setdefault(clip, []).append((number, place))

    def read_clip(clip: tuple[str, int, int]) -> list[tuple[int, int, str]]:
        """Fills the places of one clip's samples. Returns those that cannot be, with the reason."""
        shard, offset, length = clip
        try:
            with location.open(shard) as file:
                video = file.read_at(length, offset)
        except OSError as error:
            return [(*place, f"cannot be read: {error}") for place in clips[clip]]
        problems = []
        for number, place in clips[clip]:
            # Each sample by itself: what is bad must not depend on what is read along with it.
            try:
                _decode(video, requests[number].wanted[place], rooms[number][place])
            except ValueError as error:
                problems.append((number, place, str(error)))
        return problems

    if location.is_local:
        found = [read_clip(clip) for clip in clips]
    else:
        with ThreadPoolExecutor(REMOTE_READS) as pool:
            found = list(pool.map(read_clip, clips))
    for number, place, reason in sorted(problem for problems in found for problem in problems):
        raws[number].bad.append((place, reason))
    return raws


def _decode(video: bytes, wanted: np.ndarray, room: np.ndarray) -> None:
    """Puts the wanted pictures into their room uint8 [F + 1, S, S, 3]: all of them, or none with ValueError."""
    numbers = np.unique(wanted)
    pictures = np.stack([_fit(p, room.shape[1]) for p in pick_frames(video, numbers.tolist(), FPS)])
    room[:] = pictures[np.searchsorted(numbers, wanted)]


def _fit(picture: np.ndarray, image_size: int) -> np.ndarray:
    """A square picture at the model's size; shrunk by averaging areas."""
    height, width = picture.shape[:2]
    if height != width:
        raise ValueError(f"pictures must be square, got {width}x{height}")
    if height == image_size:
        return picture
    how = Image.Resampling.BOX if height > image_size else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((image_size, image_size), how))

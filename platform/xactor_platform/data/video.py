"""Read the pictures of planned samples from video shards, decoding only the frames that are trained on."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from PIL import Image

from xactor.controls import CONTROL_COUNT
from xactor.faces.landmarks import LANDMARK_FRAMES, MEAN_LANDMARKS, landmark_frames
from xactor.media.seek import pick_frames
from xactor.rates import FPS
from xactor_platform.data.batch import Batch, weigh_samples
from xactor_platform.data.checksums import differs
from xactor_platform.data.index import CONTROLS, LANDMARKS, Index
from xactor_platform.data.npy import read_numbers
from xactor_platform.data.plan import MicroBatch
from xactor_platform.data.reading import REMOTE_READS, Raw
from xactor_platform.storage.location import Location
from xactor_platform.storage.retries import StorageUnavailable, with_retries

# Minimum distance of a reference from its targets in frames. A nearer reference would already show their motion.
MIN_REFERENCE_DISTANCE = FPS


@dataclass(frozen=True, eq=False, kw_only=True)
class VideoBatch(Batch):
    """Hold the pictures of B samples. Each has F targets and one reference, all from the same clip.

    The renderer learns to generate the targets from the reference. Controls are 57 numbers per frame that describe the
    face's motion; see `xactor.controls`.
    """

    targets: np.ndarray
    """Target pictures, uint8 [B, F, S, S, 3]."""
    references: np.ndarray
    """Reference pictures, uint8 [B, S, S, 3]."""
    controls: np.ndarray | None = None
    """Controls of the reference and of the targets, float32 [B, 1 + F, 57]. None if they were not read."""
    landmarks: np.ndarray | None = None
    """K landmarks of the reference, then of 7 other frames of its clip, float32 [B, 8, K, 2]. None if not read."""
    landmark_controls: np.ndarray | None = None
    """Controls of the 8 frames in `landmarks`, float32 [B, 8, 57]. None if `landmarks` is None."""


@dataclass(frozen=True, eq=False)
class VideoRequest:
    """Name what to decode for one micro-batch. Tracks are a clip's controls and landmarks."""

    keys: list[str]
    """Key of each sample's clip, [B]."""
    shards: list[str]
    """Name of the shard of each clip, [B]. Empty for a filler: nothing is read for it."""
    starts: np.ndarray
    """First frame of each sample in its clip, int64 [B]."""
    frames: np.ndarray
    """Length of each sample in frames, int64 [B]."""
    offset: np.ndarray
    """First byte of the mp4 in its shard, int64 [B]."""
    length: np.ndarray
    """Bytes of the mp4, int64 [B]."""
    controls: np.ndarray | None
    """First byte of the control track in its shard and its number of bytes, int64 [B, 2]. None if it is not read."""
    landmarks: np.ndarray | None
    """First byte of the landmarks in their shard and their number of bytes, int64 [B, 2]. None if they are not read."""
    crc: list[tuple[bytes, ...]]
    """Checksums of the mp4, the control track and the landmarks of each clip, [B][3]. Empty if unknown."""
    wanted: np.ndarray
    """Frame numbers of the targets, and of the reference at the end, int64 [B, F + 1]."""
    measured: np.ndarray | None
    """Numbers of the frames with landmarks, in rising order, int64 [B, 8]. None if landmarks are not read."""
    order: np.ndarray | None
    """Positions in `measured`, int64 [B, 8], in the batch's order: the reference first. None if `measured` is None."""


class VideoReader:
    """Read pictures from videos. This is a `Reader` for `xactor_platform.data.stream.PlannedStream`.

    Args:
        index: a corpus of videos with square pictures.
        image_size: side in pixels that pictures are resized to.
        seed: decides which frames are drawn, together with the epoch and the sample.
        stills: function that takes the number of a global step, and returns the number of targets to draw for each
            sample, or None for all frames of the sample.
        tracks: read the control tracks too, if all samples have them, and then also the landmarks, if all have them.
    """

    def __init__(
        self,
        index: Index,
        *,
        image_size: int,
        seed: int,
        stills: Callable[[int], int | None],
        tracks: bool = False,
    ):
        if "mp4" not in index.offset:
            raise ValueError(f"{index.location.uri}: holds latents, not videos")
        self.index, self._image_size, self._seed, self._stills = index, image_size, seed, stills
        self.has_controls = tracks and index.having(CONTROLS) == index.samples
        self._has_landmarks = self.has_controls and index.having(LANDMARKS) == index.samples
        # A picture has 3 bytes per pixel. There are at most as many references as targets, hence the factor 2.
        self.bytes_per_frame = 2 * 3 * image_size**2
        self.read = partial(read_videos, index.location, image_size)

    def request(self, micro_batch: MicroBatch, *, step: int, epoch: int | str) -> VideoRequest:
        """Draw the frames of a micro-batch, and return what to decode."""
        rows = micro_batch.row
        keys, clips = self.index.key[rows].tolist(), self.index.frames[rows].tolist()
        starts, frames = micro_batch.start.tolist(), micro_batch.frames.tolist()
        measured = [landmark_frames(clip) for clip in clips] if self._has_landmarks else None
        draws = [
            draw_frames(
                (self._seed, epoch, key, start),
                start,
                count,
                clip,
                self._stills(step),
                None if measured is None else measured[number],
            )
            for number, (key, start, count, clip) in enumerate(zip(keys, starts, frames, clips, strict=True))
        ]
        shards = [] if micro_batch.is_filler else [self.index.shard_names[s] for s in self.index.shard[rows]]
        return VideoRequest(
            keys=keys,
            shards=shards,
            starts=micro_batch.start,
            frames=micro_batch.frames,
            offset=self.index.offset["mp4"][rows],
            length=self.index.length["mp4"][rows],
            controls=self._bytes_of(CONTROLS, rows) if self.has_controls else None,
            landmarks=self._bytes_of(LANDMARKS, rows) if self._has_landmarks else None,
            crc=[
                tuple(self.index.crc_of(name, row) for name in ("mp4", CONTROLS, LANDMARKS)) for row in rows
            ],
            wanted=np.stack(draws),
            measured=None if measured is None else np.stack(measured),
            order=None
            if measured is None
            else np.stack([_reference_first(m, draw[-1]) for m, draw in zip(measured, draws, strict=True)]),
        )

    def _bytes_of(self, member: str, rows: np.ndarray) -> np.ndarray:
        """Return the first byte of a member in its shard and its number of bytes, int64 [B, 2]."""
        return np.stack([self.index.offset[member][rows], self.index.length[member][rows]], axis=1)

    def batch(self, request: VideoRequest, raw: Raw) -> VideoBatch:
        """Turn the decoded pictures and tracks into a batch."""
        weight, bad = weigh_samples(request.keys, request.shards, raw)
        side = self._image_size
        # A copy, because arrays from Ray are read-only, and torch needs writable ones.
        pictures = raw.arrays["pictures"].reshape(*request.wanted.shape, side, side, 3).copy()
        controls = landmarks = landmark_controls = None
        if self.has_controls:
            shape = len(request.wanted), -1, CONTROL_COUNT
            # Rows of the targets, then of the reference, then of the frames with landmarks.
            rows = raw.arrays["controls"].view(np.float32).reshape(shape)
            targets = request.wanted.shape[1] - 1
            # Move the reference's row to the front.
            controls = np.roll(rows[:, : targets + 1], 1, axis=1)
            if self._has_landmarks:
                shape = len(request.wanted), LANDMARK_FRAMES, *MEAN_LANDMARKS.shape
                landmarks = raw.arrays["landmarks"].view(np.float32).reshape(shape).copy()
                landmark_controls = rows[:, targets + 1 :].copy()
        return VideoBatch(
            keys=request.keys,
            starts=request.starts,
            frames=request.frames,
            weight=weight,
            bad=bad,
            targets=pictures[:, :-1],
            references=pictures[:, -1],
            controls=controls,
            landmarks=landmarks,
            landmark_controls=landmark_controls,
        )


def draw_frames(
    key: tuple[str | int, ...],
    start: int,
    frames: int,
    clip_frames: int,
    stills: int | None,
    references: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the frames of a clip that are targets, and the frame that is their reference.

    The reference is at least a second away from all targets. If no frame is, the farthest frame becomes the reference.

    Args:
        key: key of the random generator. Equal keys give equal draws.
        start: first frame of the sample.
        frames: length of the sample.
        clip_frames: length of the clip.
        stills: number of targets. One is in the sample, the others are anywhere in its clip, because neighbouring
            frames teach little that is new. None takes all frames of the sample.
        references: frames of the clip that the reference is chosen from, in rising order. By default all frames.

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
    candidates = np.arange(clip_frames) if references is None else references
    # Distance of each candidate from the nearest target.
    distance = np.abs(candidates[:, None] - targets).min(axis=1)
    far = candidates[distance >= MIN_REFERENCE_DISTANCE]
    reference = far[draw(len(far))] if len(far) else [candidates[distance.argmax()]]
    return np.append(targets, reference)


def _reference_first(frames: np.ndarray, reference: int) -> np.ndarray:
    """Return the positions of `frames` in an order that puts the reference, one of them, first: int64 [len(frames)]."""
    order = np.arange(len(frames))
    place = int(np.flatnonzero(frames == reference)[0])
    order[[0, place]] = order[[place, 0]]
    return order


def read_videos(location: Location, image_size: int, requests: Sequence[VideoRequest]) -> list[Raw]:
    """Read and decode several micro-batches together.

    A sample whose video or tracks cannot be read or decoded is listed in `bad`. Its arrays are zero, except that its
    landmarks are those of an average face.

    Raises:
        StorageUnavailable: the storage fails. This makes no sample bad.
    """
    buffers = [np.zeros((*request.wanted.shape, image_size, image_size, 3), np.uint8) for request in requests]
    tracks = [_Tracks.empty(request) for request in requests]
    raws = [
        Raw({"pictures": buffer.reshape(-1), **track.arrays()}, [])
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
        # All samples of the clip have the same members, so the first sample tells where these are.
        number, place = clips[clip][0]
        first = requests[number]
        spans = [
            (0, 0) if member is None else member[place].tolist()
            for member in (first.controls, first.landmarks)
        ]

        def read() -> tuple[bytes, list[bytes]]:
            with location.open(shard) as file:
                return file.read_at(length, offset), [file.read_at(count, at) for at, count in spans]

        try:
            video, members = with_retries(read, f"{location.uri}/{shard}")
        except StorageUnavailable:
            # The storage failed, so the samples may be good.
            raise
        except OSError as error:
            return [(*sample, f"cannot be read: {error}") for sample in clips[clip]]
        if len(video) < length:
            reason = f"ends at byte {offset + len(video)}, the index says {offset + length}"
            return [(*sample, reason) for sample in clips[clip]]
        for name, data, crc in zip(
            ("mp4", CONTROLS, LANDMARKS), (video, *members), first.crc[place], strict=True
        ):
            if data and differs(data, crc):
                return [(*sample, f"{name} differs from its checksum") for sample in clips[clip]]
        problems = []
        for number, place in clips[clip]:
            # Decode each sample alone: whether it is bad must not depend on the samples that are read together with it.
            try:
                # A faulty member or video raises ValueError before anything is written.
                found = tracks[number].parse(requests[number], place, *members)
                _decode(video, requests[number].wanted[place], buffers[number][place])
                tracks[number].store(place, found)
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


@dataclass(frozen=True, eq=False)
class _Tracks:
    """Hold the controls and landmarks that are read for one micro-batch. None stands for data that is not read."""

    controls: np.ndarray | None
    """Controls of the F + 1 wanted frames, and of the 8 frames with landmarks if these are read, float32 [B, n, 57]."""
    landmarks: np.ndarray | None
    """Landmarks with the reference first, float32 [B, 8, K, 2]."""

    @classmethod
    def empty(cls, request: VideoRequest) -> "_Tracks":
        """Return tracks to be filled for a request. Until then the controls are 0 and the landmarks an average face's.

        A bad sample keeps these values.
        """
        controls = landmarks = None
        samples, rows = request.wanted.shape
        if request.measured is not None:
            landmarks = np.tile(MEAN_LANDMARKS, (*request.measured.shape, 1, 1))
            rows += request.measured.shape[1]
        if request.controls is not None:
            controls = np.zeros((samples, rows, CONTROL_COUNT), np.float32)
        return cls(controls=controls, landmarks=landmarks)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays for `Raw`."""
        found = {"controls": self.controls, "landmarks": self.landmarks}
        return {name: a.view(np.uint8).reshape(-1) for name, a in found.items() if a is not None}

    def parse(
        self, request: VideoRequest, place: int, controls: bytes, landmarks: bytes
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return one sample's controls and landmarks from the bytes of its members.

        Raises:
            ValueError: a member is faulty.
        """
        rows = points = None
        if self.controls is not None:
            wanted = request.wanted[place]
            if request.measured is not None and request.order is not None:
                wanted = np.concatenate([wanted, request.measured[place][request.order[place]]])
            track = read_numbers(CONTROLS, controls, (None, CONTROL_COUNT))
            if len(track) <= wanted.max():
                raise ValueError(
                    f"{CONTROLS} ends after {len(track)} frames, frame {wanted.max()} was requested"
                )
            rows = track[wanted]
        if request.order is not None:
            points = read_numbers(LANDMARKS, landmarks, (LANDMARK_FRAMES, *MEAN_LANDMARKS.shape))
            points = points[request.order[place]]
        return rows, points

    def store(self, place: int, found: tuple[np.ndarray | None, np.ndarray | None]) -> None:
        """Write the controls and landmarks that `parse` returned to the arrays."""
        for array, values in zip((self.controls, self.landmarks), found, strict=True):
            if array is not None:
                array[place] = values


def _decode(video: bytes, wanted: np.ndarray, buffer: np.ndarray) -> None:
    """Decode the wanted pictures into `buffer`, uint8 [F + 1, S, S, 3]. After a ValueError `buffer` is unchanged."""
    numbers = np.unique(wanted)
    pictures = np.stack([_fit(p, buffer.shape[1]) for p in pick_frames(video, numbers.tolist(), FPS)])
    buffer[:] = pictures[np.searchsorted(numbers, wanted)]


def _fit(picture: np.ndarray, image_size: int) -> np.ndarray:
    """Resize a square picture to the model's size. Average over areas if the picture becomes smaller."""
    height, width = picture.shape[:2]
    if height != width:
        raise ValueError(f"pictures must be square, got {width}x{height}")
    if height == image_size:
        return picture
    resampling = Image.Resampling.BOX if height > image_size else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((image_size, image_size), resampling))

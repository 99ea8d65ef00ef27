"""Dub footage: the whole path from a video and new speech to the dubbed video."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from av.video.frame import VideoFrame

from xactor.faces import CropBox
from xactor.footage.composite import add_change, dimmed, resampled
from xactor.footage.geometry import Geometry
from xactor.footage.lengths import Lengths
from xactor.footage.lips import Lips
from xactor.footage.mixing import at_times, latent_change, mixed, speech_motion
from xactor.footage.region import feather_px, outline, soft_mask
from xactor.footage.track import MAX_ANGLE, MIN_FACE_PX, FaceTrack, follow_face
from xactor.media import Sound, read_audio
from xactor.media.footage import Footage, copied, write_footage
from xactor.options import AnimateOptions, DubOptions
from xactor.pipeline import XActorPipeline
from xactor.provenance import ai_generated
from xactor.rates import SAMPLE_RATE_HZ
from xactor.render.frames import to_model

# Number of frames whose faces are moved together.
_BATCH = 8
# Maximum number of pixels of these crops, which bounds the memory, and of the side of a crop.
_BATCH_PIXELS, _MAX_PX = 2_000_000, 1024
# Root mean square below which sound is silence: -80 dB.
_SILENT = 1e-4


@dataclass(frozen=True, kw_only=True)
class Dubbing:
    """Describe a dubbed video."""

    frames: int
    """Number of frames."""
    changed: int
    """Number of frames whose face speaks anew."""
    shots: int
    """Number of shots."""
    notes: tuple[str, ...]
    """Remarks for the user, such as that no face was found."""


@torch.inference_mode()
def dub_footage(
    pipeline: XActorPipeline,
    video: str | Path,
    audio: str | Path,
    output: str | Path,
    options: DubOptions | None = None,
) -> Dubbing:
    """Write a copy of a video in which the main face speaks other words.

    Size, frame rate, time stamps, rotation and colour tags stay those of the video. Pixels outside a soft region around
    lips and jaw (with `acting` above 0, around the face) stay as they were decoded. Frames without a face, or with one
    that is too small or turned away, stay whole. The video is decoded twice and never held in memory.

    Args:
        pipeline: The model. It needs a guess network, and motion latents that are those of control tracks.
        video: The footage.
        audio: The new speech: audio or video in any format that PyAV reads. It replaces the footage's sound.
        output: The .mp4 to write. It appears only when it is complete, and says in its metadata that it is
            AI-generated.
        options: Acting, quality and lengths.

    Raises:
        ValueError: A file cannot be used, the model does not fit, or the lengths differ and the options refuse that.
    """
    options = options or DubOptions()
    footage, sound = Footage.of(video), Sound.of(audio)
    samples = read_audio(audio)
    if np.sqrt(np.mean(np.square(samples, dtype=np.float64))) < _SILENT:
        raise ValueError(f"{audio}: the sound is silent, so there is nothing to speak")
    if pipeline.unet.guess_network is None:
        raise ValueError(
            "footage can be dubbed only with a renderer that has a guess network, such as the model in the box"
        )
    track = follow_face(footage)
    notes = [f"{video}: {remark}" for remark in _remarks(footage, track)]
    speech_s = len(samples) / SAMPLE_RATE_HZ
    try:
        lengths = Lengths.of(speech_s, track.end_s, float(footage.usual_ticks * footage.time_base), options)
    except ValueError as error:
        raise ValueError(f"{audio}: {error}") from error
    if lengths.note:
        notes.append(f"{audio}: {lengths.note}")
    weights = track.weights(lengths.changes_end_s)
    motion = None
    if weights.any():
        config = AnimateOptions(quality=options.quality).with_recommended(pipeline.recommended).sampling()
        motion = speech_motion(pipeline, samples, seed=options.seed, config=config)
    dubber = _Dubber(pipeline, footage, track, weights, motion, options.acting)
    kept = islice(footage.frames(), int((track.times_s < lengths.picture_end_s).sum()))
    frames = dubber.frames(_with_held(kept, lengths.held, footage))
    sound = replace(sound, end_s=lengths.sound_end_s)
    written = write_footage(output, footage, frames, sound=sound, crf=options.crf, metadata=ai_generated())
    return Dubbing(frames=written, changed=dubber.changed, shots=len(track.shot_ranges()), notes=tuple(notes))


def _remarks(footage: Footage, track: FaceTrack) -> Iterator[str]:
    """Yield remarks for the user on a video."""
    if footage.pixel_format != footage.original_format:
        yield f"frames of the format {footage.original_format} are converted to {footage.pixel_format}"
    usable, count = int(track.usable.sum()), len(track.usable)
    if not track.found.any():
        yield "no face is found, so no frame is changed"
    elif usable < count:
        yield (
            f"{count - usable} of {count} frames are not changed: they show no face, a face under {MIN_FACE_PX} px or "
            f"one that is turned away by more than {MAX_ANGLE} degrees"
        )


def _with_held(frames: Iterator[VideoFrame], held: int, footage: Footage) -> Iterator[VideoFrame]:
    """Yield frames, and then the last one again `held` times."""
    last: VideoFrame | None = None
    for frame in frames:
        last = copied(frame) if held else None
        yield frame
    for number in range(1, held + 1):
        assert last is not None
        assert last.pts is not None
        again = copied(last)
        again.pts = last.pts + number * footage.usual_ticks
        again.duration = footage.usual_ticks
        yield again


class _Dubber:
    """Change the faces of a video's frames.

    Args:
        pipeline: The model.
        footage: The video.
        track: Its face.
        weights: How much of the new motion each frame shows, [T].
        motion: The new motion, [frames at 25 fps, 51]; None if no frame is changed.
        acting: See `mixed`.

    Attributes:
        changed: Number of frames that were changed so far.
    """

    def __init__(
        self,
        pipeline: XActorPipeline,
        footage: Footage,
        track: FaceTrack,
        weights: np.ndarray,
        motion: np.ndarray | None,
        acting: float,
    ):
        self.changed = 0
        self._network, self._device, self._dtype = (
            pipeline.unet.guess_network,
            pipeline.unet.device,
            pipeline.unet.dtype,
        )
        self._model_px = pipeline.renderer.model_size
        self._footage, self._geometry, self._converter = footage, Geometry.of(footage), footage.converter()
        self._track, self._weights, self._acting = track, weights, acting
        self._squares = track.squares()
        self._sizes = self._crop_sizes()
        if motion is not None:
            self._lips = Lips(self._network, track.points[track.usable], track.blendshapes[track.usable])
            self._motion = self._lips.fitted(motion)

    def frames(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """Yield each frame, changed or as it is. A frame past the end of the track has the track's last face."""
        last = len(self._track.times_s) - 1
        for batch in _batches(((frame, min(n, last)) for n, frame in enumerate(frames)), self._sizes):
            chosen = [i for i, (_, row) in enumerate(batch) if self._weights[row] > 0]
            done = [frame for frame, _ in batch]
            if chosen:
                for i, frame in zip(chosen, self._changed([batch[i] for i in chosen]), strict=True):
                    done[i] = frame
            self.changed += len(chosen)
            yield from done

    def _changed(self, batch: list[tuple[VideoFrame, int]]) -> Iterator[VideoFrame]:
        """Yield changed copies of frames of one shot, given with their rows in the track."""
        rows = np.array([row for _, row in batch])
        times = np.array([_time_s(frame) for frame, _ in batch])
        size = int(self._sizes[rows[0]])
        boxes = [_box(self._squares[row]) for row in rows]
        crops = np.stack(
            [box.cut(self._converter(frame), size) for box, (frame, _) in zip(boxes, batch, strict=True)]
        )
        corners = np.array([(box.left, box.top) for box in boxes])[:, None]  # [n, 1, 2]
        sides = np.array([box.side for box in boxes])[:, None, None]  # [n, 1, 1]
        landmarks = ((self._track.points[rows] - corners) * 2 / sides - 1).astype(np.float32)  # [n, K, 2]
        shown = self._track.blendshapes[rows]
        wanted = mixed(shown, at_times(self._motion, times), self._lips.rest, self._acting)
        change = self._lips.corrected(wanted - shown, landmarks, shown)
        z = latent_change(change * self._weights[rows, None])
        changes, moved = self._moved(crops, landmarks, z)
        moved = (moved + 1) * sides / 2 + corners  # in pixels of the picture
        for n, (frame, row) in enumerate(batch):
            ring = outline(self._track.points[row], moved[n], whole=self._acting > 0)
            yield self._pasted(frame, changes[n], boxes[n], ring)

    def _moved(
        self, crops: np.ndarray, landmarks: np.ndarray, z: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the changes of crops' colours, float32 [n, S, S, 3], and the landmarks after it, [n, K, 2].

        Args:
            crops: uint8 [n, S, S, 3].
            landmarks: Landmarks in the crops, [n, K, 2].
            z: Change of the motion latents, [n, D].
        """
        pictures = to_model(crops, self._device, self._dtype)
        places, change = torch.from_numpy(landmarks).to(self._device), torch.from_numpy(z).to(pictures)
        scale = crops.shape[1] // self._model_px
        moved = self._network(pictures, places, change, scale=scale)
        difference = ((moved - pictures).float().movedim(1, -1) * 127.5).cpu().numpy()
        return dimmed(difference, crops), self._network.moved(places, change).cpu().numpy()

    def _pasted(self, frame: VideoFrame, change: np.ndarray, box: CropBox, ring: np.ndarray) -> VideoFrame:
        """Return a copy of a frame to which a change of colours is added within an outline.

        Args:
            frame: The frame.
            change: Change of the colours in the box, [S, S, 3].
            box: Square of the upright picture.
            ring: Outline in pixels of the upright picture, [P, 2].
        """
        corners = np.array([(box.left, box.top), (box.left + box.side, box.top + box.side)])
        start, end = np.sort(self._geometry.in_frame(corners), axis=0)  # the box in the decoded frame
        ring = self._geometry.in_frame(ring)
        feather = feather_px(box.side)
        steps = np.array(self._footage.chroma_step)
        low = np.maximum(np.maximum(ring.min(axis=0) - 3 * feather, start), 0)
        high = np.minimum(ring.max(axis=0) + 3 * feather, end)
        high = np.minimum(high, (self._footage.width, self._footage.height))
        left, top = (np.ceil(low / steps) * steps).astype(int).tolist()
        right, bottom = (np.floor(high / steps) * steps).astype(int).tolist()
        if right - left < 8 or bottom - top < 8:
            return frame
        mask = soft_mask(ring, (left, top, right, bottom), feather)
        to_change = len(change) / (end - start)
        part = np.array([(left, top), (right, bottom)]) - start
        source = (part * to_change).clip(0, len(change)).ravel().tolist()
        colours = resampled(self._geometry.unturned(change), source, (right - left, bottom - top))
        result = copied(frame)
        add_change(result, colours, mask, (left, top), self._footage)
        return result

    def _crop_sizes(self) -> np.ndarray:
        """Return the side in pixels at which each frame's crop is rendered, int64 [T], one for each shot.

        It is a multiple of the side of the model's pictures, and if possible at least the side of the crop.
        """
        sizes = np.zeros(len(self._squares), np.int64)
        for start, end in self._track.shot_ranges():
            multiple = math.ceil(self._squares[start:end, 2].max() / self._model_px)
            sizes[start:end] = self._model_px * min(max(multiple, 1), _MAX_PX // self._model_px)
        return sizes


def _batches(
    items: Iterator[tuple[VideoFrame, int]], sizes: np.ndarray
) -> Iterator[list[tuple[VideoFrame, int]]]:
    """Yield lists of successive frames whose crops have one size, and few enough for a bounded memory."""
    batch: list[tuple[VideoFrame, int]] = []
    for frame, row in items:
        if batch:
            size = int(sizes[batch[0][1]])
            if size != sizes[row] or (len(batch) + 1) * size**2 > _BATCH_PIXELS or len(batch) >= _BATCH:
                yield batch
                batch = []
        batch.append((frame, row))
    if batch:
        yield batch


def _box(square: np.ndarray) -> CropBox:
    """Return the square with a given centre and side, [3]."""
    x, y, side = square.tolist()
    return CropBox(left=round(x - side / 2), top=round(y - side / 2), side=max(round(side), 1))


def _time_s(frame: VideoFrame) -> float:
    assert frame.time is not None
    return frame.time

"""Cut the square around the face out of a clip's frames, and apply the gates, which drop clips of bad quality.

The resulting mp4 has no sound: the `write` stage adds it after SyncNet has measured the sound's offset.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from xactor.controls import INDEX, lip_opening
from xactor.media import read_span
from xactor.rates import SAMPLES_PER_FRAME
from xactor_platform.curation.curation_config import Gates
from xactor_platform.curation.curation_stage import CurationStage
from xactor_platform.curation.measures import blur, face_thumbnail, occluded, speech_db
from xactor_platform.curation.messages import SPARE_FRAMES, Clip, Measures, Piece
from xactor_platform.curation.scan import SILENCE
from xactor_platform.curation.video_files import open_video
from xactor_platform.data.face_video import face_video

_MEASURE_EVERY_FRAMES = 5
# Largest side, in pixels, of the square in which blur is measured. A smaller square is not enlarged to this side,
# because an enlarged picture looks blurred.
_BLUR_PX = 256
# The face lies between these fractions of the square's side, both horizontally and vertically.
_FACE_RANGE = (1 / 5, 4 / 5)


class Cut(CurationStage):
    """Cut out the clips of a piece, a part of a video."""

    name = "cut"

    @staticmethod
    def make(*, gates: Gates, size_px: int) -> Callable[[Piece], list[Piece]]:
        def cut(piece: Piece) -> list[Piece]:
            clips = tuple(
                clip if clip.status != "kept" else cut_clip(piece, clip, gates, size_px)
                for clip in piece.clips
            )
            return [replace(piece, clips=clips)]

        return cut


def cut_clip(piece: Piece, clip: Clip, gates: Gates, size_px: int) -> Clip:
    """Return the clip with its mp4, or marked as dropped by the first gate that it does not pass.

    Gates that need no decoded pictures come first, because they are cheap.

    Args:
        piece: the clip's piece.
        clip: a clip with the square and the points of its face.
        gates: gates that the clip must pass.
        size_px: side of the frames of the mp4, in pixels.

    Raises:
        ValueError: the clip cannot be decoded.
    """
    assert clip.box is not None
    clip = _with_cheap_gates(piece, clip, gates)
    if clip.status != "kept":
        return clip
    measured = _MeasuredCrops()
    with open_video(piece.video.uri) as source:
        frames = read_span(source, clip.first, clip.end)
        # The empty array means no sound.
        mp4 = face_video(measured.crops(frames, clip, size_px), np.zeros(0, np.float32))
    if measured.count != clip.end - clip.first:
        raise ValueError(f"only {measured.count} of {clip.end - clip.first} frames can be decoded")
    assert clip.measures is not None
    measures = replace(clip.measures, blur=round(measured.blur, 4), occluded=round(measured.occluded, 4))
    clip = replace(clip, measures=measures)
    for name, value, bound in (
        ("blurred", measured.blur, gates.max_blur),
        ("occluded", measured.occluded, gates.max_occluded),
    ):
        if value > bound:
            return clip.dropped(name, f"{value:.2f}, at most {bound:g} is allowed")
    return replace(clip, mp4=mp4)


def _with_cheap_gates(piece: Piece, clip: Clip, gates: Gates) -> Clip:
    """Return the clip with the measures that need no decoded pictures, dropped if it does not pass their gates."""
    assert clip.box is not None
    assert clip.controls is not None
    yaw, roll = (
        round(float(np.degrees(np.median(np.abs(clip.controls[:, INDEX[name]])))), 1)
        for name in ("headYaw", "headRoll")
    )
    lips = round(float(lip_opening(clip.controls).std()), 4)
    samples = sound_of_clip(piece, clip)
    is_silent = max(samples.max(), -samples.min()) < SILENCE
    speech = 0.0 if is_silent else round(speech_db(samples, SAMPLES_PER_FRAME), 2)
    side, outside = clip.box.side, clip.outside
    clip = replace(
        clip,
        measures=Measures(crop_px=side, outside=outside, yaw=yaw, roll=roll, lips=lips, speech=speech),
    )
    if side < gates.min_crop_px:
        detail = f"the face's square is {side} px, at least {gates.min_crop_px} are needed"
        return clip.dropped("small_face", detail)
    if outside > gates.max_outside:
        detail = f"{outside:.0%} of the face's square lies outside the picture"
        return clip.dropped("cut_off", f"{detail}, at most {gates.max_outside:.0%} is allowed")
    for angle, how, bound in ((yaw, "turned to the side", gates.max_yaw), (roll, "tilted", gates.max_roll)):
        if angle > bound:
            detail = f"the head is {how} by {angle:.0f} degrees, at most {bound:g} are allowed"
            return clip.dropped("turned", detail)
    if is_silent:
        return clip.dropped("silent", f"no sample is louder than {SILENCE:g}")
    if lips < gates.min_lips:
        return clip.dropped("still", f"the lips move by {lips:.4f}, at least {gates.min_lips:g} is needed")
    if speech < gates.min_speech_db:
        detail = f"the sound's level ranges over {speech:.1f} dB, at least {gates.min_speech_db:g} are needed"
        return clip.dropped("no_speech", detail)
    return clip


def sound_of_clip(piece: Piece, clip: Clip, offset_frames: int = 0) -> np.ndarray:
    """Return a clip's sound at 16 kHz, which is 640 samples per frame, float32 [frames x 640].

    Args:
        piece: the clip's piece.
        clip: the clip.
        offset_frames: frames by which the sound is delayed. A negative number advances it.
    """
    # The piece's sound starts SPARE_FRAMES before its pictures.
    first = clip.first - piece.first + SPARE_FRAMES - offset_frames
    end = first + clip.end - clip.first
    return piece.samples[first * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME]


class _MeasuredCrops:
    """Measure the blur and the covers of a clip's face while its frames are cut.

    Attributes:
        count: number of frames cut so far.
    """

    def __init__(self):
        self.count = 0
        self._blurs: list[float] = []
        self._thumbnails: list[np.ndarray] = []

    @property
    def blur(self) -> float:
        """Return the median blur of the measured frames, 0 (sharp) to 1."""
        return float(np.median(self._blurs))

    @property
    def occluded(self) -> float:
        """Return the fraction of the measured frames in which something covers the face."""
        return occluded(np.stack(self._thumbnails))

    def crops(self, frames: Iterator[np.ndarray], clip: Clip, size_px: int) -> Iterator[np.ndarray]:
        """Yield the clip's square of each frame, uint8 [size_px, size_px, 3]. Measure every fifth square."""
        assert clip.box is not None
        assert clip.points is not None
        side = min(clip.box.side, _BLUR_PX)
        for frame in frames:
            crop = clip.box.cut(frame, size_px)
            if self.count % _MEASURE_EVERY_FRAMES == 0:
                blur_crop = crop if side == size_px else clip.box.cut(frame, side)
                face = slice(round(_FACE_RANGE[0] * side), round(_FACE_RANGE[1] * side))
                self._blurs.append(blur(blur_crop[face, face]))
                corner = (clip.box.left, clip.box.top)
                crop_points = (clip.points[self.count] - corner) * (size_px / clip.box.side)
                self._thumbnails.append(face_thumbnail(crop, crop_points))
            self.count += 1
            yield crop


@contextmanager
def as_file(mp4: bytes) -> Iterator[str]:
    """Write the content of an mp4 to a temporary file, yield the file's path, and delete the file afterwards."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(mp4)
        file.flush()
        yield file.name

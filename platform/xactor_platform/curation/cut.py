"""Clips to the squares around their faces, silent, and what the gates say of them."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from xactor.media import read_span
from xactor.rates import SAMPLES_PER_FRAME
from xactor_platform.curation.config import Gates
from xactor_platform.curation.files import open_video
from xactor_platform.curation.measures import blur, face_thumbnail, occluded, speech_db
from xactor_platform.curation.scan import SILENCE
from xactor_platform.curation.stage import Stage
from xactor_platform.curation.work import SPARE_FRAMES, Clip, Measures, Piece
from xactor_platform.data.face_video import face_video

_LOOK_EVERY = 5  # frames
_BLUR_PX = 256  # at most: what is enlarged is not blurred by that
_FACE = (1 / 5, 4 / 5)  # of a crop, both ways, is face


class Cut(Stage):
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
    """A clip with its mp4, or dropped by a gate; the cheap ones come first. ValueError: it cannot be decoded."""
    assert clip.box is not None
    measures = Measures(crop_px=clip.box.side)
    if clip.box.side < gates.least_crop_px:
        small = f"the face's square is {clip.box.side} px, at least {gates.least_crop_px} are needed"
        return replace(clip, measures=measures).dropped("small_face", small)
    samples = sound_of_clip(piece, clip)
    if max(samples.max(), -samples.min()) < SILENCE:
        return replace(clip, measures=measures).dropped("silent", f"no sample is louder than {SILENCE:g}")
    measures = replace(measures, speech=round(speech_db(samples, SAMPLES_PER_FRAME), 2))
    assert measures.speech is not None
    if measures.speech < gates.least_speech_db:
        steady = f"the sound comes and goes by {measures.speech:.1f} dB, at least {gates.least_speech_db:g} are needed"
        return replace(clip, measures=measures).dropped("no_speech", steady)
    seen = _Seen()
    with open_video(piece.video.uri) as source:
        frames = read_span(source, clip.first, clip.end)
        mp4 = face_video(seen.crops(frames, clip, size_px), np.zeros(0, np.float32))
    if seen.count != clip.end - clip.first:
        raise ValueError(f"{seen.count} of {clip.end - clip.first} frames can be decoded again")
    measures = replace(measures, blur=round(seen.blur, 4), occluded=round(seen.occluded, 4))
    clip = replace(clip, measures=measures)
    for name, value, most in (
        ("blurred", seen.blur, gates.most_blur),
        ("occluded", seen.occluded, gates.most_occluded),
    ):
        if value > most:
            return clip.dropped(name, f"{value:.2f}, at most {most:g} is taken")
    return replace(clip, mp4=mp4)


def sound_of_clip(piece: Piece, clip: Clip, offset_frames: int = 0) -> np.ndarray:
    """A clip's sound, delayed by so many frames: float32 [frames x 640]."""
    first = clip.first - piece.first + SPARE_FRAMES - offset_frames
    end = first + clip.end - clip.first
    return piece.samples[first * SAMPLES_PER_FRAME : end * SAMPLES_PER_FRAME]


class _Seen:
    """What is seen of a clip while its crops are cut.

    Attributes:
        count: of frames.
    """

    def __init__(self):
        self.count = 0
        self._blurs: list[float] = []
        self._thumbnails: list[np.ndarray] = []

    @property
    def blur(self) -> float:
        return float(np.median(self._blurs))

    @property
    def occluded(self) -> float:
        return occluded(np.stack(self._thumbnails))

    def crops(self, frames: Iterator[np.ndarray], clip: Clip, size_px: int) -> Iterator[np.ndarray]:
        assert clip.box is not None
        assert clip.points is not None
        side = min(clip.box.side, _BLUR_PX)
        for frame in frames:
            crop = clip.box.cut(frame, size_px)
            if self.count % _LOOK_EVERY == 0:
                small = crop if side == size_px else clip.box.cut(frame, side)
                face = slice(round(_FACE[0] * side), round(_FACE[1] * side))
                self._blurs.append(blur(small[face, face]))
                at = (clip.points[self.count] - (clip.box.left, clip.box.top)) * (size_px / clip.box.side)
                self._thumbnails.append(face_thumbnail(crop, at))
            self.count += 1
            yield crop


@contextmanager
def as_file(mp4: bytes) -> Iterator[str]:
    """A video's bytes as a file, for the block."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(mp4)
        file.flush()
        yield file.name

"""A video to pieces of one shot each and of a minute at most, with their sound."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xactor.media import TooLong, read_audio, read_span
from xactor.rates import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from xactor_platform.bulk.pool import Spent
from xactor_platform.curation.config import LONGEST_S, SHORTEST_S
from xactor_platform.curation.files import open_video
from xactor_platform.curation.parts import Parts
from xactor_platform.curation.shots import THUMBNAIL_PX, shot_starts
from xactor_platform.curation.stage import Bad, Stage
from xactor_platform.curation.work import SPARE_FRAMES, Clip, Ended, Piece, Probed, Segment

SILENCE = 1e-3  # no sample of a silent recording is louder
LEAST_FRAMES, MOST_FRAMES = round(SHORTEST_S * FPS), round(LONGEST_S * FPS)
_BREATH_FRAMES = 2 * FPS  # a long shot is parted where it is quietest within so much before a minute is full
Span = tuple[int, int]


class Scan(Stage):
    """Pieces that are finished already are passed on as such."""

    name = "scan"

    @staticmethod
    def make(*, most_s: float) -> Callable[[tuple[Probed, list[Span] | None]], tuple[list[Span], np.ndarray]]:
        def scan(work: tuple[Probed, list[Span] | None]) -> tuple[list[Span], np.ndarray]:
            probed, spans = work
            with open_video(probed.video.uri) as source:
                samples = sound_of(source, most_s)
                if spans is None:
                    spans = spans_of(source, samples, probed.video.segments, most_s)
            return spans, samples

        return scan

    def run(self, work: Probed) -> list[Any]:
        parts = Parts(self._output, work.video.key)
        spans = parts.spans()
        finished = {} if spans is None else {n: parts.finished(n) for n in range(len(spans))}
        if spans is not None and all(finished.values()):
            return [*finished.values()]
        return super().run((work, spans, finished))  # pyright: ignore

    def spent(self, work: Any) -> Spent:
        return work[0].spent

    def patience_s(self, work: Any) -> float:
        return super().patience_s(work[0])

    def refused(self, work: Any, reason: str, detail: str) -> Ended | Piece:
        return super().refused(work[0], reason, detail)

    def called(self, work: Any) -> list[Any]:
        probed, spans, finished = work
        found, samples = self.sandboxed((probed, spans), self.patience_s(work))
        if spans is None:
            Parts(self._output, probed.video.key).cut(found)
        return [finished.get(n) or piece for n, piece in enumerate(pieces_of(probed, found, samples))]


def sound_of(source: Any, most_s: float) -> np.ndarray:
    """Float32 [N] at 16 kHz. Raises Bad: `silent`, `too_long`; ValueError: it cannot be decoded."""
    try:
        samples = read_audio(source, SAMPLE_RATE_HZ, max_seconds=most_s)
    except TooLong as error:
        raise Bad("too_long", str(error)) from error
    if not len(samples) or max(samples.max(), -samples.min()) < SILENCE:
        raise Bad("silent", f"no sample is louder than {SILENCE:g}")
    return samples


def spans_of(source: Any, samples: np.ndarray, segments: Sequence[Segment], most_s: float) -> list[Span]:
    """The pieces of a video: its shots, within the segments if there are any, parted where they are too long.

    Raises Bad: `too_long`, `too_short`; ValueError: it cannot be decoded.
    """

    def thumbnails():
        for number, thumbnail in enumerate(read_span(source, longest_px=THUMBNAIL_PX)):
            if number > most_s * FPS:
                raise Bad("too_long", f"more than {most_s:.0f} s of pictures, the most that is taken")
            yield thumbnail

    starts, count = shot_starts(thumbnails())
    # Sound and pictures seldom end at the same moment: what both have is used.
    count = min(count, round(len(samples) / SAMPLES_PER_FRAME))
    shots = [(a, min(b, count)) for a, b in zip(starts, [*starts[1:], count], strict=True) if a < count]
    wanted = [(round(s.start_s * FPS), round(s.end_s * FPS)) for s in segments] or [(0, count)]
    heard = sound_between(samples, 0, count)  # it may end within the last frame
    loudness = np.square(heard.reshape(count, SAMPLES_PER_FRAME)).mean(axis=1)  # [count]
    spans = [
        piece
        for first, end in wanted
        for a, b in shots
        if max(a, first) < min(b, end)
        for piece in part(max(a, first), min(b, end), loudness)
    ]
    if not spans:
        raise Bad("too_short", f"{count / FPS:.2f} s of pictures with sound, none of it chosen")
    return spans


def part(first: int, end: int, loudness: np.ndarray) -> list[Span]:
    """A long shot in pieces of a minute at most, of like length, parted where it is quietest.

    Args:
        loudness: of each frame of the video.
    """
    pieces = []
    while end - first > MOST_FRAMES:
        left = -(-(end - first) // (MOST_FRAMES - _BREATH_FRAMES // 2))
        about = first + round((end - first) / left)
        low = max(about - _BREATH_FRAMES // 2, first + LEAST_FRAMES)
        high = min(about + _BREATH_FRAMES // 2, first + MOST_FRAMES)
        border = low + int(np.argmin(loudness[low:high]))
        pieces.append((first, border))
        first = border
    return [*pieces, (first, end)]


def pieces_of(probed: Probed, spans: list[Span], samples: np.ndarray) -> list[Piece]:
    """A video's pieces, with their sound."""
    return [_piece(probed, number, spans, samples) for number in range(len(spans))]


def _piece(probed: Probed, number: int, spans: list[Span], samples: np.ndarray) -> Piece:
    first, end = spans[number]
    heard = (0, len(samples) // SAMPLES_PER_FRAME)
    clips: tuple[Clip, ...] = ()
    if end - first < LEAST_FRAMES:
        short = f"a shot of {(end - first) / FPS:.2f} s, at least {SHORTEST_S:g} s are needed"
        clips = (Clip(first=first, end=end).dropped("too_short", short),)
    return Piece(
        video=probed.video,
        facts=probed.facts,
        number=number,
        of=len(spans),
        first=first,
        end=end,
        samples=sound_between(samples, first - SPARE_FRAMES, end + SPARE_FRAMES),
        heard=heard,
        clips=clips,
    )


def sound_between(samples: np.ndarray, first: int, end: int) -> np.ndarray:
    """The sound of frames first..end, silence where there is none: float32 [(end - first) x 640]."""
    sound = np.zeros((end - first) * SAMPLES_PER_FRAME, np.float32)
    inside = samples[max(first, 0) * SAMPLES_PER_FRAME : max(end, 0) * SAMPLES_PER_FRAME]
    at = max(-first, 0) * SAMPLES_PER_FRAME
    sound[at : at + len(inside)] = inside
    return sound

"""Cut a video into pieces of one shot and at most a minute each, with their sound."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from xactor.media import TooLong, read_audio, read_span
from xactor.media.container import Source
from xactor.rates import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from xactor_platform.bulk.message import Message
from xactor_platform.curation.curation_config import LONGEST_S, SHORTEST_S
from xactor_platform.curation.curation_stage import CurationStage, Unusable
from xactor_platform.curation.messages import SPARE_FRAMES, Clip, Piece, Probed, Segment
from xactor_platform.curation.shots import THUMBNAIL_PX, shot_starts
from xactor_platform.curation.video_files import open_video
from xactor_platform.curation.video_progress import VideoProgress

SILENCE = 1e-3
"""Amplitude that at least one sample must reach. A quieter recording counts as silent. Full scale is 1."""

# Lengths of the shortest clip and of the longest piece, in frames.
MIN_FRAMES, MAX_FRAMES = round(SHORTEST_S * FPS), round(LONGEST_S * FPS)
# A long shot is split at the quietest of this many frames around the planned border.
_BORDER_SEARCH_FRAMES = 2 * FPS
Span = tuple[int, int]
"""Frames of a piece: the first one, and the one after the last."""


class Scan(CurationStage):
    """Cut videos into pieces. If an earlier run finished a piece, pass on the saved result instead of the piece."""

    name = "scan"

    @staticmethod
    def make(*, max_s: float) -> Callable[[tuple[Probed, list[Span] | None]], tuple[list[Span], np.ndarray]]:
        def scan(argument: tuple[Probed, list[Span] | None]) -> tuple[list[Span], np.ndarray]:
            # The spans are None unless an earlier run saved them.
            probed, spans = argument
            with open_video(probed.video.uri) as source:
                samples = read_sound(source, max_s)
                if spans is None:
                    spans = spans_of(source, samples, probed.video.segments, max_s)
            return spans, samples

        return scan

    def work(self, message: Probed) -> Iterable[Message]:
        progress = VideoProgress(self._output, message.video.key)
        saved = progress.spans()
        finished = {} if saved is None else {n: progress.finished(n) for n in range(len(saved))}
        ended = [piece for piece in finished.values() if piece is not None]
        if saved is not None and len(ended) == len(saved):
            return ended
        spans, samples = self.call((message, saved), self.timeout_s(message))
        if saved is None:
            progress.save_spans(spans)
        return [finished.get(n) or piece for n, piece in enumerate(pieces_of(message, spans, samples))]


def read_sound(source: Source, max_s: float) -> np.ndarray:
    """Return a video's sound at 16 kHz, float32 [N].

    Raises:
        Unusable: the reason is `silent` or `too_long`.
        ValueError: the sound cannot be decoded.
    """
    try:
        samples = read_audio(source, SAMPLE_RATE_HZ, max_seconds=max_s)
    except TooLong as error:
        raise Unusable("too_long", str(error)) from error
    if not len(samples) or max(samples.max(), -samples.min()) < SILENCE:
        raise Unusable("silent", f"no sample is louder than {SILENCE:g}")
    return samples


def spans_of(source: Source, samples: np.ndarray, segments: Sequence[Segment], max_s: float) -> list[Span]:
    """Return the pieces of a video: the parts of its shots that lie in a segment, split where they are too long.

    Args:
        source: the video.
        samples: its sound, float32 [N].
        segments: parts that its dataset selects. Empty: all of the video.
        max_s: maximum length of the video's pictures in seconds.

    Raises:
        Unusable: the reason is `too_long` or `too_short`.
        ValueError: the pictures cannot be decoded.
    """

    def thumbnails():
        for number, thumbnail in enumerate(read_span(source, max_px=THUMBNAIL_PX)):
            if number > max_s * FPS:
                raise Unusable("too_long", f"more than {max_s:.0f} s of pictures, the bound (max_s)")
            yield thumbnail

    starts, count = shot_starts(thumbnails())
    # Sound and pictures seldom end together: use only the time that has both.
    count = min(count, round(len(samples) / SAMPLES_PER_FRAME))
    ends = [*starts[1:], count]
    shots = [(start, min(end, count)) for start, end in zip(starts, ends, strict=True) if start < count]
    wanted = [(round(s.start_s * FPS), round(s.end_s * FPS)) for s in segments] or [(0, count)]
    # The recording may end within the last frame. `sound_between` fills the rest of the frame with silence.
    heard = sound_between(samples, 0, count)
    loudness = np.square(heard.reshape(count, SAMPLES_PER_FRAME)).mean(axis=1)  # [count]
    spans: list[Span] = []
    for wanted_first, wanted_end in wanted:
        for shot_first, shot_end in shots:
            first, end = max(shot_first, wanted_first), min(shot_end, wanted_end)
            if first < end:
                spans += split_shot(first, end, loudness)
    if not spans:
        raise Unusable("too_short", f"{count / FPS:.2f} s of pictures with sound, none of it selected")
    return spans


def split_shot(first: int, end: int, loudness: np.ndarray) -> list[Span]:
    """Split a shot at quiet frames into pieces of similar length and at most a minute. Return the pieces in order.

    Args:
        first: first frame of the shot.
        end: frame after the shot's last one.
        loudness: mean power of the sound in each frame of the video, [frames].
    """
    pieces = []
    while end - first > MAX_FRAMES:
        # A border may lie half the search range later than planned, so planned pieces are shorter by that length.
        pieces_left = math.ceil((end - first) / (MAX_FRAMES - _BORDER_SEARCH_FRAMES // 2))
        planned = first + round((end - first) / pieces_left)
        low = max(planned - _BORDER_SEARCH_FRAMES // 2, first + MIN_FRAMES)
        high = min(planned + _BORDER_SEARCH_FRAMES // 2, first + MAX_FRAMES)
        border = low + int(np.argmin(loudness[low:high]))
        pieces.append((first, border))
        first = border
    return [*pieces, (first, end)]


def pieces_of(probed: Probed, spans: list[Span], samples: np.ndarray) -> list[Piece]:
    """Return a video's pieces with their sound.

    Args:
        probed: the video.
        spans: frames of each piece.
        samples: the video's sound, float32 [N].
    """
    return [_piece(probed, number, spans, samples) for number in range(len(spans))]


def _piece(probed: Probed, number: int, spans: list[Span], samples: np.ndarray) -> Piece:
    first, end = spans[number]
    clips: tuple[Clip, ...] = ()
    if end - first < MIN_FRAMES:
        detail = f"a shot of {(end - first) / FPS:.2f} s, at least {SHORTEST_S:g} s are needed"
        clips = (Clip(first=first, end=end).dropped("too_short", detail),)
    return Piece(
        video=probed.video,
        facts=probed.facts,
        number=number,
        of=len(spans),
        first=first,
        end=end,
        samples=sound_between(samples, first - SPARE_FRAMES, end + SPARE_FRAMES),
        heard=(0, len(samples) // SAMPLES_PER_FRAME),
        clips=clips,
    )


def sound_between(samples: np.ndarray, first: int, end: int) -> np.ndarray:
    """Return the sound from frame `first` up to frame `end`, 640 samples per frame, float32 [(end - first) x 640].

    Frames outside the recording are silent.
    """
    sound = np.zeros((end - first) * SAMPLES_PER_FRAME, np.float32)
    # `first` and `end` may lie outside the recording.
    inside = samples[max(first, 0) * SAMPLES_PER_FRAME : max(end, 0) * SAMPLES_PER_FRAME]
    at = max(-first, 0) * SAMPLES_PER_FRAME
    sound[at : at + len(inside)] = inside
    return sound

"""Cut a video into segments that different actors can render. The joined segments equal the video rendered as a whole.

The renderer denoises windows, groups of successive frames. Neighbouring windows overlap, and blend in the overlap.
"""

from dataclasses import dataclass

from xactor.render import RenderConfig, render_windows


@dataclass(frozen=True)
class Span:
    """Locate a segment and the latents that it is rendered from."""

    first: int
    """First frame of the segment."""
    end: int
    """Frame after the last one of the segment."""
    z_first: int
    """Frame of the first latent from which the segment is rendered."""
    z_end: int
    """Frame after the frame of the last such latent."""


def spans(frames: int, windows: int, config: RenderConfig) -> list[Span]:
    """Cut a video into segments, and return them in order.

    Two neighbouring segments both render the window at their border. Therefore the segments' frames equal the frames of
    the video rendered as a whole.

    Args:
        frames: number of frames of the video.
        windows: number of windows in a segment. The last segment may have up to one and a half times this number.
        config: sizes of the windows.
    """
    # Frames of a segment. A window starts every `stride` frames.
    size = windows * config.stride
    # A remainder of at most half a segment belongs to the segment before it.
    starts = [first for first in range(0, frames, size) if first == 0 or frames - first > size // 2]
    ends = [*starts[1:], frames]
    return [
        Span(
            first=first,
            end=end,
            # The window before the segment overlaps the segment's first frames.
            z_first=max(first - config.stride, 0),
            z_end=min(end + config.overlap_frames, frames),
        )
        for first, end in zip(starts, ends, strict=True)
    ]


def windows_of_span(span: Span, frames: int, config: RenderConfig) -> list[tuple[int, int]]:
    """Return those windows of the whole video that a segment is rendered from, as (first frame, frame after the last).

    Args:
        span: the segment.
        frames: number of frames of the whole video.
        config: sizes of the windows.
    """
    return [
        (first, end)
        for first, end in render_windows(frames, config)
        if first >= span.z_first and first < span.end
    ]

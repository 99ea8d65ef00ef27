"""Cut a video into segments that different actors can render. Joined, they equal the video rendered at once."""

from dataclasses import dataclass

from xactor.render import RenderConfig, render_windows


@dataclass(frozen=True)
class Span:
    """Locate a segment and the latents that it is rendered from."""

    first: int
    """First frame."""
    end: int
    """Frame after the last one."""
    z_first: int
    """Frame of the first latent that a window of the segment reads."""
    z_end: int
    """Frame after the last such latent."""


def spans(frames: int, windows: int, config: RenderConfig) -> list[Span]:
    """Cut a video into segments.

    Two neighbouring segments both render the window at their border, so that their frames equal those of the whole
    video.

    Args:
        frames: number of frames of the video.
        windows: number of windows in a segment. The last segment has at most one and a half times as many.
        config: sizes of the windows.
    """
    size = windows * config.stride
    # A remainder of at most half a segment belongs to the segment before it.
    starts = [first for first in range(0, frames, size) if first == 0 or frames - first > size // 2]
    ends = [*starts[1:], frames]
    return [
        Span(
            first=first,
            end=end,
            z_first=max(first - config.stride, 0),
            z_end=min(end + config.overlap_frames, frames),
        )
        for first, end in zip(starts, ends, strict=True)
    ]


def windows_of_span(span: Span, frames: int, config: RenderConfig) -> list[tuple[int, int]]:
    """Return the windows (first, end) of the whole video that a segment is rendered from."""
    return [
        (first, end)
        for first, end in render_windows(frames, config)
        if first >= span.z_first and first < span.end
    ]

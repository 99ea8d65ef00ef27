"""A video cut into pieces that can be rendered anywhere, and are the same as when it is rendered at once."""

from dataclasses import dataclass

from xactor.render import RenderConfig, render_windows


@dataclass(frozen=True)
class Span:
    """Frames first..end of a video; their windows' latents begin at frame `z_first` and end at `z_end`."""

    first: int
    end: int
    z_first: int
    z_end: int


def spans(frames: int, windows: int, config: RenderConfig) -> list[Span]:
    """A video's segments, of so many windows each; the last has up to half as many more.

    Neighbours share the window on their border, which both render: so each segment's frames are those of the whole.
    """
    size = windows * config.stride
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
    """Those of the whole video's windows (first, end) that a segment is made of."""
    return [
        (first, end)
        for first, end in render_windows(frames, config)
        if first >= span.z_first and first < span.end
    ]

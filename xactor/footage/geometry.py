"""Map places in upright pictures with square pixels to places in decoded frames."""

from dataclasses import dataclass

import numpy as np

from xactor.media.footage import Footage


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Describe how a video's decoded frames become upright pictures with square pixels."""

    width: int
    """Width of a decoded frame in pixels."""
    height: int
    """Height of a decoded frame in pixels."""
    stretched: int
    """Width of the frame with square pixels, before rotation."""
    turns: int
    """Number of quarter turns, counterclockwise, that make the frame upright."""

    @classmethod
    def of(cls, footage: Footage) -> "Geometry":
        """Return the geometry of a video."""
        return cls(
            width=footage.width,
            height=footage.height,
            stretched=round(footage.width * footage.converter().stretch),
            turns=round(footage.rotation / 90) % 4,
        )

    @property
    def picture_size(self) -> tuple[int, int]:
        """Return width and height of the upright pictures."""
        return (self.height, self.stretched) if self.turns % 2 else (self.stretched, self.height)

    def in_frame(self, points: np.ndarray) -> np.ndarray:
        """Return the places in the decoded frame of places (x, y) in the picture, [..., 2] in pixels each."""
        x, y = points[..., 0], points[..., 1]
        match self.turns:
            case 1:
                x, y = self.stretched - y, x
            case 2:
                x, y = self.stretched - x, self.height - y
            case 3:
                x, y = y, self.height - x
        return np.stack([x * self.width / self.stretched, y], axis=-1)

    def unturned(self, square: np.ndarray) -> np.ndarray:
        """Turn a square [S, S, ...] of the picture as the decoded frame is turned."""
        return np.ascontiguousarray(np.rot90(square, -self.turns))

"""Draw sheets of what a renderer makes of held-out clips."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

GAP = 2
"""White pixels between pictures."""


def draw_sheet(rows: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Return a PNG of rows of pictures uint8 [S, S, 3]."""
    side = rows[0][0].shape[0]
    step = side + GAP
    sheet = np.full((len(rows) * step - GAP, len(rows[0]) * step - GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet[y * step : y * step + side, x * step : x * step + side] = picture
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, format="PNG")
    return out.getvalue()

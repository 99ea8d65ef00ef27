"""Draw a sheet: one picture that shows rows of rendered and real pictures."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

GAP = 2
"""Width of the white gap between pictures, in pixels."""


def draw_sheet(rows: Sequence[Sequence[np.ndarray]]) -> bytes:
    """Return a PNG that shows rows of pictures, each uint8 [S, S, 3]. All rows have the same number of pictures."""
    side = rows[0][0].shape[0]
    spacing = side + GAP
    sheet = np.full((len(rows) * spacing - GAP, len(rows[0]) * spacing - GAP, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet[y * spacing : y * spacing + side, x * spacing : x * spacing + side] = picture
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, format="PNG")
    return out.getvalue()

"""Paint anti-aliased shapes, strokes, soft tints and smooth lines on a square canvas.

Coordinates run from -1 to 1 over the canvas, x to the right and y down. One canvas unit is half the canvas's side.
Colours are RGB in 0..255. Parts that do not move are painted at `FINE` times the canvas's resolution and reduced
afterwards.
"""

import cv2
import numpy as np

# Side of the canvas in pixels.
CANVAS_PX = 384
FINE = 2
# Fractional bits of a coordinate for OpenCV.
_SHIFT = 4


def px(value: float) -> float:
    """Convert a coordinate from -1..1 to pixels of the canvas."""
    return (value + 1) * (CANVAS_PX / 2)


def _fixed(points: np.ndarray, fine: float = 1, at: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Convert points in canvas coordinates to OpenCV's fixed-point pixel coordinates, int32 [n, 2].

    Args:
        points: [n, 2] in canvas coordinates.
        fine: see `fill`.
        at: see `fill`.
    """
    scale = CANVAS_PX * fine / 2 * (1 << _SHIFT)
    # OpenCV's integer coordinates are centres of pixels, hence the half pixel.
    fixed = points * scale + (scale - (1 << _SHIFT) / 2)
    if at != (0, 0):
        fixed -= (at[0] << _SHIFT, at[1] << _SHIFT)
    return np.rint(fixed).astype(np.int32)


def _colour(colour) -> tuple[float, float, float, float]:
    """Return an RGB colour with full opacity as four numbers, the form that OpenCV takes."""
    red, green, blue = (float(value) for value in colour)
    return red, green, blue, 255.0


def fill(picture, points, colour, at=(0, 0), alpha: float = 1.0, fine: int = 1) -> None:
    """Fill a polygon.

    Args:
        picture: uint8 [h, w, 3 or 4], painted in place.
        points: the outline, [n, 2] in canvas coordinates.
        colour: RGB.
        at: top left corner of `picture` on the canvas in pixels, for a picture that is a patch of the canvas.
        alpha: opacity, 0..1.
        fine: pixels of `picture` for each canvas pixel, in each direction.
    """

    def draw(target, shape):
        cv2.fillPoly(target, shape, _colour(colour), cv2.LINE_AA, _SHIFT)

    if alpha >= 1:
        draw(picture, [_fixed(points, fine, at)])
    else:
        _draw_transparent(picture, points, at, fine, margin=2, alpha=alpha, draw=draw)


def stroke(picture, points, colour, width: int, at=(0, 0), alpha: float = 1.0, fine: int = 1) -> None:
    """Draw an open line through points, `width` pixels wide. The other arguments are those of `fill`."""

    def draw(target, shape):
        cv2.polylines(target, shape, False, _colour(colour), width, cv2.LINE_AA, _SHIFT)

    if alpha >= 1:
        draw(picture, [_fixed(points, fine, at)])
    else:
        _draw_transparent(picture, points, at, fine, margin=width + 2, alpha=alpha, draw=draw)


def _draw_transparent(picture, points, at, fine, margin, alpha, draw) -> None:
    """Draw with transparency. Only the pixels around the points are copied and blended, for speed.

    Args:
        picture: see `fill`.
        points: see `fill`.
        at: see `fill`.
        fine: see `fill`.
        margin: pixels around the points that `draw` may touch.
        alpha: see `fill`.
        draw: function that draws shapes on a picture without transparency, called with the picture and the shapes.
    """
    pixels = (points + 1) * (CANVAS_PX * fine / 2) - np.asarray(at)
    low = np.maximum(pixels.min(axis=0).astype(int) - margin, 0)
    high = pixels.max(axis=0).astype(int) + margin + 1
    patch = picture[low[1] : high[1], low[0] : high[0]]
    if not patch.size:
        return
    over = patch.copy()
    draw(over, [_fixed(points, fine, (at[0] + low[0], at[1] + low[1]))])
    patch[...] = cv2.addWeighted(over, alpha, patch, 1 - alpha, 0)


def disc(picture, x: float, y: float, radius: float, colour, at=(0, 0)) -> None:
    """Fill a circle. See `fill`."""
    centre = _fixed(np.array([[x, y]]), 1, at).ravel()
    fixed_radius = round(radius * (CANVAS_PX / 2) * (1 << _SHIFT))
    cv2.circle(
        picture, (int(centre[0]), int(centre[1])), fixed_radius, _colour(colour), -1, cv2.LINE_AA, _SHIFT
    )


def cut(picture: np.ndarray, outline: np.ndarray) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """Cut out the patch of a picture around an outline.

    Args:
        picture: the canvas, uint8 [CANVAS_PX, CANVAS_PX, 3 or 4].
        outline: [n, 2] in canvas coordinates.

    Returns:
        The patch (a view of the picture), its top left corner in pixels, and the anti-aliased mask of the area inside
        the outline, uint8 [h, w].
    """
    pixels = (outline + 1) * (CANVAS_PX / 2)
    low = np.clip(pixels.min(axis=0).astype(int) - 3, 0, CANVAS_PX - 4)
    high = np.clip(pixels.max(axis=0).astype(int) + 4, low + 4, CANVAS_PX)
    patch = picture[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(patch.shape[:2], dtype=np.uint8)
    cv2.fillPoly(mask, [_fixed(outline, 1, (int(low[0]), int(low[1])))], 255, cv2.LINE_AA, _SHIFT)
    return patch, (int(low[0]), int(low[1])), mask


def blend(patch: np.ndarray, over: np.ndarray, mask: np.ndarray) -> None:
    """Paint `over` on a patch in place, weighted by a mask uint8 [h, w]."""
    weight = mask[..., None].astype(np.int32)
    # 127 makes the integer division round.
    patch[...] = (patch + ((over.astype(np.int32) - patch) * weight + 127) // 255).astype(np.uint8)


def tint(picture: np.ndarray, colour, strength: np.ndarray) -> None:
    """Move the colours of a picture towards `colour` in place.

    Args:
        picture: uint8 [H, W, 4]. Its alpha channel stays as it is, and transparent pixels are not tinted.
        colour: RGB, or a picture with one colour per pixel, [H, W, 3].
        strength: [H, W], from 0 (no change) to 1 (the new colour).
    """
    # Work only on the box in which the strength is visible.
    rows, columns = np.flatnonzero(strength.max(axis=1) > 2e-3), np.flatnonzero(strength.max(axis=0) > 2e-3)
    if not rows.size or not columns.size:
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    patch = picture[box]
    weight = np.clip(strength[box], 0, 1).astype(np.float32)[..., None] * (patch[..., 3:] / np.float32(255))
    target = np.asarray(colour, dtype=np.float32)
    target = target[box] if target.ndim == 3 else target
    patch[..., :3] = np.rint(patch[..., :3] * (1 - weight) + target * weight).astype(np.uint8)


def soft(outline: np.ndarray, blur: float) -> np.ndarray:
    """Return the area inside an outline as a blurred mask in 0..1, float32 [S, S] with S = FINE x CANVAS_PX.

    Args:
        outline: [n, 2] in canvas coordinates.
        blur: standard deviation of the Gaussian blur in canvas units. 0 does not blur.
    """
    size = CANVAS_PX * FINE
    # A mask with a wide blur has no fine detail, so it is made smaller and enlarged afterwards.
    coarse = 1 if blur < 0.015 else 4
    mask = np.zeros((size // coarse, size // coarse), dtype=np.uint8)
    cv2.fillPoly(mask, [_fixed(outline, FINE / coarse)], 255, cv2.LINE_AA, _SHIFT)
    inside = mask.astype(np.float32) / 255
    if blur:
        inside = cv2.GaussianBlur(inside, (0, 0), blur * size / coarse / 2)
    return inside if coarse == 1 else cv2.resize(inside, (size, size), interpolation=cv2.INTER_LINEAR)


def rgba(rgb: np.ndarray) -> np.ndarray:
    """Return a picture with an opaque alpha channel, uint8 [H, W, 4]."""
    alpha = np.full((*rgb.shape[:2], 1), 255, dtype=np.uint8)
    return np.ascontiguousarray(np.concatenate([np.clip(rgb, 0, 255).astype(np.uint8), alpha], axis=2))


def ellipse(x: float, y: float, radius_x: float, radius_y: float, power: float = 2.0) -> np.ndarray:
    """Return the outline of an ellipse [48, 2]. A `power` other than 2 gives a superellipse."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    round_x = np.sign(cos) * np.abs(cos) ** (2 / power)
    round_y = np.sign(sin) * np.abs(sin) ** (2 / power)
    return np.stack([x + radius_x * round_x, y + radius_y * round_y], axis=1)


def mirror(right_half: list[tuple[float, float]]) -> np.ndarray:
    """Return a closed, smooth outline that is symmetric about x = 0, [n, 2].

    Args:
        right_half: points (x, y) of the right half, from top to bottom. The first and the last one are at x = 0.
    """
    right = np.array(right_half)
    left = right[1:-1][::-1] * (-1, 1)
    return through(np.concatenate([right, left]), 10, closed=True)


def through(points: np.ndarray, steps: int, closed: bool = False) -> np.ndarray:
    """Return a smooth (Catmull-Rom) line through points [n, 2]. It takes `steps` steps from each point to the next."""
    # Each piece of the line also depends on a point before it and a point after it.
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (padded[i : len(padded) - 3 + i][:, None] for i in range(4))
    line = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    line = line.reshape(-1, 2)
    return line if closed else np.concatenate([line, points[-1:]])


def step(value: np.ndarray) -> np.ndarray:
    """Return a smooth step: 0 for values up to 0, 1 for values from 1 on."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)

"""Animate a real photograph: scikit-image's astronaut (Eileen Collins, NASA, public domain), warped by the controls.

Lids, lips and jaw move by warping the picture's own pixels: an upper lid slides down and stretches the skin above it,
and the lower lip and the chin move away from the upper lip. The gap between the lips is drawn. Then the pose turns the
head within its surroundings. Ours: all points below are pixels of the 512 px original, found by hand, and all factors
were chosen by eye.

Warps are inverse maps: they return, for each pixel of the result, the place in the photograph that it shows. `control`
holds a frame's controls by name.
"""

import cv2
import numpy as np

from xactor.controls import INDEX
from xactor_platform.demo_corpus.pose import PoseMap

# Left, top and side of the square of the photograph that is used. `xactor.faces.crop_box` finds this square.
_CROP = (135, 33, 180)
# Canvas pixels for each pixel of the photograph.
_ZOOM = 2.0

# For each eye, from left to right in the picture: x of five points, y of the upper lid's edge there, and of the lower.
_EYES = (
    (
        [195.3, 199.2, 204.3, 209.7, 213.6],
        [100.8, 98.2, 97.9, 100.1, 103.4],
        [100.8, 103.2, 104.3, 104.0, 103.4],
    ),
    (
        [236.4, 240.6, 246.2, 251.4, 255.3],
        [104.7, 101.7, 100.1, 101.0, 103.8],
        [104.7, 105.6, 106.5, 106.3, 103.8],
    ),
)
# For each brow, from left to right in the picture: x and y of four points.
_BROWS = (
    ([189.9, 198.7, 206.2, 216.3], [93.2, 89.7, 91.0, 95.0]),
    ([234.4, 245.0, 252.7, 261.6], [95.6, 92.7, 92.5, 96.9]),
)
# Columns from one corner of the mouth to the other. The edges at these columns are the upper lip's top and bottom, and
# the lower lip's top and bottom.
_LIPS_X = [202.6, 207.0, 213.0, 217.6, 223.2, 229.0, 233.6, 239.0, 244.2]
_LIP_EDGES = (
    [139.6, 138.4, 138.4, 138.7, 139.6, 139.0, 139.1, 139.3, 140.6],
    [139.9, 140.3, 141.4, 142.4, 143.2, 142.8, 142.2, 141.6, 141.0],
    [140.0, 143.2, 147.1, 148.4, 149.2, 148.9, 147.7, 144.9, 141.2],
    [140.4, 147.3, 152.2, 153.8, 154.7, 154.2, 152.6, 147.9, 141.6],
)
# Middle of the mouth, row of the chin, middle of the head, and its horizontal and vertical radius.
_MOUTH = (223.4, 143.0)
_CHIN_Y = 177.0
_FACE = (225.0, 122.0)
_RADII = (47.0, 62.0)


class PhotoFace:
    """Render the photographed person in frames of `size_px` x `size_px`."""

    def __init__(self, size_px: int = 256):
        try:
            from skimage.data import astronaut
        except ImportError as error:
            raise ValueError(
                "the photograph needs scikit-image: run pip install '.[demo]' in the checkout"
            ) from error
        left, top, side = _CROP
        crop = astronaut()[top : top + side, left : left + side]
        self._side = round(side * _ZOOM)
        self._canvas = cv2.resize(crop, (self._side, self._side), interpolation=cv2.INTER_CUBIC)
        self.size_px = size_px
        self._pose = PoseMap(
            centre=((_FACE[0] - left) / side * 2 - 1, (_FACE[1] - top) / side * 2 - 1),
            radii=(_RADII[0] / side * 2, _RADII[1] / side * 2),
            source_px=self._side,
            size_px=size_px,
            reach=2.1,
        )
        # Expressions warp only the box between brows and throat: rows 78 to 206 and columns 176 to 274.
        self._box = tuple(
            slice(round((first - origin) * _ZOOM), round((end - origin) * _ZOOM))
            for first, end, origin in ((78, 206, top), (176, 274, left))
        )
        rows, columns = np.mgrid[self._box].astype(np.float32)
        # Coordinates of these canvas pixels in the photograph.
        self._x, self._y = (columns + 0.5) / _ZOOM + left, (rows + 0.5) / _ZOOM + top
        # Rows of the box that eyes and mouth need, in canvas pixels.
        self._eye_rows, self._mouth_rows = (
            slice(round((first - 78) * _ZOOM), round((end - 78) * _ZOOM))
            for first, end in ((82, 114), (128, 206))
        )
        # Weights around the inner end of each brow, then around the outer end.
        self._brows = [
            [self._bump(xs[i], ys[i] - 1.5, 8.5, 6.5, below=2.6) for i in order]
            for xs, ys, order in ((*_BROWS[0], (3, 1)), (*_BROWS[1], (0, 2)))
        ]
        self._corners = [self._bump(_LIPS_X[i], _LIP_EDGES[1][i], 11, 11) for i in (0, -1)]
        self._mouth = self._bump(*_MOUTH, 24, 13)

    def render(self, controls: np.ndarray) -> np.ndarray:
        """Render one frame, uint8 [S, S, 3] RGB, from a row of the control track [57]."""
        control = {name: float(controls[i]) for name, i in INDEX.items()}
        x, y = self._move_brows_and_corners(control)
        eyes, mouth = self._eye_rows, self._mouth_rows
        x[eyes], y[eyes] = self._move_lids(x[eyes], y[eyes], control)
        y[mouth], hollow, seam = self._open_lips(x[mouth], y[mouth], control)
        left, top, _ = _CROP
        map_x, map_y = (x - left) * _ZOOM - 0.5, (y - top) * _ZOOM - 0.5
        moved = cv2.remap(self._canvas, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        face = self._canvas.copy()
        moved[mouth] = self._paint_mouth(moved[mouth], hollow, seam)
        face[self._box] = moved
        map_x, map_y = self._pose.maps(controls[INDEX["headPitch"] :])
        return cv2.remap(face, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    def _move_brows_and_corners(self, control: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Move the brows and the mouth's corners. Return the source x and y of each pixel, float32 [h, w] each."""
        x, y = self._x.copy(), self._y.copy()
        for who, (inner, outer) in zip(("Right", "Left"), self._brows, strict=True):
            down = control[f"browDown{who}"]
            inner_lift = 5.5 * control["browInnerUp"] - 4.0 * down
            outer_lift = 5.5 * control[f"browOuterUp{who}"] - 2.5 * down
            y += inner * inner_lift + outer * outer_lift
        # The mouth narrows towards its middle, or widens.
        narrow = 0.42 * control["mouthPucker"] + 0.3 * control["mouthFunnel"]
        x += self._mouth * (x - _MOUTH[0]) * narrow / (1 - min(narrow, 0.6))
        for who, corner, side in zip(("Right", "Left"), self._corners, (-1, 1), strict=True):
            smile, frown = control[f"mouthSmile{who}"], control[f"mouthFrown{who}"]
            stretch, dimple = control[f"mouthStretch{who}"], control[f"mouthDimple{who}"]
            x -= corner * side * (4.0 * smile + 5.0 * stretch + 2.0 * dimple)
            # The photograph smiles: at rest the mouth's corners are lowered a little.
            y += corner * (6.0 * smile - 6.0 * frown - 1.5)
        return x, y

    def _move_lids(
        self, x: np.ndarray, y: np.ndarray, control: dict[str, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move the upper lids over the eyes, and the eyes by glances. Return the source x and y of each pixel."""
        out_y, out_x = y.copy(), x.copy()
        for who, (xs, ups, lows) in zip(("Right", "Left"), _EYES, strict=True):
            inside = (x > xs[0]) & (x < xs[-1])
            up, low = np.interp(x, xs, ups), np.interp(x, xs, lows)
            t = (x - (xs[0] + xs[-1]) / 2) / ((xs[-1] - xs[0]) / 2)
            eye_blink, squint = control[f"eyeBlink{who}"], control[f"eyeSquint{who}"]
            blink = min(eye_blink + 0.3 * squint * (1 - eye_blink), 1.0)
            edge = up + blink * (low - up + 0.6) - 1.6 * control[f"eyeWide{who}"] * (1 - t**2)
            crease = up - 6.5
            lid = inside & (y > crease) & (y <= edge)
            stretched = crease + (y - crease) * (up - crease) / np.maximum(edge - crease, 0.5)
            out_y = np.where(lid, stretched, out_y)
            ball = inside & (y > edge) & (y < low)
            lifted = np.minimum(edge, up)
            out_y = np.where(
                ball & (edge < up), up + (y - lifted) * (low - up) / np.maximum(low - lifted, 0.5), out_y
            )
            # How far the eye looks to the right of the picture.
            right = (
                control["eyeLookOutLeft"] - control["eyeLookInLeft"]
                if who == "Left"
                else control["eyeLookInRight"] - control["eyeLookOutRight"]
            )
            out_x = np.where(ball, x - 3.2 * right * (1 - t**2), out_x)
        return out_x.astype(np.float32), out_y.astype(np.float32)

    def _open_lips(
        self, x: np.ndarray, y: np.ndarray, control: dict[str, float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Move the lips and the jaw.

        Returns:
            the source y of each pixel, the hollow of the mouth in 0..1, and the seam of closed lips in 0..1.
        """
        # Edges of the lips at each pixel's column: the upper lip's top and bottom, the lower lip's top and bottom.
        top_up, low_up, top_low, low_low = (
            np.interp(x, _LIPS_X, edge).astype(np.float32) for edge in _LIP_EDGES
        )
        t = np.clip((x - _LIPS_X[0]) / (_LIPS_X[-1] - _LIPS_X[0]), 0, 1)
        # Both are 0 at the corners and 1 in the middle.
        arch = 4 * t * (1 - t)
        full = np.sqrt(arch)
        press = (control["mouthPressLeft"] + control["mouthPressRight"]) / 2
        rise = full * (
            2.6 * (control["mouthUpperUpLeft"] + control["mouthUpperUpRight"]) / 2
            + 2.0 * control["mouthShrugUpper"]
        )
        gap = 25.0 * max(control["jawOpen"] - control["mouthClose"], 0) + 3.0 * control["mouthFunnel"]
        gap += 2.5 * (control["mouthLowerDownLeft"] + control["mouthLowerDownRight"]) / 2
        # At rest the lower lip covers the teeth that the photograph shows.
        lip = gap * (0.5 * full + 0.5 * arch) - (top_low - low_up)
        fold = 1 - 0.45 * control["mouthRollLower"] - 0.3 * press
        # 0 in the middle of the face, 1 at its sides, which the jaw does not pull down.
        aside = _step((abs(x - 222.0) - 22) / 24)
        drop = 18.0 * control["jawOpen"] * (1 - aside)
        # The lower face is stretched in three bands: the lip, from the lip to the chin, from the chin to the throat.
        # Their borders are a0, b0, c0 and d0 in the photograph, and a1, b1, c1 and d0 in the result.
        a0, b0 = top_low, low_low
        a1 = np.maximum(top_low + lip, low_up - rise)
        b1 = a1 + (low_low - top_low) * fold
        c0, d0 = np.maximum(b0 + 8, _CHIN_Y), 205.0
        c1 = np.maximum(c0 + drop, b1 + 4)
        below = np.where(
            y < b1,
            a0 + (y - a1) * (b0 - a0) / np.maximum(b1 - a1, 0.1),
            np.where(
                y < c1,
                b0 + (y - b1) * (c0 - b0) / (c1 - b1),
                np.maximum(c0 + (y - c1) * (d0 - c0) / np.maximum(d0 - c1, 4.0), y - drop),
            ),
        )
        below = np.where(y > d0, y, below)
        # The upper lip rises against the nose.
        nose = 132.0
        fold_up = rise + (low_up - top_up) * (0.4 * control["mouthRollUpper"] + 0.25 * press)
        above = np.where(
            (y > nose) & (y < low_up - rise),
            np.where(
                y < top_up - rise,
                nose + (y - nose) * (top_up - nose) / np.maximum(top_up - rise - nose, 1.0),
                low_up
                - (low_up - rise - y) * (low_up - top_up) / np.maximum(low_up - top_up - fold_up + rise, 0.5),
            ),
            y,
        )
        between = (y >= low_up - rise) & (y < a1)
        # The gap shows the photograph's teeth. They belong to the upper jaw, so the opening jaw does not move them.
        teeth = y + rise
        source = np.where(y >= a1, below, np.where(between, teeth, above))
        depth = (y - (low_up - rise)) - (top_low - low_up) * 0.9
        hollow = np.where(between, np.clip(depth / 1.2 + 0.5, 0, 1), 0) * np.clip((a1 - y) / 0.8 + 0.3, 0, 1)
        inside = (x > _LIPS_X[0]) & (x < _LIPS_X[-1])
        seam = np.exp(-(((y - a1) / 0.7) ** 2)) * inside * np.clip(arch * 3, 0, 1)
        return source.astype(np.float32), (hollow * inside).astype(np.float32), seam.astype(np.float32)

    def _paint_mouth(self, moved: np.ndarray, hollow: np.ndarray, seam: np.ndarray) -> np.ndarray:
        """Darken the hollow of the mouth, and draw a tongue at its bottom and the line between closed lips."""
        picture = moved.astype(np.float32)
        weight = hollow[..., None]
        rows, columns = self._y[self._mouth_rows], self._x[self._mouth_rows]
        low = np.where(hollow > 0.5, rows, 0).max()
        tongue = np.clip(1 - np.hypot((columns - _MOUTH[0]) / 13, (rows - low - 1) / 6.5), 0, 1) ** 0.7
        tongue = tongue[..., None].astype(np.float32)
        inside = np.array((44, 14, 16)) * (1 - tongue) + np.array((150, 70, 68)) * tongue
        picture = picture * (1 - weight) + inside * weight
        picture *= 1 - 0.5 * seam[..., None]
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)

    def _bump(self, x: float, y: float, wide: float, high: float, below: float | None = None) -> np.ndarray:
        """Return a weight [h, w] that is 1 at a point and fades around it.

        Args:
            x: column of the point in the photograph.
            y: row of the point in the photograph.
            wide: pixels within which it fades sideways.
            high: pixels within which it fades upwards.
            below: pixels within which it fades downwards. The default is `high`.
        """
        tall = np.where(self._y > y, below or high, high)
        return np.exp(-(((self._x - x) / wide) ** 2) - ((self._y - y) / tall) ** 2).astype(np.float32)


def _step(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)

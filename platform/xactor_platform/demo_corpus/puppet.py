"""Animate a still face (a photograph or a painting) by a control track. Such a face is called a puppet.

A control track describes the motion of a face by 57 named numbers per frame (`xactor.controls`). Lids, brows, lips and
jaw move by warping the picture's own pixels, and face landmarks give their places. An upper lid slides down and
stretches the skin above it, and the lower lip and the chin move away from the upper lip. The inside of the mouth is
painted. Then the pose turns the head in front of its background. Ours: all factors were chosen by eye.

Lengths are in units of the face: a face is 94 units wide. Warps are inverse maps: for each pixel of the result, they
return the place in the still whose colour the pixel shows. In the methods below, `control` holds a frame's controls by
name.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from xactor.controls import BLENDSHAPES, INDEX
from xactor.faces import Face
from xactor_platform.demo_corpus.pose import PoseMap

# Landmarks of MediaPipe's mesh, from left to right in the picture. "Right" is the person's right.
_UPPER_LIDS = {
    "Right": (33, 246, 161, 160, 159, 158, 157, 173, 133),
    "Left": (362, 398, 384, 385, 386, 387, 388, 466, 263),
}
_LOWER_LIDS = {
    "Right": (33, 7, 163, 144, 145, 153, 154, 155, 133),
    "Left": (362, 382, 381, 380, 374, 373, 390, 249, 263),
}
# Inner and outer end of each brow, each end as one point of the brow's upper edge and one of its lower edge.
_BROWS = {"Right": ((107, 55), (70, 46)), "Left": ((336, 285), (300, 276))}
_OUTER_UPPER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
_INNER_UPPER_LIP = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
_INNER_LOWER_LIP = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
_OUTER_LOWER_LIP = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
_NOSE, _CHIN, _CHEEKS, _FOREHEAD = 2, 152, (234, 454), 10
# Half the width of a face, in units.
_HALF_WIDTH = 47.0
# Controls of expressions that the still may already show. Their values in the still are subtracted from the values to
# show. Other expressions hardly occur in stills.
_RESTING = tuple(
    name for name in BLENDSHAPES if name.startswith(("mouthSmile", "eyeBlink", "eyeWide", "browInnerUp"))
)
# A still whose lips are at least this many units apart shows its own teeth.
_SHOWS_TEETH = 2.5
# Bounds that a still must meet: tilt and turn of the head to either side in radians, and opening of the mouth in units.
MAX_TILT, MAX_TURN, MAX_OPEN = 0.6, 0.4, 9.0


@dataclass(frozen=True)
class _Eye:
    """Hold the edges (y) of an eye's upper and lower lid at rest, at increasing columns `x`."""

    x: np.ndarray
    upper: np.ndarray
    lower: np.ndarray


class Puppet:
    """Animate a still face.

    Args:
        still: The picture, uint8 [H, H, 3] RGB, with one face that looks at the viewer.
        face: The face that the landmark model found in the picture.
        size_px: Side of the rendered frames in pixels.
        teeth: Brightness of the painted teeth, 0..1.

    Raises:
        ValueError: The still cannot be animated; the message says why.
    """

    def __init__(self, still: np.ndarray, face: Face, size_px: int = 256, *, teeth: float = 0.85):
        if still.shape[0] != still.shape[1]:
            raise ValueError(f"a still must be square, got {still.shape[1]}x{still.shape[0]}")
        turn = float(np.arctan2(face.matrix[0, 2], face.matrix[2, 2]))
        if abs(turn) > MAX_TURN:
            raise ValueError(
                f"the head must be turned by at most {np.degrees(MAX_TURN):.0f} degrees, "
                f"got {np.degrees(abs(turn)):.0f}"
            )
        self.size_px = size_px
        canvas, points = _upright(still, face.points[:, :2])
        side = len(canvas)
        left, right = (points[n] for n in _CHEEKS)
        # Length of a unit, in pixels of the still.
        self._unit = float(np.linalg.norm(right - left)) / 2 / _HALF_WIDTH
        self._canvas = canvas
        # The landmarks in units.
        p = points / self._unit
        self._rest = {
            name: float(face.blendshapes[n]) for n, name in enumerate(BLENDSHAPES) if name in _RESTING
        }
        centre = (p[_FOREHEAD] + p[_CHIN] + p[_CHEEKS[0]] + p[_CHEEKS[1]]) / 4
        height = (p[_CHIN][1] - p[_FOREHEAD][1]) / 2
        # Factor from units to the coordinates of `PoseMap`, which run from -1 to 1.
        scale = 2 * self._unit / side
        self._pose = PoseMap(
            centre=(float(centre[0] * scale - 1), float(centre[1] * scale - 1)),
            radii=(float(_HALF_WIDTH * scale), float(1.1 * height * scale)),
            source_px=side,
            size_px=size_px,
            reach=2.1,
        )
        self._set_features(p)
        # Expressions warp only the box around the face.
        top, bottom = p[_FOREHEAD][1] - 6, p[_CHIN][1] + 32
        self._box = tuple(
            slice(max(round(first * self._unit), 0), min(round(last * self._unit), side))
            for first, last in ((top, bottom), (p[_CHEEKS[0]][0] - 8, p[_CHEEKS[1]][0] + 8))
        )
        rows, columns = np.mgrid[self._box].astype(np.float32)
        # Coordinates of the box's pixels in units.
        self._x, self._y = (columns + 0.5) / self._unit, (rows + 0.5) / self._unit
        self._brow_weights = {
            who: [self._bump(x, y - 1.5, 8.5, 6.5, below=2.6) for x, y in ends]
            for who, ends in self._brows.items()
        }
        corner_y = self._lips[1]
        self._corner_weights = [self._bump(self._lips_x[i], corner_y[i], 11, 11) for i in (0, -1)]
        self._mouth_weight = self._bump(*self._mouth, 24, 13)
        self._tooth = teeth * np.array((238, 228, 212)) * self._light(p)

    def render(self, controls: np.ndarray) -> np.ndarray:
        """Render one frame, uint8 [S, S, 3] RGB, from a row of the control track [57]."""
        # Controls relative to the still's own expression. A resting expression is reduced by at most 0.2.
        control = {
            name: max(float(controls[i]) - self._rest.get(name, 0.0), -0.2 if name in self._rest else -np.inf)
            for name, i in INDEX.items()
        }
        x, y = self._move_brows_and_corners(control)
        x, y = self._move_lids(x, y, control)
        y, mouth = self._open_lips(x, y, control)
        map_x, map_y = x * self._unit - 0.5, y * self._unit - 0.5
        moved = cv2.remap(self._canvas, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        face = self._canvas.copy()
        face[self._box] = self._paint_mouth(moved, x, mouth)
        map_x, map_y = self._pose.maps(controls[INDEX["headPitch"] :])
        return cv2.remap(face, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    def _set_features(self, p: np.ndarray) -> None:
        """Store the places of eyes, brows and lips, given the landmarks in units, [478, 2]."""
        self._eyes = {}
        for who, upper in _UPPER_LIDS.items():
            up, low = p[list(upper)], p[list(_LOWER_LIDS[who])]
            x = np.linspace(up[0][0], up[-1][0], 12)
            self._eyes[who] = _Eye(x, np.interp(x, *_rising(up)), np.interp(x, *_rising(low)))
        self._brows = {who: [p[list(end)].mean(0) for end in ends] for who, ends in _BROWS.items()}
        outer = p[list(_OUTER_UPPER_LIP)]
        self._lips_x = np.linspace(outer[0][0], outer[-1][0], 15)
        # Edges of the lips at these columns: the upper lip's top and bottom, the lower lip's top and bottom.
        ends = outer[[0, -1]]
        inner = [
            np.concatenate([ends[:1], p[list(edge)], ends[1:]])
            for edge in (_INNER_UPPER_LIP, _INNER_LOWER_LIP)
        ]
        edges = (outer, inner[0], inner[1], p[list(_OUTER_LOWER_LIP)])
        heights = np.stack([np.interp(self._lips_x, *_rising(edge)) for edge in edges])
        # Landmarks may cross where lips are closed.
        self._lips = np.maximum.accumulate(heights, axis=0)
        mouth = (p[13] + p[14]) / 2
        self._mouth = (float(mouth[0]), float(mouth[1]))
        self._gap = float((self._lips[2] - self._lips[1]).max())
        if self._gap > MAX_OPEN:
            raise ValueError(
                f"the mouth must be open by at most {MAX_OPEN:g} units (a face is 94 units wide), got {self._gap:.0f}"
            )
        self._nose_y, self._chin_y = float(p[_NOSE][1]), float(p[_CHIN][1])

    def _light(self, p: np.ndarray) -> np.ndarray:
        """Return the light on the skin below the mouth, RGB [3] in about 0..1: it also falls on the teeth."""
        x, y = (int(v * self._unit) for v in (self._mouth[0], (self._lips[3].max() + self._chin_y) / 2))
        reach = max(int(6 * self._unit), 1)
        skin = self._canvas[max(y - reach, 0) : y + reach, max(x - reach, 0) : x + reach]
        if not skin.size:
            return np.full(3, 0.9)
        colour = skin.reshape(-1, 3).mean(0) / 255
        # Skin itself is reddish. Division by the colour of typical skin leaves the colour of the light.
        cast = colour / colour.max() / np.array((1.0, 0.78, 0.66))
        return np.clip(0.45 + 0.65 * colour.max(), 0.4, 1.0) * np.clip(cast / cast.max(), 0.6, 1.0)

    def _move_brows_and_corners(self, control: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        """Move the brows and the mouth's corners. Return the source x and y of each pixel, float32 [h, w] each."""
        x, y = self._x.copy(), self._y.copy()
        for who, (inner, outer) in self._brow_weights.items():
            down = control[f"browDown{who}"]
            inner_lift = 5.5 * control["browInnerUp"] - 4.0 * down
            outer_lift = 5.5 * control[f"browOuterUp{who}"] - 2.5 * down
            y += inner * inner_lift + outer * outer_lift
        # The mouth narrows towards its middle.
        narrow = 0.42 * control["mouthPucker"] + 0.3 * control["mouthFunnel"]
        x += self._mouth_weight * (x - self._mouth[0]) * narrow / (1 - min(narrow, 0.6))
        for who, corner, side in zip(("Right", "Left"), self._corner_weights, (-1, 1), strict=True):
            smile, frown = control[f"mouthSmile{who}"], control[f"mouthFrown{who}"]
            stretch, dimple = control[f"mouthStretch{who}"], control[f"mouthDimple{who}"]
            x -= corner * side * (4.0 * smile + 5.0 * stretch + 2.0 * dimple)
            y += corner * (6.0 * smile - 6.0 * frown)
        return x.astype(np.float32), y.astype(np.float32)

    def _move_lids(
        self, x: np.ndarray, y: np.ndarray, control: dict[str, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move the upper lids over the eyes, and turn the eyes sideways by the eyeLook controls.

        Return the source x and y of each pixel.

        `x` and `y` are the source places after earlier warps, [h, w] each.
        """
        out_y, out_x = y.copy(), x.copy()
        for who, eye in self._eyes.items():
            inside = (x > eye.x[0]) & (x < eye.x[-1])
            # Heights (y) of the resting lids' edges. `edge` is the moved edge of the upper lid, and above `crease` the
            # skin does not move.
            up, low = np.interp(x, eye.x, eye.upper), np.interp(x, eye.x, eye.lower)
            t = (x - (eye.x[0] + eye.x[-1]) / 2) / ((eye.x[-1] - eye.x[0]) / 2)
            eye_blink, squint = max(control[f"eyeBlink{who}"], 0.0), control[f"eyeSquint{who}"]
            blink = min(eye_blink + 0.3 * squint * (1 - eye_blink), 1.0)
            edge = up + blink * (low - up + 0.6) - 1.6 * max(control[f"eyeWide{who}"], 0.0) * (1 - t**2)
            crease = up - 6.5
            lid = inside & (y > crease) & (y <= edge)
            stretched = crease + (y - crease) * (up - crease) / np.maximum(edge - crease, 0.5)
            out_y = np.where(lid, stretched, out_y)
            # If the lid is lifted above its resting edge, the eyeball is stretched upwards to fill the place.
            ball = inside & (y > edge) & (y < low)
            lifted = np.minimum(edge, up)
            out_y = np.where(
                ball & (edge < up), up + (y - lifted) * (low - up) / np.maximum(low - lifted, 0.5), out_y
            )
            # Turn of the eye to the right of the picture, -1 to 1.
            right = (
                control["eyeLookOutLeft"] - control["eyeLookInLeft"]
                if who == "Left"
                else control["eyeLookInRight"] - control["eyeLookOutRight"]
            )
            out_x = np.where(ball, x - 3.2 * right * np.clip(1 - t**2, 0, 1), out_x)
        return out_x.astype(np.float32), out_y.astype(np.float32)

    def _open_lips(
        self, x: np.ndarray, y: np.ndarray, control: dict[str, float]
    ) -> tuple[np.ndarray, "_Mouth"]:
        """Move the lips and the jaw. Return the source y of each pixel, and the opening between the lips.

        `x` and `y` are the source places after earlier warps, [h, w] each.
        """
        # Heights (y) in the still: top and bottom of the upper lip, top and bottom of the lower lip.
        top_up, low_up, top_low, low_low = (np.interp(x, self._lips_x, edge) for edge in self._lips)
        t = np.clip((x - self._lips_x[0]) / (self._lips_x[-1] - self._lips_x[0]), 0, 1)
        # Both are 0 at the corners and 1 in the middle.
        arch = 4 * t * (1 - t)
        full = np.sqrt(arch)
        press = (control["mouthPressLeft"] + control["mouthPressRight"]) / 2
        upper_up = (control["mouthUpperUpLeft"] + control["mouthUpperUpRight"]) / 2
        rise = full * (2.6 * upper_up + 2.0 * control["mouthShrugUpper"])
        gap = 25.0 * max(control["jawOpen"] - control["mouthClose"], 0) + 3.0 * control["mouthFunnel"]
        gap += 2.5 * (control["mouthLowerDownLeft"] + control["mouthLowerDownRight"]) / 2
        # Distance by which the lower lip moves down. It is negative if the still's lips are apart and the mouth must
        # close: the lower lip then closes the gap.
        lip = gap * (0.5 * full + 0.5 * arch) - (top_low - low_up)
        fold = 1 - 0.45 * control["mouthRollLower"] - 0.3 * press
        # 0 in the middle of the face, 1 at its sides, which the jaw does not pull down.
        aside = _step((abs(x - self._mouth[0]) - 22) / 24)
        drop = 18.0 * control["jawOpen"] * (1 - aside)
        # The lower face is stretched in three bands: the lip, from the lip to the chin, from the chin to the throat.
        # Their borders are a0, b0, c0 and d0 in the still, and a1, b1, c1 and d0 in the result.
        a0, b0 = top_low, low_low
        a1 = np.maximum(top_low + lip, low_up - rise)
        b1 = a1 + (low_low - top_low) * fold
        c0, d0 = np.maximum(b0 + 8, self._chin_y), self._chin_y + 28
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
        # The upper lip rises towards the nose.
        nose = np.minimum(self._nose_y, top_up - 2)
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
        # The gap shows the still's own teeth, if it has any. They rise with the upper lip. The jaw does not move them.
        source = np.where(y >= a1, below, np.where(between, y + rise, above))
        inside = (x > self._lips_x[0]) & (x < self._lips_x[-1])
        # Part of the opening that shows the still's own teeth, which must not be painted over.
        own = (top_low - low_up) * 0.9 if self._gap >= _SHOWS_TEETH else 0.0
        depth = y - (low_up - rise)
        # Next to the lips, the painted inside fades out, so that the lips' edges are soft.
        hollow = np.where(between & inside, np.clip((depth - own) / 1.2 + 0.5, 0, 1), 0)
        hollow *= np.clip((a1 - y) / 0.8 + 0.3, 0, 1)
        seam = np.exp(-(((y - a1) / 0.7) ** 2)) * inside * np.clip(arch * 3, 0, 1)
        return source.astype(np.float32), _Mouth(depth, np.maximum(a1 - y, 0), hollow, seam * (gap < 3))

    def _paint_mouth(self, moved: np.ndarray, x: np.ndarray, mouth: "_Mouth") -> np.ndarray:
        """Paint the inside of the mouth: the upper teeth under the lip, the tongue low, the rest dark."""
        weight = mouth.hollow[..., None]
        if not weight.any():
            return _rounded(moved * (1 - 0.35 * mouth.seam[..., None]))
        half = (self._lips_x[-1] - self._lips_x[0]) / 2
        across = (x - self._mouth[0]) / half
        inside = np.full((*x.shape, 3), (44.0, 14.0, 16.0))
        tongue = np.clip(1 - np.hypot(across / 0.6, mouth.above_lip / 9), 0, 1) ** 0.7
        inside += tongue[..., None] * (np.array((150.0, 70.0, 68.0)) - inside)
        if self._gap < _SHOWS_TEETH:
            # The lower edge of the teeth curves up at the sides, where the cheeks also shade the teeth.
            length = 5.5 * (1 - 0.5 * across**2)
            tooth = np.clip((length - mouth.depth) / 0.9, 0, 1) * np.clip(1.25 - across**2 * 1.7, 0, 1)
            # Thin dark lines separate the teeth, which are 5.2 units wide.
            lines = 1 - 0.10 * np.exp(-((((x - self._mouth[0] + 2.6) % 5.2 - 2.6) / 0.35) ** 2))
            shade = 0.8 + 0.2 * np.clip(mouth.depth / 2.5, 0, 1)
            inside += tooth[..., None] * (self._tooth * (lines * shade)[..., None] - inside)
        picture = moved * (1 - weight) + inside * weight
        return _rounded(picture * (1 - 0.35 * mouth.seam[..., None]))

    def _bump(self, x: float, y: float, wide: float, high: float, below: float | None = None) -> np.ndarray:
        """Return a weight [h, w] that is 1 at a point and fades around it.

        Args:
            x: column of the point.
            y: row of the point.
            wide: number of units within which the weight fades sideways.
            high: number of units within which the weight fades upwards.
            below: number of units within which the weight fades downwards. The default is `high`.
        """
        tall = np.where(self._y > y, below or high, high)
        return np.exp(-(((self._x - x) / wide) ** 2) - ((self._y - y) / tall) ** 2).astype(np.float32)


@dataclass(frozen=True)
class _Mouth:
    """Describe the opening between the lips at each pixel, [h, w] each, lengths in units."""

    depth: np.ndarray
    """Distance below the upper lip's edge."""
    above_lip: np.ndarray
    """Distance above the lower lip's edge."""
    hollow: np.ndarray
    """Opacity of the painted inside of the mouth, 0..1."""
    seam: np.ndarray
    """Strength of the dark line between closed lips, 0..1."""


def _upright(still: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn a still so that its eyes are level. Return the picture and the landmarks in it."""
    right, left = (points[list(_UPPER_LIDS[who])].mean(0) for who in ("Right", "Left"))
    tilt = float(np.arctan2(*(left - right)[::-1]))
    if abs(tilt) > MAX_TILT:
        raise ValueError(
            f"the head must be tilted by at most {np.degrees(MAX_TILT):.0f} degrees, got {np.degrees(abs(tilt)):.0f}"
        )
    turn = cv2.getRotationMatrix2D(tuple(map(float, points.mean(0))), float(np.degrees(tilt)), 1.0)
    side = len(still)
    turned = cv2.warpAffine(still, turn, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return turned, points @ turn[:, :2].T + turn[:, 2]


def _rising(edge: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of an edge's points [n, 2], sorted by x."""
    order = np.argsort(edge[:, 0])
    return edge[order, 0], edge[order, 1]


def _rounded(picture: np.ndarray) -> np.ndarray:
    """Return a picture of floats as uint8."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _step(value: np.ndarray) -> np.ndarray:
    """Return a smooth step: 0 for values up to 0, 1 for values from 1 on."""
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)

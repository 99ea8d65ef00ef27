"""Portraits drawn from a seed, that act: skin, hair, eyes, shape and dress vary, the controls move them.

A head is painted once on a canvas (skin with light and shade, nose, ears, hair). For each frame the jaw stretches
it, eyes, brows and mouth are drawn on it as smooth shapes, and the pose turns the whole before a still background.
Coordinates run from -1 to 1 over the canvas, x right and y down.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from xactor.controls import INDEX
from xactor_platform.corpus.pose import PoseMap

_CANVAS = 448
_FINE = 2  # the still parts are painted this much finer, then reduced
_SHIFT = 4  # fractional bits of a coordinate for OpenCV

_SKINS = ((247, 216, 190), (236, 190, 158), (214, 160, 122), (177, 120, 84), (132, 86, 60), (98, 62, 45))
_HAIRS = (
    (35, 26, 24),
    (74, 46, 30),
    (120, 74, 40),
    (176, 130, 72),
    (150, 60, 34),
    (150, 150, 156),
    (24, 24, 34),
)
_IRISES = ((86, 54, 30), (62, 92, 60), (70, 112, 150), (110, 100, 60), (54, 44, 40), (90, 120, 120))
_CLOTHES = ((52, 76, 110), (140, 52, 58), (60, 104, 84), (90, 70, 120), (190, 150, 70), (44, 48, 56))
_WALLS = (
    (206, 214, 220),
    (222, 206, 190),
    (190, 206, 196),
    (214, 198, 212),
    (176, 192, 214),
    (228, 220, 200),
)
_STYLES = ("short", "long", "bun", "curly", "bob", "bald")


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What makes one drawn person different from another. Colours are RGB, lengths in canvas units."""

    skin: np.ndarray
    hair: np.ndarray
    iris: np.ndarray
    clothes: np.ndarray
    wall: np.ndarray
    lips: np.ndarray
    style: str
    face_width: float
    chin: float
    jaw: float
    eye_gap: float
    eye_size: float
    brow_weight: float
    nose: float
    mouth_width: float
    lip_fullness: float
    glasses: bool
    beard: float
    freckles: bool


def draw_looks(seed: int) -> Looks:
    """The looks that belong to a seed. Neighbouring seeds differ in style, skin and hair for sure."""
    rng = np.random.Generator(np.random.PCG64([seed, 404]))

    def pick(colours, offset: int) -> np.ndarray:
        base = np.array(colours[(seed * 5 + offset) % len(colours)], dtype=np.float64)
        return np.clip(base + rng.normal(0, 5, 3), 0, 255)

    style = _STYLES[seed % len(_STYLES)]
    skin = pick(_SKINS, int(rng.integers(2)))
    bearded = style in ("short", "bald", "curly") and rng.uniform() < 0.6
    lips = np.clip(skin * (0.80, 0.55, 0.55) + (18, 6, 12), 0, 255)
    return Looks(
        skin=skin,
        hair=pick(_HAIRS, seed // 3),
        iris=pick(_IRISES, seed // 2),
        clothes=pick(_CLOTHES, seed // 4),
        wall=pick(_WALLS, seed // 5 + 2),
        lips=lips if bearded else np.clip(lips + (14, -6, 2), 0, 255),
        style=style,
        face_width=rng.uniform(0.42, 0.47),
        chin=rng.uniform(0.62, 0.68),
        jaw=rng.uniform(0.62, 0.82),
        eye_gap=rng.uniform(0.185, 0.205),
        eye_size=rng.uniform(0.098, 0.112),
        brow_weight=rng.uniform(0.8, 1.35),
        nose=rng.uniform(0.85, 1.15),
        mouth_width=rng.uniform(0.165, 0.195),
        lip_fullness=rng.uniform(0.85, 1.25),
        glasses=bool(rng.uniform() < 0.25),
        beard=rng.uniform(0.35, 0.8) if bearded else 0.0,
        freckles=bool(rng.uniform() < 0.3),
    )


_EYES_Y, _BROWS_Y, _NOSE_Y, _MOUTH_Y = -0.06, -0.215, 0.17, 0.355


_VIEW = (0.0, 0.06, 0.8)  # what of the canvas is shown: its middle and half its side


class DrawnFace:
    """A drawn person, rendered at `size_px` square."""

    def __init__(self, seed: int, size_px: int = 256):
        self.looks = draw_looks(seed)
        self.size_px = size_px
        self._rng = np.random.Generator(np.random.PCG64([seed, 405]))
        side = _CANVAS * _FINE / 2
        left, top = (round((at + 1 - _VIEW[2]) * side) for at in _VIEW[:2])
        wall = self._paint_wall()[
            top : top + round(2 * _VIEW[2] * side), left : left + round(2 * _VIEW[2] * side)
        ]
        self._wall = cv2.resize(wall, (size_px, size_px), interpolation=cv2.INTER_AREA)
        self._head = self._paint_head()  # uint8 [K, K, 4], colour times alpha
        self._pose = PoseMap(
            centre=(0, 0.05), radii=(0.46, 0.62), source_px=_CANVAS, size_px=size_px, reach=None, view=_VIEW
        )
        # Rows that the opening jaw pulls down: from the lips to a little below the chin, over the face's width.
        self._jaw_top = int(_px(0.14))
        rows, columns = np.mgrid[self._jaw_top : _CANVAS, 0:_CANVAS].astype(np.float32)
        x, y = (columns + 0.5) / (_CANVAS / 2) - 1, (rows + 0.5) / (_CANVAS / 2) - 1
        pull = _step((y - 0.2) / (self.looks.chin - 0.2)) * (1 - _step((abs(x) - 0.36) / 0.24))
        self._rows, self._columns, self._pull = rows - self._jaw_top, columns, pull * (_CANVAS / 2)

    def render(self, controls: np.ndarray) -> np.ndarray:
        """One frame, uint8 [S, S, 3] RGB, from a row of the control track [57]."""
        c = {name: float(controls[i]) for name, i in INDEX.items()}
        head = self._head.copy()
        self._stretch_jaw(head, c)
        self._draw_mouth(head, c)
        for side in (-1, 1):
            self._draw_eye(head, c, side)
            self._draw_brow(head, c, side)
        if self.looks.glasses:
            self._draw_glasses(head)
        where = self._pose.map(controls[INDEX["headPitch"] :])
        turned = cv2.remap(head, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        through = cv2.cvtColor(255 - turned[..., 3], cv2.COLOR_GRAY2RGB)
        return cv2.add(
            cv2.cvtColor(turned, cv2.COLOR_RGBA2RGB), cv2.multiply(self._wall, through, scale=1 / 255)
        )

    # The moving parts.

    def _stretch_jaw(self, head: np.ndarray, c: dict[str, float]) -> None:
        drop = 0.17 * c["jawOpen"]
        if drop < 1e-3:
            return
        below = np.ascontiguousarray(head[self._jaw_top :])
        head[self._jaw_top :] = cv2.remap(
            below,
            self._columns,
            self._rows - drop * self._pull,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def _draw_mouth(self, head: np.ndarray, c: dict[str, float]) -> None:
        k = self.looks
        left, right = (  # as seen in the picture, the person's right is at the left
            {
                n: c[f"mouth{n}{s}"]
                for n in ("Smile", "Frown", "Stretch", "Dimple", "Press", "UpperUp", "LowerDown")
            }
            for s in ("Right", "Left")
        )
        both = {n: (left[n] + right[n]) / 2 for n in left}
        round_, funnel = c["mouthPucker"], c["mouthFunnel"]
        gap = max(0.33 * (c["jawOpen"] - c["mouthClose"]) + 0.05 * funnel - 0.03 * both["Press"], 0.0)
        rise = 0.035 * both["UpperUp"] + 0.02 * c["mouthShrugUpper"] + 0.015 * funnel
        full = k.lip_fullness
        upper = (
            full
            * 0.042
            * (1 - 0.7 * c["mouthRollUpper"] - 0.35 * both["Press"] - 0.2 * both["Smile"] + 0.35 * round_)
        )
        lower = (
            full
            * 0.055
            * (1 - 0.6 * c["mouthRollLower"] - 0.35 * both["Press"] - 0.2 * both["Smile"] + 0.3 * round_)
        )
        middle = 0.03 * (c["mouthLeft"] - c["mouthRight"]) + 0.04 * (c["jawLeft"] - c["jawRight"])
        ends = []
        for side, m in ((-1, left), (1, right)):
            wide = (
                1
                + 0.24 * m["Stretch"]
                + 0.26 * m["Smile"]
                + 0.12 * m["Dimple"]
                - 0.42 * round_
                - 0.28 * funnel
            )
            sink = -0.085 * m["Smile"] + 0.075 * m["Frown"] + 0.3 * gap + 0.01 * m["Stretch"]
            ends.append((middle + side * k.mouth_width * max(wide, 0.35), _MOUTH_Y + sink))
        (ax, ay), (bx, by) = ends
        t = np.linspace(0, 1, 25)
        x = ax + (bx - ax) * t
        base = ay + (by - ay) * t
        arch = 1 - (2 * t - 1) ** 2  # 0 at the corners, 1 in the middle
        flat = np.sqrt(arch)
        bow = 0.35 * np.exp(-(((t - 0.5) / 0.07) ** 2)) * 0.03  # the dent of the upper lip
        line = _MOUTH_Y + 0.01 * both["Smile"] - rise
        inner_up = base + (line - base) * flat**0.9
        inner_low = base + (line + gap + 0.03 * both["LowerDown"] + rise * 0.3 - base) * (
            0.55 * flat + 0.45 * arch
        )
        inner_low = np.maximum(inner_low, inner_up)
        outer_up = (
            inner_up
            - (upper * (0.25 + 0.75 * arch) * np.minimum(8 * t * (1 - t) * 2, 1))
            + bow * (upper / 0.04)
        )
        outer_low = inner_low + lower * arch**0.7
        # A soft shadow under the lower lip, and creases beside a smile.
        self._shade(head, np.stack([x, outer_low + 0.028], 1)[5:20], 0.16, 5)
        for side, m, (ex, ey) in ((-1, left, ends[0]), (1, right, ends[1])):
            if m["Smile"] > 0.05:
                bend = np.array(
                    [
                        [ex + side * 0.035, ey + 0.05],
                        [ex + side * 0.07, ey - 0.04],
                        [side * 0.13, _NOSE_Y + 0.03],
                    ]
                )
                self._shade(head, _through(bend, 12), min(0.5 * m["Smile"], 0.3), 4)
        opened = np.concatenate([np.stack([x, inner_up], 1), np.stack([x, inner_low], 1)[::-1]])
        whole = np.concatenate([np.stack([x, outer_up], 1), np.stack([x, outer_low], 1)[::-1]])
        lips = k.lips
        _fill(head, whole, lips)
        under = np.stack([x, inner_low], 1)[::-1]
        _fill(head, np.concatenate([np.stack([x, outer_low], 1), under]), np.clip(lips * 1.1 + 6, 0, 255))
        glow_y = inner_low + (outer_low - inner_low) * 0.45
        _stroke(head, np.stack([x, glow_y], 1)[9:16], np.clip(lips * 1.18 + 16, 0, 255), 2)
        if (inner_low - inner_up).max() > 0.006:
            self._draw_inside(head, opened, x, inner_up, inner_low, gap, c)
        else:
            _stroke(head, np.stack([x, (inner_up + inner_low) / 2], 1), lips * 0.5, 2)

    def _draw_inside(self, head, opened, x, inner_up, inner_low, gap, c) -> None:
        patch, box, mask = _cut(head, opened)
        inside = patch.copy()
        inside[..., :3] = (58, 18, 22)
        at = (box[0], box[1])
        middle = float(x.mean())
        tongue_y = float(inner_low.max())
        radius = (x[-1] - x[0]) * 0.34
        tongue = _ellipse(middle, tongue_y + 0.015 - 0.02 * c["mouthPucker"], radius, 0.045 + 0.18 * gap)
        _fill(inside, tongue, (172, 82, 84), at)
        height = 0.05 + 0.012 * c["mouthSmileLeft"]
        teeth = np.concatenate(
            [np.stack([x, inner_up - 0.01], 1), np.stack([x, inner_up + height * 0.9], 1)[::-1]]
        )[2:-2]
        _fill(inside, teeth, (238, 234, 226), at)
        if gap > 0.1:
            low = np.concatenate(
                [np.stack([x, inner_low - 0.022], 1), np.stack([x, inner_low + 0.02], 1)[::-1]]
            )[6:-6]
            _fill(inside, low, (205, 198, 190), at)
        _stroke(inside, np.stack([x, inner_up + 0.004], 1), (70, 24, 28), 2, at)
        _blend(patch, inside, mask)

    def _draw_eye(self, head: np.ndarray, c: dict[str, float], side: int) -> None:
        k = self.looks
        who = "Right" if side < 0 else "Left"
        blink = min(c[f"eyeBlink{who}"], 1.0)
        cheek = c[f"cheekSquint{who}"]
        squint = c[f"eyeSquint{who}"]
        look_x = (
            c["eyeLookOutLeft"] - c["eyeLookInLeft"]
            if side > 0
            else c["eyeLookInRight"] - c["eyeLookOutRight"]
        )
        look_y = c[f"eyeLookDown{who}"] - c[f"eyeLookUp{who}"]
        cx, cy, w = side * k.eye_gap, _EYES_Y, k.eye_size
        lid_full = 0.056 * (1 + 0.5 * c[f"eyeWide{who}"] - 0.12 * look_y * (look_y > 0))
        low_full = 0.036 * (1 - 0.45 * cheek - 0.35 * squint)
        t = np.linspace(-1, 1, 21)
        x = cx + w * t
        tilt = -0.012 * side * t  # outer corners a little higher
        closed = cy + 0.022 * (1 - t**2) + tilt
        top = cy + tilt - lid_full * (1 - np.abs(t + side * 0.12) ** 2.2).clip(0) ** 0.8
        bottom = cy + tilt + low_full * (1 - t**2) ** 0.9
        upper = top + (closed - top) * blink
        lower = bottom + (closed - bottom) * blink * 0.9
        lower = np.maximum(lower, upper)
        if blink < 0.93:
            patch, box, mask = _cut(
                head, np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])
            )
            eye = patch.copy()
            eye[..., :3] = (240, 238, 236)
            at = (box[0], box[1])
            ix, iy = cx + 0.038 * look_x, cy - 0.008 + 0.026 * look_y
            _disc(eye, ix, iy, 0.052, k.iris * 0.55, at)
            _disc(eye, ix, iy, 0.046, k.iris, at)
            _disc(eye, ix, iy + 0.012, 0.03, np.clip(k.iris * 1.3 + 18, 0, 255), at)
            _disc(eye, ix, iy, 0.022, (14, 12, 14), at)
            _disc(eye, ix - 0.017, iy - 0.018, 0.0105, (255, 255, 255), at)
            # The lid's shadow on the eyeball.
            _fill(eye, np.concatenate([np.stack([x, upper - 0.01], 1), np.stack([x, upper + 0.013], 1)[::-1]]),
                  np.array((150, 140, 142)), at, 0.5)  # fmt: skip
            _blend(patch, eye, mask)
        dark = np.clip(k.hair * 0.25, 0, 50)
        lash = 0.011 + 0.006 * blink
        wing = np.stack([x, upper], 1)
        outer = wing[-1] if side > 0 else wing[0]
        body = np.concatenate([wing, np.stack([x, upper - lash * (1.15 - t**2)], 1)[::-1]])
        _fill(head, body, dark)
        _stroke(head, np.stack([outer, outer + (side * 0.02, -0.012)]), dark, 2)
        _stroke(head, np.stack([x, lower], 1)[4:-4], k.skin * 0.62, 1)
        crease = np.stack([x, top - 0.03 + 0.03 * blink + 0.012 * squint], 1)[3:-3]
        _stroke(head, crease, k.skin * 0.72, 2)
        if cheek > 0.05 or squint > 0.3:
            self._shade(head, np.stack([x, lower + 0.03], 1)[5:-5], min(0.3 * cheek + 0.1 * squint, 0.25), 4)

    def _draw_brow(self, head: np.ndarray, c: dict[str, float], side: int) -> None:
        k = self.looks
        who = "Right" if side < 0 else "Left"
        inner = -0.085 * c["browInnerUp"] + 0.06 * c[f"browDown{who}"]
        outer = -0.085 * c[f"browOuterUp{who}"] + 0.035 * c[f"browDown{who}"]
        pinch = 0.03 * c[f"browDown{who}"]
        points = np.array([
            (side * (k.eye_gap - 0.105 - pinch), _BROWS_Y + 0.03 + inner),
            (side * (k.eye_gap - 0.02), _BROWS_Y - 0.002 + 0.55 * inner + 0.45 * outer),
            (side * (k.eye_gap + 0.07), _BROWS_Y - 0.006 + 0.1 * inner + 0.95 * outer),
            (side * (k.eye_gap + 0.135), _BROWS_Y + 0.04 + 0.75 * outer),
        ])  # fmt: skip
        spine = _through(points, 16)
        t = np.linspace(0, 1, len(spine))
        half = 0.021 * k.brow_weight * (0.55 + 0.9 * t) * (1 - t**3.5) + 0.002
        hair = k.hair * 0.75 if k.hair.mean() > 110 else np.clip(k.hair * 0.8 + 4, 0, 255)
        shape = np.concatenate(
            [spine - np.stack([0 * t, half], 1), (spine + np.stack([0 * t, half * 0.8], 1))[::-1]]
        )
        _fill(head, shape, hair, alpha=0.9)

    def _draw_glasses(self, head: np.ndarray) -> None:
        k = self.looks
        for side in (-1, 1):
            ring = _ellipse(side * k.eye_gap, _EYES_Y + 0.015, 0.15, 0.125, power=2.8)
            _stroke(head, np.concatenate([ring, ring[:1]]), (44, 38, 40), 4)
            temple = np.array(
                [(side * (k.eye_gap + 0.148), _EYES_Y - 0.01), (side * k.face_width, _EYES_Y - 0.03)]
            )
            _stroke(head, temple, (44, 38, 40), 4)
        _stroke(
            head,
            np.array([(-k.eye_gap + 0.15, _EYES_Y), (0, _EYES_Y - 0.02), (k.eye_gap - 0.15, _EYES_Y)]),
            (44, 38, 40),
            4,
        )

    def _shade(self, head: np.ndarray, line: np.ndarray, depth: float, width: int) -> None:
        _stroke(head, line, self.looks.skin * (0.62, 0.52, 0.5), width, alpha=depth)

    # The still parts, painted once.

    def _paint_wall(self) -> np.ndarray:
        k = self.looks
        size = _CANVAS * _FINE
        y, x = np.mgrid[0:size, 0:size] / (size / 2) - 1
        light = 1.06 - 0.22 * np.hypot(x + 0.5, y + 0.7) / 1.6
        picture = _rgba(k.wall[None, None] * light[..., None])
        # Shoulders, a collar and the neck in front of the wall: they stay while the head moves.
        body = _mirror(
            [(0.0, 0.86), (0.2, 0.85), (0.36, 0.9), (0.68, 0.98), (0.95, 1.1), (1.0, 1.4), (0.0, 1.4)]
        )
        _fill(picture, body, k.clothes, fine=_FINE)
        neck = _mirror([(0.0, 0.2), (0.2, 0.3), (0.205, 0.62), (0.24, 0.84), (0.12, 0.95), (0.0, 0.99)])
        _fill(picture, neck, k.skin * (0.84, 0.78, 0.76), fine=_FINE)
        shadow = _soft(_ellipse(0, k.chin - 0.02, 0.33, 0.17), 0.05)
        _tint(picture, k.skin * (0.55, 0.45, 0.43), 0.6 * shadow * _soft(neck, 0.01))
        for side in (-1, 1):
            lapel = np.array([(side * 0.2, 0.84), (side * 0.3, 0.87), (side * 0.12, 1.2), (0, 1.02)])
            _fill(picture, lapel, np.clip(k.clothes * 0.78, 0, 255), fine=_FINE)
        return picture[..., :3]

    def _paint_head(self) -> np.ndarray:
        k = self.looks
        size = _CANVAS * _FINE
        head = np.zeros((size, size, 4), dtype=np.uint8)
        self._paint_hair_behind(head)
        for side in (-1, 1):
            ear = _ellipse(side * (k.face_width + 0.015), 0.03, 0.06, 0.115)
            _fill(head, ear, k.skin * (0.93, 0.86, 0.84), fine=_FINE)
            _fill(
                head,
                _ellipse(side * (k.face_width + 0.02), 0.03, 0.03, 0.07),
                k.skin * (0.78, 0.66, 0.63),
                fine=_FINE,
            )
        w, jaw, chin = k.face_width, k.jaw, k.chin
        face = _mirror([
            (0.0, -0.62), (0.6 * w, -0.57), (0.95 * w, -0.33), (w, -0.02), (0.96 * w, 0.22),
            (jaw * w * 1.04, chin - 0.2), (0.55 * jaw * w, chin - 0.045), (0.0, chin),
        ])  # fmt: skip
        _fill(head, face, k.skin, fine=_FINE)
        inside = _soft(face, 0.0)
        dark, light = k.skin * (0.66, 0.54, 0.52), np.clip(k.skin * 1.1 + 14, 0, 255)

        def tint(shape: np.ndarray, colour, strength: float, blur: float) -> None:
            _tint(head, colour, strength * inside * _soft(shape, blur))

        # Light from the upper left: the face's right and lower edge turn away from it.
        _tint(head, dark, 0.5 * inside * (1 - _soft(face + (-0.035, -0.03), 0.09)))
        tint(_ellipse(-0.06, -0.36, 0.24, 0.14), light, 0.5, 0.1)
        for side in (-1, 1):
            tint(_ellipse(side * 0.24, 0.16, 0.1, 0.075), k.skin * (1.0, 0.74, 0.72), 0.5, 0.07)
            tint(_ellipse(side * 0.22 - 0.03, 0.1, 0.07, 0.04), light, 0.4, 0.05)
            tint(_ellipse(side * k.eye_gap, _EYES_Y - 0.03, 0.125, 0.085), dark, 0.3, 0.05)
        # The nose: a lit bridge, a shaded side, wings and nostrils.
        n = k.nose
        tint(_ellipse(-0.012, 0.04, 0.026, 0.17), light, 0.55, 0.03)
        tint(_ellipse(0.05 * n, 0.06, 0.02, 0.15), dark, 0.45, 0.03)
        tint(_ellipse(0, _NOSE_Y + 0.045, 0.085 * n, 0.022), dark, 0.6, 0.022)
        tint(_ellipse(-0.012, _NOSE_Y - 0.015, 0.04 * n, 0.034), light, 0.5, 0.025)
        for side in (-1, 1):
            wing = _through(
                np.array(
                    [
                        (side * 0.05 * n, _NOSE_Y - 0.035),
                        (side * 0.083 * n, _NOSE_Y + 0.01),
                        (side * 0.055 * n, _NOSE_Y + 0.035),
                    ]
                ),
                14,
            )
            _stroke(head, wing, dark, 4, alpha=0.7, fine=_FINE)
            tint(_ellipse(side * 0.034 * n, _NOSE_Y + 0.03, 0.02 * n, 0.0095), dark * 0.45, 0.9, 0.007)
        tint(_ellipse(0, 0.275, 0.018, 0.04), dark, 0.35, 0.02)  # the dent above the lips
        tint(_ellipse(0, chin - 0.07, 0.09, 0.05), light, 0.3, 0.04)
        if k.freckles:
            for _ in range(46):
                fx, fy = self._rng.normal(0, 0.17), self._rng.normal(0.09, 0.045)
                tint_at = _ellipse(fx, fy, 0.006, 0.006)
                _fill(head, tint_at, k.skin * (0.8, 0.66, 0.58), alpha=0.6, fine=_FINE)
        if k.beard:
            cover = inside * (1 - _soft(_ellipse(0, 0.0, 0.34, 0.3, power=2.6), 0.07))
            y = np.linspace(-1, 1, size)[:, None]
            cover *= _step((y - 0.0) / 0.2)
            lip_gap = _soft(_ellipse(0, _MOUTH_Y + 0.01, 0.15, 0.045), 0.02)
            grain = cv2.GaussianBlur(self._rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 1.2)
            _tint(
                head,
                k.hair * 0.85 + k.skin * 0.08,
                k.beard * cover * (1 - lip_gap) * (0.88 + 0.3 * grain).clip(0.4, 1),
            )
        self._paint_hair_front(head)
        return cv2.resize(head, (_CANVAS, _CANVAS), interpolation=cv2.INTER_AREA)

    def _paint_hair_behind(self, head: np.ndarray) -> None:
        k = self.looks
        w = k.face_width
        back = np.clip(k.hair * 0.72, 0, 255)
        if k.style == "long":
            shape = [
                (0.0, -0.76),
                (0.36, -0.72),
                (w + 0.13, -0.4),
                (w + 0.15, 0.1),
                (w + 0.17, 0.6),
                (w + 0.1, 0.98),
                (0.3, 0.9),
                (0.2, 0.3),
                (0, 0.2),
            ]
        elif k.style == "bob":
            shape = [
                (0.0, -0.76),
                (0.36, -0.72),
                (w + 0.13, -0.4),
                (w + 0.15, 0.05),
                (w + 0.13, 0.42),
                (w - 0.04, 0.52),
                (0.2, 0.3),
                (0, 0.2),
            ]
        elif k.style == "bun":
            _fill(head, _ellipse(0.0, -0.8, 0.2, 0.16), k.hair * 0.85, fine=_FINE)
            shape = [(0.0, -0.73), (0.34, -0.68), (w + 0.05, -0.38), (w + 0.05, -0.05), (0.2, 0.1), (0, 0.1)]
        elif k.style == "curly":
            for _ in range(70):
                angle = self._rng.uniform(-0.15, 1.15) * np.pi
                x, y = (w + 0.07) * np.cos(angle), -0.22 - 0.47 * np.sin(angle)
                shade = self._rng.uniform(0.6, 0.95)
                _fill(
                    head,
                    _ellipse(x, y, self._rng.uniform(0.08, 0.12), self._rng.uniform(0.08, 0.12)),
                    k.hair * shade,
                    fine=_FINE,
                )
            return
        elif k.style == "short":
            shape = [(0.0, -0.74), (0.34, -0.7), (w + 0.05, -0.42), (w + 0.045, -0.12), (0.2, 0.0), (0, 0.0)]
        else:
            return
        _fill(head, _mirror(shape), back, fine=_FINE)

    def _paint_hair_front(self, head: np.ndarray) -> None:
        k = self.looks
        w = k.face_width
        if k.style == "bald":
            return
        crown = [
            (-w - 0.03, -0.14),
            (-w - 0.045, -0.42),
            (-0.3, -0.71),
            (0.02, -0.765),
            (0.32, -0.71),
            (w + 0.045, -0.42),
            (w + 0.03, -0.14),
        ]
        line = {  # from right to left along the forehead
            "short": [(w - 0.03, -0.22), (w - 0.06, -0.38), (0.22, -0.46), (0.0, -0.5), (-0.2, -0.44), (-w + 0.06, -0.36), (-w + 0.03, -0.2)],
            "long": [(w - 0.01, 0.1), (w - 0.04, -0.22), (0.3, -0.46), (0.08, -0.57), (-0.12, -0.5), (-w + 0.07, -0.3), (-w + 0.01, 0.1)],
            "bob": [(w - 0.0, 0.16), (w - 0.05, -0.2), (0.3, -0.34), (0.1, -0.36), (-0.1, -0.35), (-0.3, -0.34), (-w + 0.05, -0.2), (-w + 0.0, 0.16)],
            "bun": [(w - 0.02, -0.16), (w - 0.07, -0.36), (0.2, -0.5), (0.0, -0.53), (-0.2, -0.5), (-w + 0.07, -0.36), (-w + 0.02, -0.16)],
            "curly": [(w - 0.02, -0.2), (w - 0.06, -0.36), (0.2, -0.47), (0.0, -0.45), (-0.2, -0.47), (-w + 0.06, -0.36), (-w + 0.02, -0.2)],
        }[k.style]  # fmt: skip
        shape = _through(np.array([*crown, *line]), 10, closed=True)
        shadow = _soft(shape + (0.008, 0.03), 0.025) * (head[..., 3] > 0)
        _tint(head, k.skin * (0.55, 0.44, 0.42), 0.45 * shadow)
        _fill(head, shape, k.hair, fine=_FINE)
        mask = _soft(shape, 0.0)
        _tint(
            head,
            np.clip(k.hair * 1.35 + 34, 0, 255),
            0.4 * mask * _soft(_ellipse(-0.12, -0.6, 0.26, 0.05), 0.05),
        )
        _tint(head, k.hair * 0.5, 0.45 * mask * _soft(_ellipse(0.42, -0.3, 0.1, 0.3), 0.08))
        # Strands along the hair's fall from the parting.
        combed = head.copy()
        for _ in range(90):
            x = self._rng.uniform(-w, w)
            fall = [(0.25 * x + 0.05, -0.74), (0.75 * x + 0.02, -0.63), (1.04 * x, -0.4 + 0.2 * abs(x))]
            tone = np.clip(k.hair * self._rng.uniform(0.6, 1.4), 0, 255)
            _stroke(combed, _through(np.array(fall), 12), tone, 2, fine=_FINE)
        _tint(head, combed[..., :3], 0.4 * mask)
        if k.style == "curly":
            for _ in range(46):
                angle = self._rng.uniform(0.04, 0.96) * np.pi
                x, y = (
                    (w - 0.02) * np.cos(angle),
                    -0.3 - 0.36 * np.sin(angle) + self._rng.uniform(-0.05, 0.02),
                )
                _fill(head, _ellipse(x, y, 0.075, 0.07), k.hair * self._rng.uniform(0.75, 1.1), fine=_FINE)


def _px(value: float) -> float:
    return (value + 1) * (_CANVAS / 2)


def _fixed(points: np.ndarray, fine: float = 1, at: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Canvas points [n, 2] as OpenCV's fixed-point pixels, relative to a patch at `at`."""
    pixels = (points + 1) * (_CANVAS * fine / 2) - 0.5 - np.asarray(at)
    return np.rint(pixels * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)


def _colour(colour) -> tuple[float, float, float, float]:
    red, green, blue = (float(value) for value in colour)
    return red, green, blue, 255.0


def _fill(picture, points, colour, at=(0, 0), alpha: float = 1.0, fine: int = 1) -> None:
    shape = [_fixed(points, fine, at)]
    if alpha >= 1:
        cv2.fillPoly(picture, shape, _colour(colour), cv2.LINE_AA, _SHIFT)
        return
    _faintly(
        picture,
        points,
        at,
        fine,
        2,
        alpha,
        lambda p, s: cv2.fillPoly(p, s, _colour(colour), cv2.LINE_AA, _SHIFT),
    )


def _stroke(picture, points, colour, width: int, at=(0, 0), alpha: float = 1.0, fine: int = 1) -> None:
    def draw(target, shape):
        cv2.polylines(target, shape, False, _colour(colour), width, cv2.LINE_AA, _SHIFT)

    if alpha >= 1:
        draw(picture, [_fixed(points, fine, at)])
    else:
        _faintly(picture, points, at, fine, width + 2, alpha, draw)


def _faintly(picture, points, at, fine, margin, alpha, draw) -> None:
    """Draws with transparency, touching only the pixels around the points."""
    pixels = (points + 1) * (_CANVAS * fine / 2) - np.asarray(at)
    low = np.maximum(pixels.min(axis=0).astype(int) - margin, 0)
    high = pixels.max(axis=0).astype(int) + margin + 1
    patch = picture[low[1] : high[1], low[0] : high[0]]
    if not patch.size:
        return
    over = np.ascontiguousarray(patch)
    draw(over, [_fixed(points, fine, (at[0] + low[0], at[1] + low[1]))])
    patch[...] = cv2.addWeighted(over, alpha, patch, 1 - alpha, 0)


def _disc(picture, x: float, y: float, radius: float, colour, at=(0, 0)) -> None:
    one = 1 << _SHIFT
    centre = _fixed(np.array([[x, y]]), 1, at).ravel()
    size = round(radius * (_CANVAS / 2) * one)
    cv2.circle(picture, (int(centre[0]), int(centre[1])), size, _colour(colour), -1, cv2.LINE_AA, _SHIFT)


def _cut(picture: np.ndarray, outline: np.ndarray) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """The patch around an outline (a view), its corner, and the outline's soft mask uint8 [h, w]."""
    pixels = (outline + 1) * (_CANVAS / 2)
    low = np.clip(pixels.min(axis=0).astype(int) - 3, 0, _CANVAS - 4)
    high = np.clip(pixels.max(axis=0).astype(int) + 4, low + 4, _CANVAS)
    patch = picture[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(patch.shape[:2], dtype=np.uint8)
    cv2.fillPoly(mask, [_fixed(outline, 1, (int(low[0]), int(low[1])))], 255, cv2.LINE_AA, _SHIFT)
    return patch, (int(low[0]), int(low[1])), mask


def _blend(patch: np.ndarray, over: np.ndarray, mask: np.ndarray) -> None:
    weight = mask[..., None].astype(np.int32)
    patch[...] = (patch + ((over.astype(np.int32) - patch) * weight + 127) // 255).astype(np.uint8)


def _tint(picture: np.ndarray, colour, strength: np.ndarray) -> None:
    """Moves colours towards one, by a strength [H, W] in 0..1; transparency stays."""
    rows, columns = np.flatnonzero(strength.max(axis=1) > 2e-3), np.flatnonzero(strength.max(axis=0) > 2e-3)
    if not rows.size or not columns.size:
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    patch = picture[box]
    weight = np.clip(strength[box], 0, 1).astype(np.float32)[..., None] * (patch[..., 3:] / np.float32(255))
    target = np.asarray(colour, dtype=np.float32)
    target = target[box] if target.ndim == 3 else target
    patch[..., :3] = np.rint(patch[..., :3] * (1 - weight) + target * weight).astype(np.uint8)


def _soft(outline: np.ndarray, blur: float) -> np.ndarray:
    """An outline's inside as a mask [H, W] in 0..1 at the painting's size, blurred by canvas units."""
    size = _CANVAS * _FINE
    # What is blurred wide needs no fine mask.
    coarse = 1 if blur < 0.015 else 4
    mask = np.zeros((size // coarse, size // coarse), dtype=np.uint8)
    cv2.fillPoly(mask, [_fixed(outline, _FINE / coarse)], 255, cv2.LINE_AA, _SHIFT)
    soft = mask.astype(np.float32) / 255
    if blur:
        soft = cv2.GaussianBlur(soft, (0, 0), blur * size / coarse / 2)
    return soft if coarse == 1 else cv2.resize(soft, (size, size), interpolation=cv2.INTER_LINEAR)


def _rgba(rgb: np.ndarray) -> np.ndarray:
    alpha = np.full((*rgb.shape[:2], 1), 255, dtype=np.uint8)
    return np.ascontiguousarray(np.concatenate([np.clip(rgb, 0, 255).astype(np.uint8), alpha], axis=2))


def _ellipse(x: float, y: float, radius_x: float, radius_y: float, power: float = 2.0) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    round_x = np.sign(cos) * np.abs(cos) ** (2 / power)
    round_y = np.sign(sin) * np.abs(sin) ** (2 / power)
    return np.stack([x + radius_x * round_x, y + radius_y * round_y], axis=1)


def _mirror(right_half: list[tuple[float, float]]) -> np.ndarray:
    """A closed smooth outline from its right half, listed from the top to the bottom, both ends at x = 0."""
    right = np.array(right_half)
    left = right[1:-1][::-1] * (-1, 1)
    return _through(np.concatenate([right, left]), 10, closed=True)


def _through(points: np.ndarray, steps: int, closed: bool = False) -> np.ndarray:
    """A smooth (Catmull-Rom) line through points, `steps` to each stretch."""
    if closed:
        padded = np.concatenate([points[-1:], points, points[:2]])
    else:
        padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    a, b, c, d = (padded[i : len(padded) - 3 + i][:, None] for i in range(4))
    line = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    line = line.reshape(-1, 2)
    return line if closed else np.concatenate([line, points[-1:]])


def _step(value: np.ndarray) -> np.ndarray:
    value = np.clip(value, 0, 1)
    return value * value * (3 - 2 * value)

"""Draw people from a seed, and animate them by a control track.

A control track describes the motion of a face by 57 named numbers per frame (`xactor.controls`). A head is painted once
on a canvas (bust.py). For each frame, the lower face is first stretched as far as the jaw opens. Then eyes, brows and
mouth are drawn on the head as smooth shapes. At last the pose turns the head in front of a still background. Ours: all
coordinates and factors were chosen by eye.

In the methods below, `control` holds a frame's controls by name. `side` is -1 at the left of the picture and 1 at the
right. Coordinates are those of the canvas (brush.py): -1 to 1, x to the right, y down.
"""

import cv2
import numpy as np

from xactor.controls import INDEX
from xactor_platform.demo_corpus.brush import (
    CANVAS_PX,
    FINE,
    blend,
    cut,
    disc,
    ellipse,
    fill,
    px,
    step,
    stroke,
    through,
)
from xactor_platform.demo_corpus.bust import paint_head, paint_wall
from xactor_platform.demo_corpus.looks import BROWS_Y, EYES_Y, NOSE_Y, draw_looks
from xactor_platform.demo_corpus.pose import PoseMap

# The square of the canvas that frames show: x and y of its centre, and half its side. `xactor.faces.crop_box`, which
# finds the square around a face, gives about this square.
VIEW = (0.0, 0.12, 0.87)


class DrawnFace:
    """Render a drawn person.

    Args:
        seed: seed of the person's looks.
        size_px: side of the frames in pixels.
    """

    def __init__(self, seed: int, size_px: int = 256):
        self.looks = draw_looks(seed)
        self.size_px = size_px
        rng = np.random.Generator(np.random.PCG64([seed, 405]))
        side = CANVAS_PX * FINE / 2
        left, top = (round((at + 1 - VIEW[2]) * side) for at in VIEW[:2])
        view_px = round(2 * VIEW[2] * side)
        wall = paint_wall(self.looks)[top : top + view_px, left : left + view_px]
        self._wall = cv2.resize(wall, (size_px, size_px), interpolation=cv2.INTER_AREA)
        self._head = paint_head(self.looks, rng)
        self._pose = PoseMap(
            centre=(0, 0.05), radii=(0.46, 0.62), source_px=CANVAS_PX, size_px=size_px, reach=None, view=VIEW
        )
        # The opening jaw pulls down this part of the canvas, below the nose. The pull decreases towards the sides.
        self._jaw = slice(int(px(0.14)), CANVAS_PX), slice(int(px(-0.6)), int(px(0.6)) + 1)
        rows, columns = np.mgrid[self._jaw].astype(np.float32)
        x, y = (columns + 0.5) / (CANVAS_PX / 2) - 1, (rows + 0.5) / (CANVAS_PX / 2) - 1
        pull = step((y - 0.2) / (self.looks.chin - 0.2)) * (1 - step((abs(x) - 0.36) / 0.24))
        # Pixel coordinates within this part, and the pull at each pixel, in pixels for each unit that the jaw drops.
        self._rows, self._columns = rows - self._jaw[0].start, columns - self._jaw[1].start
        self._pull = pull * (CANVAS_PX / 2)

    def render(self, controls: np.ndarray) -> np.ndarray:
        """Render one frame, uint8 [S, S, 3] RGB, from a row of the control track [57]."""
        control = {name: float(controls[i]) for name, i in INDEX.items()}
        head = self._head.copy()
        self._stretch_jaw(head, control)
        self._draw_mouth(head, control)
        for side in (-1, 1):
            self._draw_eye(head, control, side)
            self._draw_brow(head, control, side)
        if self.looks.glasses:
            self._draw_glasses(head)
        map_x, map_y = self._pose.maps(controls[INDEX["headPitch"] :])
        turned = cv2.remap(head, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        # The head's colours are already multiplied by its alpha. The wall shows where the head is transparent.
        transparency = cv2.cvtColor(255 - turned[..., 3], cv2.COLOR_GRAY2RGB)
        visible_wall = cv2.multiply(self._wall, transparency, scale=1 / 255)
        return cv2.add(cv2.cvtColor(turned, cv2.COLOR_RGBA2RGB), visible_wall)

    def _stretch_jaw(self, head: np.ndarray, control: dict[str, float]) -> None:
        """Pull the lower face down in place, as far as the jaw opens."""
        drop = 0.17 * control["jawOpen"]
        if drop < 1e-3:
            return
        lower_face, source_rows = head[self._jaw].copy(), self._rows - drop * self._pull
        head[self._jaw] = cv2.remap(
            lower_face, self._columns, source_rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )

    def _draw_mouth(self, head: np.ndarray, control: dict[str, float]) -> None:
        """Draw the lips, and the inside of the mouth if it is open."""
        looks = self.looks
        # Controls of the mouth's halves at the left and at the right of the picture. The names of the controls refer to
        # the person, whose right is at the left of the picture.
        left, right = (
            {
                name: control[f"mouth{name}{who}"]
                for name in ("Smile", "Frown", "Stretch", "Dimple", "Press", "UpperUp", "LowerDown")
            }
            for who in ("Right", "Left")
        )
        both = {name: (left[name] + right[name]) / 2 for name in left}
        press, smile = both["Press"], both["Smile"]
        roll_upper, roll_lower = control["mouthRollUpper"], control["mouthRollLower"]
        round_, funnel = control["mouthPucker"], control["mouthFunnel"]
        # The height of the mouth's opening, the height by which the upper lip rises, and the thickness of both lips.
        gap = max(0.33 * (control["jawOpen"] - control["mouthClose"]) + 0.05 * funnel - 0.03 * press, 0.0)
        rise = 0.035 * both["UpperUp"] + 0.02 * control["mouthShrugUpper"] + 0.015 * funnel
        full = looks.lip_fullness
        upper = full * 0.042 * (1 - 0.7 * roll_upper - 0.35 * press - 0.2 * smile + 0.35 * round_)
        lower = full * 0.055 * (1 - 0.6 * roll_lower - 0.35 * press - 0.2 * smile + 0.3 * round_)
        # x of the mouth's middle, and the two corners.
        mouth_shift = control["mouthLeft"] - control["mouthRight"]
        jaw_shift = control["jawLeft"] - control["jawRight"]
        middle = 0.03 * mouth_shift + 0.04 * jaw_shift
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
            ends.append((middle + side * looks.mouth_width * max(wide, 0.35), looks.mouth_y + sink))
        (ax, ay), (bx, by) = ends
        # The lips' edges, from corner to corner: x, and y of the outer and inner edges of both lips.
        t = np.linspace(0, 1, 25)
        x = ax + (bx - ax) * t
        base = ay + (by - ay) * t
        # 0 at the corners, 1 in the middle.
        arch = 1 - (2 * t - 1) ** 2
        flat = np.sqrt(arch)
        # The dent of the upper lip.
        bow = 0.35 * np.exp(-(((t - 0.5) / 0.07) ** 2)) * 0.03
        # Height (y) of the upper lip's inner edge at the middle of the mouth.
        line = looks.mouth_y + 0.01 * smile - rise
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
        # A soft shadow under the lower lip, and creases next to a smile.
        self._shade(head, np.stack([x, outer_low + 0.028], 1)[5:20], 0.16, 5)
        for side, m, (ex, ey) in ((-1, left, ends[0]), (1, right, ends[1])):
            if m["Smile"] > 0.05:
                bend = np.array(
                    [
                        [ex + side * 0.035, ey + 0.05],
                        [ex + side * 0.07, ey - 0.04],
                        [side * 0.13, NOSE_Y + 0.03],
                    ]
                )
                self._shade(head, through(bend, 12), min(0.5 * m["Smile"], 0.3), 4)
        opened = np.concatenate([np.stack([x, inner_up], 1), np.stack([x, inner_low], 1)[::-1]])
        whole = np.concatenate([np.stack([x, outer_up], 1), np.stack([x, outer_low], 1)[::-1]])
        lips = looks.lips
        fill(head, whole, lips)
        under = np.stack([x, inner_low], 1)[::-1]
        fill(head, np.concatenate([np.stack([x, outer_low], 1), under]), np.clip(lips * 1.1 + 6, 0, 255))
        glow_y = inner_low + (outer_low - inner_low) * 0.45
        stroke(head, np.stack([x, glow_y], 1)[9:16], np.clip(lips * 1.18 + 16, 0, 255), 2)
        if (inner_low - inner_up).max() > 0.006:
            self._draw_inside(head, opened, x, inner_up, inner_low, gap, control)
        else:
            stroke(head, np.stack([x, (inner_up + inner_low) / 2], 1), lips * 0.5, 2)

    def _draw_inside(self, head, opened, x, inner_up, inner_low, gap, control) -> None:
        """Draw the inside of an open mouth: tongue, upper teeth and, in a wide open mouth, lower teeth.

        Args:
            head: painted in place.
            opened: outline of the opening, [n, 2].
            x: x of the lips' edges, [25].
            inner_up: y of the upper lip's inner edge, [25].
            inner_low: y of the lower lip's inner edge, [25].
            gap: height of the mouth's opening.
            control: controls by name.
        """
        patch, at, mask = cut(head, opened)
        inside = patch.copy()
        inside[..., :3] = (58, 18, 22)
        middle = float(x.mean())
        tongue_y = float(inner_low.max())
        radius = (x[-1] - x[0]) * 0.34
        tongue = ellipse(middle, tongue_y + 0.015 - 0.02 * control["mouthPucker"], radius, 0.045 + 0.18 * gap)
        fill(inside, tongue, (172, 82, 84), at)
        height = 0.05 + 0.012 * control["mouthSmileLeft"]
        teeth = np.concatenate(
            [np.stack([x, inner_up - 0.01], 1), np.stack([x, inner_up + height * 0.9], 1)[::-1]]
        )[2:-2]
        fill(inside, teeth, (238, 234, 226), at)
        if gap > 0.1:
            low = np.concatenate(
                [np.stack([x, inner_low - 0.022], 1), np.stack([x, inner_low + 0.02], 1)[::-1]]
            )[6:-6]
            fill(inside, low, (205, 198, 190), at)
        stroke(inside, np.stack([x, inner_up + 0.004], 1), (70, 24, 28), 2, at)
        blend(patch, inside, mask)

    def _draw_eye(self, head: np.ndarray, control: dict[str, float], side: int) -> None:
        """Draw the eye of one side, with its lids and lashes."""
        looks = self.looks
        who = "Right" if side < 0 else "Left"
        blink = min(control[f"eyeBlink{who}"], 1.0)
        cheek = control[f"cheekSquint{who}"]
        squint = control[f"eyeSquint{who}"]
        look_x = (
            control["eyeLookOutLeft"] - control["eyeLookInLeft"]
            if side > 0
            else control["eyeLookInRight"] - control["eyeLookOutRight"]
        )
        look_y = control[f"eyeLookDown{who}"] - control[f"eyeLookUp{who}"]
        cx, cy, w = side * looks.eye_gap, EYES_Y, looks.eye_size
        # Distances of the edges of both open lids from the eye's centre. Looking down lowers the upper lid.
        lid_full = 0.056 * (1 + 0.5 * control[f"eyeWide{who}"] - 0.12 * max(look_y, 0.0))
        low_full = 0.036 * (1 - 0.45 * cheek - 0.35 * squint)
        t = np.linspace(-1, 1, 21)
        x = cx + w * t
        # The outer corners are a little higher.
        tilt = -0.012 * side * t
        # Heights (y) of both lids' edge in a closed eye, and of the lids' edges in an open eye.
        closed = cy + 0.022 * (1 - t**2) + tilt
        top = cy + tilt - lid_full * (1 - np.abs(t + side * 0.12) ** 2.2).clip(0) ** 0.8
        bottom = cy + tilt + low_full * (1 - t**2) ** 0.9
        upper = top + (closed - top) * blink
        lower = bottom + (closed - bottom) * blink * 0.9
        lower = np.maximum(lower, upper)
        if blink < 0.93:
            patch, at, mask = cut(
                head, np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])
            )
            eye = patch.copy()
            eye[..., :3] = (240, 238, 236)
            # The iris with its edge and lower glow, the pupil, and the highlight.
            ix, iy = cx + 0.038 * look_x, cy - 0.008 + 0.026 * look_y
            disc(eye, ix, iy, 0.052, looks.iris * 0.55, at)
            disc(eye, ix, iy, 0.046, looks.iris, at)
            disc(eye, ix, iy + 0.012, 0.03, np.clip(looks.iris * 1.3 + 18, 0, 255), at)
            disc(eye, ix, iy, 0.022, (14, 12, 14), at)
            disc(eye, ix - 0.017, iy - 0.018, 0.0105, (255, 255, 255), at)
            # The lid casts a shadow on the eyeball.
            fill(eye, np.concatenate([np.stack([x, upper - 0.01], 1), np.stack([x, upper + 0.013], 1)[::-1]]),
                  np.array((150, 140, 142)), at, 0.5)  # fmt: skip
            blend(patch, eye, mask)
        dark = np.clip(looks.hair * 0.25, 0, 50)
        lash = 0.011 + 0.006 * blink
        wing = np.stack([x, upper], 1)
        outer = wing[-1] if side > 0 else wing[0]
        body = np.concatenate([wing, np.stack([x, upper - lash * (1.15 - t**2)], 1)[::-1]])
        fill(head, body, dark)
        stroke(head, np.stack([outer, outer + np.array((side * 0.02, -0.012))]), dark, 2)
        stroke(head, np.stack([x, lower], 1)[4:-4], looks.skin * 0.62, 1)
        crease = np.stack([x, top - 0.03 + 0.03 * blink + 0.012 * squint], 1)[3:-3]
        stroke(head, crease, looks.skin * 0.72, 2)
        if cheek > 0.05 or squint > 0.3:
            self._shade(head, np.stack([x, lower + 0.03], 1)[5:-5], min(0.3 * cheek + 0.1 * squint, 0.25), 4)

    def _draw_brow(self, head: np.ndarray, control: dict[str, float], side: int) -> None:
        """Draw the brow of one side."""
        looks = self.looks
        who = "Right" if side < 0 else "Left"
        inner = -0.085 * control["browInnerUp"] + 0.06 * control[f"browDown{who}"]
        outer = -0.085 * control[f"browOuterUp{who}"] + 0.035 * control[f"browDown{who}"]
        pinch = 0.03 * control[f"browDown{who}"]
        points = np.array([
            (side * (looks.eye_gap - 0.105 - pinch), BROWS_Y + 0.03 + inner),
            (side * (looks.eye_gap - 0.02), BROWS_Y - 0.002 + 0.55 * inner + 0.45 * outer),
            (side * (looks.eye_gap + 0.07), BROWS_Y - 0.006 + 0.1 * inner + 0.95 * outer),
            (side * (looks.eye_gap + 0.135), BROWS_Y + 0.04 + 0.75 * outer),
        ])  # fmt: skip
        spine = through(points, 16)
        t = np.linspace(0, 1, len(spine))
        # Half the brow's thickness along the spine.
        half = 0.021 * looks.brow_weight * (0.55 + 0.9 * t) * (1 - t**3.5) + 0.002
        hair = looks.hair * 0.75 if looks.hair.mean() > 110 else np.clip(looks.hair * 0.8 + 4, 0, 255)
        shape = np.concatenate(
            [spine - np.stack([0 * t, half], 1), (spine + np.stack([0 * t, half * 0.8], 1))[::-1]]
        )
        fill(head, shape, hair, alpha=0.9)

    def _draw_glasses(self, head: np.ndarray) -> None:
        """Draw the rings, temples and bridge of the glasses."""
        looks = self.looks
        for side in (-1, 1):
            ring = ellipse(side * looks.eye_gap, EYES_Y + 0.015, 0.15, 0.125, power=2.8)
            stroke(head, np.concatenate([ring, ring[:1]]), (44, 38, 40), 4)
            temple = np.array(
                [(side * (looks.eye_gap + 0.148), EYES_Y - 0.01), (side * looks.face_width, EYES_Y - 0.03)]
            )
            stroke(head, temple, (44, 38, 40), 4)
        stroke(
            head,
            np.array([(-looks.eye_gap + 0.15, EYES_Y), (0, EYES_Y - 0.02), (looks.eye_gap - 0.15, EYES_Y)]),
            (44, 38, 40),
            4,
        )

    def _shade(self, head: np.ndarray, line: np.ndarray, depth: float, width: int) -> None:
        """Draw a faint line in a darker tone of the skin, with opacity `depth` and `width` pixels wide."""
        stroke(head, line, self.looks.skin * (0.62, 0.52, 0.5), width, alpha=depth)

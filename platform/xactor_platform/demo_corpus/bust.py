"""Paint the parts of a drawn person that are painted once and not for each frame.

These are the wall in the background, shoulders, head, nose, ears and hair. Ours: all coordinates, factors of colours
and strengths were chosen by eye. Coordinates are those of the canvas (`brush.py`): -1 to 1, x to the right, y down.
"""

import cv2
import numpy as np

from xactor_platform.demo_corpus.brush import (
    CANVAS_PX,
    FINE,
    ellipse,
    fill,
    mirror,
    rgba,
    soft,
    step,
    stroke,
    through,
    tint,
)
from xactor_platform.demo_corpus.looks import EYES_Y, NOSE_Y, Looks


def paint_wall(looks: Looks) -> np.ndarray:
    """Paint the parts that do not move with the head: wall, shoulders, collar and neck.

    Return uint8 [P, P, 3] with P = FINE x CANVAS_PX.
    """
    size = CANVAS_PX * FINE
    at = (np.arange(size) / (size / 2) - 1).astype(np.float32)
    light = 1.06 - 0.22 * np.hypot(at + 0.5, at[:, None] + 0.7) / 1.6
    picture = rgba(looks.wall.astype(np.float32) * light[..., None])
    body = mirror([(0.0, 0.86), (0.2, 0.85), (0.36, 0.9), (0.68, 0.98), (0.95, 1.1), (1.0, 1.4), (0.0, 1.4)])
    fill(picture, body, looks.clothes, fine=FINE)
    neck = mirror([(0.0, 0.2), (0.2, 0.3), (0.205, 0.62), (0.24, 0.84), (0.12, 0.95), (0.0, 0.99)])
    fill(picture, neck, looks.skin * (0.84, 0.78, 0.76), fine=FINE)
    shadow = soft(ellipse(0, looks.chin - 0.02, 0.33, 0.17), 0.05)
    tint(picture, looks.skin * (0.55, 0.45, 0.43), 0.6 * shadow * soft(neck, 0.01))
    for side in (-1, 1):
        lapel = np.array([(side * 0.2, 0.84), (side * 0.3, 0.87), (side * 0.12, 1.2), (0, 1.02)])
        fill(picture, lapel, np.clip(looks.clothes * 0.78, 0, 255), fine=FINE)
    return picture[..., :3]


def paint_head(looks: Looks, rng: np.random.Generator) -> np.ndarray:
    """Paint the head without its moving features (eyes, brows and mouth).

    Return uint8 [K, K, 4] with K = CANVAS_PX. Colours are premultiplied by alpha.
    """
    size = CANVAS_PX * FINE
    head = np.zeros((size, size, 4), dtype=np.uint8)
    _paint_hair_behind(head, looks, rng)
    for side in (-1, 1):
        ear = ellipse(side * (looks.face_width + 0.015), 0.03, 0.06, 0.115)
        fill(head, ear, looks.skin * (0.93, 0.86, 0.84), fine=FINE)
        fill(
            head,
            ellipse(side * (looks.face_width + 0.02), 0.03, 0.03, 0.07),
            looks.skin * (0.78, 0.66, 0.63),
            fine=FINE,
        )
    w, jaw, chin = looks.face_width, looks.jaw, looks.chin
    face = mirror([
        (0.0, -0.62), (0.6 * w, -0.57), (0.95 * w, -0.33), (w, -0.02), (0.96 * w, 0.22),
        (jaw * w * 1.04, chin - 0.2), (0.55 * jaw * w, chin - 0.045), (0.0, chin),
    ])  # fmt: skip
    fill(head, face, looks.skin, fine=FINE)
    inside = soft(face, 0.0)
    dark, light = looks.skin * (0.66, 0.54, 0.52), np.clip(looks.skin * 1.1 + 14, 0, 255)

    def shade(shape: np.ndarray, colour, strength: float, blur: float) -> None:
        """Tint a soft shape within the face."""
        tint(head, colour, strength * inside * soft(shape, blur))

    # Light comes from the upper left: the face's right and lower edges are in shade.
    tint(head, dark, 0.5 * inside * (1 - soft(face - np.array((0.035, 0.03)), 0.09)))
    shade(ellipse(-0.06, -0.36, 0.24, 0.14), light, 0.5, 0.1)
    for side in (-1, 1):
        shade(ellipse(side * 0.24, 0.16, 0.1, 0.075), looks.skin * (1.0, 0.74, 0.72), 0.5, 0.07)
        shade(ellipse(side * 0.22 - 0.03, 0.1, 0.07, 0.04), light, 0.4, 0.05)
        shade(ellipse(side * looks.eye_gap, EYES_Y - 0.03, 0.125, 0.085), dark, 0.3, 0.05)
    # The nose: a lit bridge, a shaded side, wings and nostrils.
    nose = looks.nose
    shade(ellipse(-0.012, 0.04, 0.026, 0.17), light, 0.55, 0.03)
    shade(ellipse(0.05 * nose, 0.06, 0.02, 0.15), dark, 0.45, 0.03)
    shade(ellipse(0, NOSE_Y + 0.045, 0.085 * nose, 0.022), dark, 0.6, 0.022)
    shade(ellipse(-0.012, NOSE_Y - 0.015, 0.04 * nose, 0.034), light, 0.5, 0.025)
    for side in (-1, 1):
        wing = through(
            np.array(
                [
                    (side * 0.05 * nose, NOSE_Y - 0.035),
                    (side * 0.083 * nose, NOSE_Y + 0.01),
                    (side * 0.055 * nose, NOSE_Y + 0.035),
                ]
            ),
            14,
        )
        stroke(head, wing, dark, 4, alpha=0.7, fine=FINE)
        shade(ellipse(side * 0.034 * nose, NOSE_Y + 0.03, 0.02 * nose, 0.0095), dark * 0.45, 0.9, 0.007)
    # The dent between the nose and the upper lip.
    shade(ellipse(0, 0.275, 0.018, 0.04), dark, 0.35, 0.02)
    shade(ellipse(0, chin - 0.07, 0.09, 0.05), light, 0.3, 0.04)
    if looks.freckles:
        for _ in range(46):
            fx, fy = rng.normal(0, 0.17), rng.normal(0.09, 0.045)
            freckle = ellipse(fx, fy, 0.006, 0.006)
            fill(head, freckle, looks.skin * (0.8, 0.66, 0.58), alpha=0.6, fine=FINE)
    if looks.beard:
        # The beard covers the lower face, without the lips.
        cover = inside * (1 - soft(ellipse(0, 0.0, 0.34, 0.3, power=2.6), 0.07))
        y = np.linspace(-1, 1, size)[:, None]
        cover *= step((y - 0.0) / 0.2)
        lip_gap = soft(ellipse(0, looks.mouth_y + 0.01, 0.15, 0.045), 0.02)
        grain = cv2.GaussianBlur(rng.normal(0, 1, (size, size)).astype(np.float32), (0, 0), 1.2)
        tint(
            head,
            looks.hair * 0.85 + looks.skin * 0.08,
            looks.beard * cover * (1 - lip_gap) * (0.88 + 0.3 * grain).clip(0.4, 1),
        )
    _paint_hair_front(head, looks, rng)
    return cv2.resize(head, (CANVAS_PX, CANVAS_PX), interpolation=cv2.INTER_AREA)


def _paint_hair_behind(head: np.ndarray, looks: Looks, rng: np.random.Generator) -> None:
    """Paint the hair behind the face. It must be painted before the face."""
    # Half the width of the face.
    w = looks.face_width
    back = np.clip(looks.hair * 0.72, 0, 255)
    if looks.style == "long":
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
    elif looks.style == "bob":
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
    elif looks.style == "bun":
        fill(head, ellipse(0.0, -0.8, 0.2, 0.16), looks.hair * 0.85, fine=FINE)
        shape = [(0.0, -0.73), (0.34, -0.68), (w + 0.05, -0.38), (w + 0.05, -0.05), (0.2, 0.1), (0, 0.1)]
    elif looks.style == "curly":
        for _ in range(70):
            angle = rng.uniform(-0.15, 1.15) * np.pi
            x, y = (w + 0.07) * np.cos(angle), -0.22 - 0.47 * np.sin(angle)
            shade = rng.uniform(0.6, 0.95)
            fill(
                head,
                ellipse(x, y, rng.uniform(0.08, 0.12), rng.uniform(0.08, 0.12)),
                looks.hair * shade,
                fine=FINE,
            )
        return
    elif looks.style == "short":
        shape = [(0.0, -0.74), (0.34, -0.7), (w + 0.05, -0.42), (w + 0.045, -0.12), (0.2, 0.0), (0, 0.0)]
    else:
        return
    fill(head, mirror(shape), back, fine=FINE)


def _paint_hair_front(head: np.ndarray, looks: Looks, rng: np.random.Generator) -> None:
    """Paint the hair in front of the face, with its shadow, shine and strands."""
    # Half the width of the face.
    w = looks.face_width
    if looks.style == "bald":
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
    line = _hairline(looks.style, w)
    shape = through(np.array([*crown, *line]), 10, closed=True)
    shadow = soft(shape + np.array((0.008, 0.03)), 0.025) * (head[..., 3] > 0)
    tint(head, looks.skin * (0.55, 0.44, 0.42), 0.45 * shadow)
    fill(head, shape, looks.hair, fine=FINE)
    mask = soft(shape, 0.0)
    tint(
        head,
        np.clip(looks.hair * 1.35 + 34, 0, 255),
        0.4 * mask * soft(ellipse(-0.12, -0.6, 0.26, 0.05), 0.05),
    )
    tint(head, looks.hair * 0.5, 0.45 * mask * soft(ellipse(0.42, -0.3, 0.1, 0.3), 0.08))
    # Strands follow the hair's fall from the parting.
    combed = head.copy()
    for _ in range(90):
        x = rng.uniform(-w, w)
        fall = [(0.25 * x + 0.05, -0.74), (0.75 * x + 0.02, -0.63), (1.04 * x, -0.4 + 0.2 * abs(x))]
        tone = np.clip(looks.hair * rng.uniform(0.6, 1.4), 0, 255)
        stroke(combed, through(np.array(fall), 12), tone, 2, fine=FINE)
    tint(head, combed[..., :3], 0.4 * mask)
    if looks.style == "curly":
        for _ in range(46):
            angle = rng.uniform(0.04, 0.96) * np.pi
            x, y = (
                (w - 0.02) * np.cos(angle),
                -0.3 - 0.36 * np.sin(angle) + rng.uniform(-0.05, 0.02),
            )
            fill(head, ellipse(x, y, 0.075, 0.07), looks.hair * rng.uniform(0.75, 1.1), fine=FINE)


def _hairline(style: str, w: float) -> list[tuple[float, float]]:
    """Return the edge of the hair around the forehead, from the right of the picture to the left.

    Args:
        style: style of the hair.
        w: half the width of the face.
    """
    # The edge of the hair at the right side of the face, which is mirrored for the left side, and the edge over the
    # forehead between the two sides.
    falls, middle = {
        "short": ([(w - 0.03, -0.22), (w - 0.06, -0.38)], [(0.22, -0.46), (0.0, -0.5), (-0.2, -0.44)]),
        "long": ([(w - 0.01, 0.1), (w - 0.04, -0.22)], [(0.3, -0.46), (0.08, -0.57), (-0.12, -0.5)]),
        "bob": (
            [(w, 0.16), (w - 0.05, -0.2)],
            [(0.3, -0.34), (0.1, -0.36), (-0.1, -0.35), (-0.3, -0.34)],
        ),
        "bun": ([(w - 0.02, -0.16), (w - 0.07, -0.36)], [(0.2, -0.5), (0.0, -0.53), (-0.2, -0.5)]),
        "curly": ([(w - 0.02, -0.2), (w - 0.06, -0.36)], [(0.2, -0.47), (0.0, -0.45), (-0.2, -0.47)]),
    }[style]
    return [*falls, *middle, *((-x, y) for x, y in reversed(falls))]

"""Draw a person's looks from a seed: skin, hair, eyes, clothes and the shape of the face."""

from dataclasses import dataclass

import numpy as np

# Colours from which the colours of people are mixed, RGB in 0..255. Each colour of a person is a blend of two colours
# of one list with added noise, so that no two people have the same colour.
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
# Styles of the hair.
STYLES = ("short", "long", "bun", "curly", "bob", "bald")
# Heights (y) of a drawn face's features in canvas units: -1 is the top and 1 the bottom of the canvas. The mouth's
# height varies between people around MOUTH_Y.
EYES_Y, BROWS_Y, NOSE_Y, MOUTH_Y = -0.06, -0.215, 0.17, 0.355


@dataclass(frozen=True, kw_only=True)
class Looks:
    """Hold the looks of one drawn person. Colours are RGB in 0..255, lengths are in halves of the canvas's side."""

    skin: np.ndarray
    """Colour of the skin."""
    hair: np.ndarray
    """Colour of the hair."""
    iris: np.ndarray
    """Colour of the eyes."""
    clothes: np.ndarray
    """Colour of the clothes."""
    wall: np.ndarray
    """Colour of the background."""
    lips: np.ndarray
    """Colour of the lips."""
    style: str
    """Style of the hair, one of STYLES."""
    face_width: float
    """Half the width of the face."""
    chin: float
    """Height (y) of the chin."""
    jaw: float
    """Width of the jaw relative to the width of the face."""
    eye_gap: float
    """Distance (x) of each eye from the middle."""
    eye_size: float
    """Half the width of an eye."""
    brow_weight: float
    """Factor of the brows' thickness, 1 for the usual thickness."""
    nose: float
    """Factor of the nose's width, 1 for the usual width."""
    mouth_y: float
    """Height (y) of the mouth."""
    mouth_width: float
    """Half the width of the mouth."""
    lip_fullness: float
    """Factor of the lips' thickness, 1 for the usual thickness."""
    glasses: bool
    """Whether the person wears glasses."""
    beard: float
    """Strength of the beard, 0..1."""
    freckles: bool
    """Whether the person has freckles."""


def draw_looks(seed: int) -> Looks:
    """Return the looks of the person with a seed. People with successive seeds always have different hair styles."""
    rng = np.random.Generator(np.random.PCG64([seed, 404]))

    def pick(colours, spread: float = 6) -> np.ndarray:
        """Draw a blend of two colours, with Gaussian noise of standard deviation `spread`."""
        one, other = rng.integers(len(colours), size=2)
        blend = np.array(colours[one]) + rng.uniform(0, 0.5) * (np.array(colours[other]) - colours[one])
        return np.clip(blend + rng.normal(0, spread, 3), 0, 255)

    style = STYLES[seed % len(STYLES)]
    skin = pick(_SKINS, 3)
    bearded = style in ("short", "bald", "curly") and rng.uniform() < 0.6
    lips = skin * (0.80, 0.55, 0.55) + (18, 6, 12)
    if not bearded:
        lips = lips + np.array((14, -6, 2)) + rng.normal(0, 9, 3)
    face_width = rng.uniform(0.405, 0.485)
    chin = rng.uniform(0.605, 0.7)
    return Looks(
        skin=skin,
        hair=pick(_HAIRS),
        iris=pick(_IRISES),
        clothes=pick(_CLOTHES, 16),
        wall=pick(_WALLS, 14),
        lips=np.clip(lips, 0, 255),
        style=style,
        face_width=face_width,
        chin=chin,
        jaw=rng.uniform(0.6, 0.86),
        eye_gap=face_width * rng.uniform(0.405, 0.47),
        eye_size=rng.uniform(0.094, 0.116),
        brow_weight=rng.uniform(0.7, 1.5),
        nose=rng.uniform(0.8, 1.25),
        mouth_y=MOUTH_Y + 0.35 * (chin - 0.65) + rng.uniform(-0.018, 0.018),
        mouth_width=rng.uniform(0.15, 0.205),
        lip_fullness=rng.uniform(0.7, 1.4),
        glasses=bool(rng.uniform() < 0.25),
        beard=rng.uniform(0.35, 0.8) if bearded else 0.0,
        freckles=bool(rng.uniform() < 0.3),
    )

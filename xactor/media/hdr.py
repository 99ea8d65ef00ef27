"""Convert pictures of high dynamic range (HDR) to the colours that an SDR display shows."""

from functools import cache

import numpy as np
from av.video.reformatter import ColorTrc

# Luminance of white in an SDR picture, in cd/m². ITU-R BT.2408: HDR reference white.
_WHITE_NITS = 203.0
# Luminance that becomes the brightest SDR value. Most HDR video is graded for displays of this luminance.
_PEAK_NITS = 1000.0
# Fraction of white below which luminances are kept.
_KNEE = 0.7
# ITU-R BT.2087: linear BT.2020 to linear BT.709.
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
# Weights of red, green and blue in the luminance of BT.2020.
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
# ITU-R BT.1886: exponent of an SDR display.
_GAMMA = 2.4
# Largest 16-bit value.
_MAX_VALUE = 65_535


def is_hdr(transfer: int) -> bool:
    """Return whether a frame's transfer function, `color_trc`, is one of HDR: PQ or HLG."""
    return transfer in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)


def tone_map(picture: np.ndarray, transfer: int) -> np.ndarray:
    """Convert a picture with HDR's transfer function and BT.2020's primaries to SDR with those of BT.709.

    Luminances up to 142 cd/m² are kept, those up to 1000 cd/m² are compressed, and brighter ones become white.

    Args:
        picture: uint16 [H, W, 3] RGB.
        transfer: The transfer function: PQ (SMPTE ST 2084) or HLG (ARIB STD-B67).

    Returns:
        The picture, uint8 [H, W, 3] RGB.
    """
    light = _linear(ColorTrc(transfer))[picture]  # [H, W, 3]
    if transfer == ColorTrc.ARIB_STD_B67:
        # ITU-R BT.2100: the display makes light of a scene brighter by this function of its luminance.
        scene = np.maximum(light @ _LUMINANCE, 1e-6)
        light *= (_PEAK_NITS / _WHITE_NITS * scene**0.2)[..., None]
    # The largest component decides, so that the three keep their ratios and the colour stays.
    largest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    light *= _compressed(largest) / largest
    return _sdr()[(np.clip(light @ _TO_BT709.T, 0, 1) * _MAX_VALUE).astype(np.uint16)]


def _compressed(light: np.ndarray) -> np.ndarray:
    """Compress light above the knee smoothly, so that the peak becomes 1. FFmpeg's filter tonemap calls it mobius."""
    peak = _PEAK_NITS / _WHITE_NITS
    # scale * (x + a) / (x + b) is x with slope 1 at the knee, and 1 at the peak.
    a = -(_KNEE**2) * (peak - 1) / (_KNEE**2 - 2 * _KNEE + peak)
    b = (_KNEE**2 - 2 * _KNEE * peak + peak) / (peak - 1)
    scale = (b**2 + 2 * b * _KNEE + _KNEE**2) / (b - a)
    return np.where(light <= _KNEE, light, np.minimum(scale * (light + a) / (light + b), 1))


@cache
def _linear(transfer: ColorTrc) -> np.ndarray:
    """Return the light of each 16-bit value, float32 [65536].

    For PQ it is the light of the display in units of SDR's white. For HLG it is the light of the scene, 0 to 1.
    """
    code = np.arange(_MAX_VALUE + 1) / _MAX_VALUE
    if transfer == ColorTrc.SMPTE2084:
        # SMPTE ST 2084, equation 4.1.
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
        power = code ** (1 / m2)
        nits = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
        return (nits / _WHITE_NITS).astype(np.float32)
    # ARIB STD-B67, the inverse of HLG's OETF.
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


@cache
def _sdr() -> np.ndarray:
    """Return the SDR value of each 16-bit value of linear light, uint8 [65536]."""
    return np.rint(255 * (np.arange(_MAX_VALUE + 1) / _MAX_VALUE) ** (1 / _GAMMA)).astype(np.uint8)

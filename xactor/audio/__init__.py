"""Sound to frame-aligned features."""

from xactor.audio.encoder import (
    AudioEncoder,
    FeatureStream,
    LogMelEncoder,
    Wav2Vec2Encoder,
    load_audio_encoder,
)
from xactor.audio.windows import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, WindowSpec, frame_count, sound_needed

__all__ = [
    "FPS",
    "SAMPLES_PER_FRAME",
    "SAMPLE_RATE_HZ",
    "AudioEncoder",
    "FeatureStream",
    "LogMelEncoder",
    "Wav2Vec2Encoder",
    "WindowSpec",
    "frame_count",
    "load_audio_encoder",
    "sound_needed",
]

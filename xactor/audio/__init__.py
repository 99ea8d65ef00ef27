"""Sound to frame-aligned features."""

from xactor.audio.encoder import AudioEncoder, LogMelEncoder, Wav2Vec2Encoder, load_audio_encoder
from xactor.audio.windows import FPS, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, WindowSpec, frame_count

__all__ = [
    "FPS",
    "SAMPLES_PER_FRAME",
    "SAMPLE_RATE_HZ",
    "AudioEncoder",
    "LogMelEncoder",
    "Wav2Vec2Encoder",
    "WindowSpec",
    "frame_count",
    "load_audio_encoder",
]

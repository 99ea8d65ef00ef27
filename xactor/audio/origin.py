"""Name the origin of audio features; see `xactor.origin`. This module imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from xactor.audio.windows import WindowSpec
from xactor.origin import AUDIO, digest_origin

# Raise this number whenever a change of the code changes the features of `LogMelEncoder`.
_LOG_MEL_VERSION = 1


def log_mel_origin(mels: int, windows: WindowSpec) -> str:
    """Return the origin of log-mel energies.

    Args:
        mels: Number of mel bands.
        windows: Sizes and scaling of the feature windows.
    """
    return digest_origin(f"log-mel-{_LOG_MEL_VERSION}", {"mels": mels, "windows": window_settings(windows)})


def window_settings(windows: WindowSpec) -> dict[str, float]:
    """Return the sizes and the scaling of feature windows as floats, so that -40 and -40.0 have the same digest."""
    return {name: float(value) for name, value in asdict(windows).items()}


def saved_origin(config: Mapping[str, Any]) -> str | None:
    """Return the origin of a saved audio encoder's features, or None if its config does not tell it.

    Args:
        config: Content of the encoder's preprocessor_config.json. The one of a published model tells no origin.
    """
    if config.get("feature_extractor_type") != "LogMelEncoder":
        return config.get(AUDIO)
    return log_mel_origin(config["mels"], WindowSpec(**config.get("windows", {})))

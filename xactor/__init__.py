"""X-Actor: portraits that act from audio. Models and their mathematics; no Ray, no DeepSpeed."""

__version__ = "0.1.0"

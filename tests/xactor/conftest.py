"""Provide what the tests share: a saved pipeline, a portrait and speech."""

from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image
from sounds import write_sound

# A time limit for each example would fail property tests on a busy machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    # The import takes seconds, and most tests here need no pipeline.
    from pipelines import small_pipeline

    folder = tmp_path_factory.mktemp("model") / "small"
    small_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def portrait_file(tmp_path_factory) -> Path:
    """Return a real photograph with one face."""
    path = tmp_path_factory.mktemp("portrait") / "face.png"
    Image.fromarray(pytest.importorskip("skimage.data").astronaut()).save(path)
    return path


@pytest.fixture(scope="session")
def speech_file(tmp_path_factory) -> Path:
    """Return 1.21 s of stereo audio at 44.1 kHz, which makes 30 frames."""
    return write_sound(tmp_path_factory.mktemp("speech") / "a.wav", 1.21, rate_hz=44_100, layout="stereo")

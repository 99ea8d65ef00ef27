"""What the tests of the whole share: a saved pipeline, a portrait and speech."""

from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image
from sounds import write_sound

# Properties are what is tested, not how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    from pipelines import small_pipeline  # most tests here need none of it

    folder = tmp_path_factory.mktemp("model") / "small"
    small_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def portrait_file(tmp_path_factory) -> Path:
    """A real photograph with one face."""
    path = tmp_path_factory.mktemp("portrait") / "face.png"
    Image.fromarray(pytest.importorskip("skimage.data").astronaut()).save(path)
    return path


@pytest.fixture(scope="session")
def speech_file(tmp_path_factory) -> Path:
    """1.21 s at 44.1 kHz in stereo, which are 30 frames."""
    return write_sound(tmp_path_factory.mktemp("speech") / "a.wav", 1.21, rate_hz=44_100, layout="stereo")

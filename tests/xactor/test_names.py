"""Test that names of files with colons, and long names, are read and written as any others."""

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from sounds import write_sound

from xactor.atomic_path import atomic_path
from xactor.media import join_videos, read_audio, read_frames, read_span, remux, write_video

NAMES = [
    "a:b.mp4",
    "10:30 interview.mp4",
    "C:clip",
    "file:x.mp4",
    "http:x.mp4",
    "concat:a|b.mp4",
    "%d x#?.mp4",
    "-i",
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_relative_path_is_no_protocol(here, name):
    pictures = np.zeros((6, 32, 32, 3), np.uint8)
    assert write_video(name, pictures, samples=np.zeros(0, np.float32)) == 6
    assert os.listdir() == [name]
    assert len(list(read_frames(name))) == len(list(read_span(name))) == 6
    assert len(list(read_frames(Path(name)))) == 6
    sound = write_sound(here / "s.wav", 0.2).rename(here / f"sound {name}")
    assert join_videos([name, name], f"joined {name}", samples=read_audio(sound.name)) == 12
    remux(f"joined {name}", f"plain {name}")
    assert len(list(read_frames(f"plain {name}"))) == 12
    with pytest.raises(ValueError, match="no such file"):
        list(read_frames(f"no {name}"))
    Path(f"bad {name}").write_text("text")
    with pytest.raises(ValueError, match=rf"^bad {re.escape(name)}: cannot be decoded \(") as raised:
        list(read_frames(f"bad {name}"))
    assert "file:bad" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["x" * 235, "x" * 255, "x" * 251 + ".mp4", "\u00e9" * 127, "x" + "\u4e2d" * 84]
)
def test_a_long_name_has_a_legal_temporary_name(here, name):
    for target in (name, here / name):
        with atomic_path(target) as partial:
            assert len(os.fsencode(partial.name)) <= 255
            assert unicodedata.is_normalized("NFC", partial.name)
            partial.write_text("new")
        assert Path(name).read_text() == "new"
        assert os.listdir() == [name]


def test_a_long_name_of_a_video_is_written(here):
    name = "v" * 251 + ".mp4"
    write_video(name, np.zeros((2, 32, 32, 3), np.uint8), samples=np.zeros(0, np.float32))
    assert len(list(read_frames(name))) == 2

"""Test `xactor dub` with the model in the box: what changes, what stays, and what is refused."""

import json
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from footage_files import NTSC, frame_planes, noise_video, times
from sounds import voice, write_sound
from talkers import Talker, write_timed

from xactor.cli import main
from xactor.footage.track import follow_face
from xactor.media import read_audio
from xactor.media.footage import Footage


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("speech") / "speech.wav", 0.9)


@pytest.fixture(scope="module")
def dubbed(tmp_path_factory):
    """Dub a clip at 29.97 fps of a person, a cut to a wall, and back. Return video, speech and output."""
    folder = tmp_path_factory.mktemp("dubbed")
    talker = Talker(0, seed=3, seconds=1.2)
    frames = talker.frames[[min(int(time * 25), len(talker.frames) - 1) for time in NTSC]].copy()
    # A taller picture, so that the face is not all of it.
    wall = np.random.default_rng(0).integers(90, 110, (40, frames.shape[2], 3), np.uint8)
    frames = np.stack([np.concatenate([frame, wall]) for frame in frames])
    frames[14:18] = np.random.default_rng(1).integers(90, 110, frames.shape[1:], np.uint8)
    source, speech, output = folder / "in.mp4", folder / "speech.wav", folder / "out.mp4"
    write_timed(source, frames, NTSC, talker.samples)
    write_sound(speech, samples=Talker(0, seed=11, seconds=float(NTSC[-1]) + 0.033).samples)
    with pytest.raises(SystemExit) as exit_:
        main(["dub", *map(str, ("--video", source, "--audio", speech, "--output", output, "--crf", 0))])
    assert exit_.value.code == 0
    return source, speech, output


def test_only_the_mouth_of_a_dubbed_face_changes(dubbed):
    source, speech, output = dubbed
    track = follow_face(Footage.of(source))
    assert times(output) == pytest.approx(times(source), abs=1e-4)
    changed = []
    for n, (old, new) in enumerate(zip(frame_planes(source), frame_planes(output), strict=True)):
        different = [a != b for a, b in zip(old, new, strict=True)]
        changed.append(any(plane.any() for plane in different))
        if not track.usable[n]:
            assert not changed[n], f"frame {n} shows no face and has changed"
            continue
        # Above the tip of the nose and outside the lower face, no pixel differs.
        left, top, right, bottom = track.boxes[n]
        margin = 0.15 * (bottom - top)
        nose = (top + bottom) / 2
        for plane in different:
            scale = len(different[0]) // len(plane)
            rows, columns = np.nonzero(plane)
            if len(rows):
                assert rows.min() * scale > nose - margin / 2
                assert rows.max() * scale < bottom + 3 * margin
                assert left - 2 * margin < columns.min() * scale
                assert columns.max() * scale < right + 2 * margin
    assert not any(changed[14:18])
    assert sum(changed) >= 20
    with av.open(str(output)) as container:
        assert json.loads(container.metadata["comment"])["ai_generated"] is True
    assert len(read_audio(output)) / 16_000 == pytest.approx(len(read_audio(speech)) / 16_000, abs=0.02)


def test_paths_and_sounds_that_cannot_work_are_refused_in_one_line(dubbed, tmp_path, capsys):
    source, speech, _ = dubbed
    silence = write_sound(tmp_path / "silence.wav", samples=np.zeros(16_000, np.float32))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "out.mp4"
    cases = [
        ((source, speech, source), "would replace what it is made from"),
        ((tmp_path / "none.mp4", speech, target), "no such file"),
        ((speech, speech, target), "no video track"),
        ((source, silence, target), "the sound is silent"),
        ((source, speech, tmp_path / "out" / "out.avi"), "must be an .mp4"),
    ]
    before = source.read_bytes()
    for paths, message in cases:
        arguments = zip(("--video", "--audio", "--output"), map(str, paths), strict=True)
        with pytest.raises(SystemExit) as exit_:
            main(["dub", *(word for pair in arguments for word in pair)])
        assert exit_.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        assert message in error
    assert source.read_bytes() == before
    assert not any((tmp_path / "out").iterdir())


def test_a_video_without_a_face_passes_with_a_note(tmp_path, speech, capsys):
    source = noise_video(tmp_path / "in.mp4", seconds=NTSC, size=(128, 96))
    output = tmp_path / "out.mp4"
    with pytest.raises(SystemExit) as exit_:
        main(["dub", *map(str, ("--video", source, "--audio", speech, "--output", output, "--crf", 0))])
    assert exit_.value.code == 0
    printed = capsys.readouterr()
    assert "no face is found, so no frame is changed" in printed.err
    assert f"{output}: 0 of 28 frames changed" in printed.out
    for old, new in zip(frame_planes(source), frame_planes(output), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))


def test_a_held_frame_and_a_cut_sound_have_the_right_length(tmp_path, capsys):
    source = noise_video(tmp_path / "in.mp4", seconds=NTSC[:10], size=(128, 96))
    speech = write_sound(tmp_path / "long.wav", 1.0, samples=voice(1.0))
    for choice, frames, seconds in (("hold", 30, 1.0), ("cut", 10, 10 * 1001 / 30_000)):
        output = tmp_path / f"{choice}.mp4"
        paths = ("--video", source, "--audio", speech, "--output", output, "--when-longer", choice)
        with pytest.raises(SystemExit) as exit_:
            main(["dub", *map(str, paths)])
        assert exit_.value.code == 0
        assert "longer than the picture" in capsys.readouterr().err
        shown = times(output)
        assert len(shown) == frames
        assert all(a < b for a, b in pairwise(shown))
        assert len(read_audio(output)) / 16_000 == pytest.approx(seconds, abs=0.02)


def test_a_model_that_cannot_dub_is_refused(model_folder, dubbed, tmp_path, capsys):
    source, speech, _ = dubbed
    paths = ("--video", source, "--audio", speech, "--output", tmp_path / "out.mp4", "--model", model_folder)
    with pytest.raises(SystemExit) as exit_:
        main(["dub", *map(str, paths)])
    assert exit_.value.code == 2
    assert "such as the model in the box" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())

"""Test curation's stages without Ray: sync of sound and pictures, shots, measures, names and saved progress."""

import logging
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from films import film, join

from xactor.media import read_audio, read_frames, write_video
from xactor_platform.curation.assemble import assemble
from xactor_platform.curation.curation_config import Gates
from xactor_platform.curation.curation_stage import Unusable
from xactor_platform.curation.cut import Cut
from xactor_platform.curation.measures import blur, face_thumbnail, occluded, speech_db
from xactor_platform.curation.messages import Ended, Fate, Prints, Probed, Video
from xactor_platform.curation.people import Rules, known_clip, split_of
from xactor_platform.curation.probe import read_facts
from xactor_platform.curation.scan import MAX_FRAMES, Scan, pieces_of, spans_of, split_shot
from xactor_platform.curation.shots import shot_starts
from xactor_platform.curation.track import Track
from xactor_platform.curation.video_files import key_of, list_videos
from xactor_platform.curation.video_progress import VideoProgress
from xactor_platform.curation.write import Write

RULES = Rules(min_similarity=None, speakers_are_listed=False, max_copied=1, held_out=0.3, seed=0)


def curate_one_clip(video: Path, tmp_path: Path, **gates) -> tuple[Path, Fate]:
    """Pass a video with one clip through the stages' functions, without SyncNet. Return the clip's path and fate."""
    asked = Video(key="k", name=video.name, uri=str(video), corpus="c", speaker="s")
    facts = read_facts(str(video), max_input_bytes=1 << 30, max_s=100, max_pixels=1 << 20)
    probed = Probed(video=asked, facts=facts)
    (piece,) = pieces_of(probed, *Scan.make(max_s=100)((probed, None)))
    (piece,) = Track.make()(piece)
    bounds = {"min_crop_px": 64, "min_speech_db": 0, "max_blur": 1, "max_occluded": 1, "min_lips": 0, **gates}
    (piece,) = Cut.make(gates=Gates(**bounds), size_px=128)(piece)
    (ended,) = Write.make(folder=str(tmp_path / "out"))(piece)
    (fate,) = ended.fates
    return tmp_path / "out" / ".parts" / "k" / f"{fate.clip}.mp4", fate


FLASHES = (0.52, 1.31, 2.07, 2.9)
"""Times of the flashes, in seconds."""


@pytest.mark.parametrize("rate", ["25", "29.97", "50", "variable", "rotated"])
def test_a_flash_and_a_beep_stay_together_within_half_a_frame(talkers, tmp_path, rate):
    from talkers import write_timed

    times = {
        "25": [Fraction(n, 25) for n in range(90)],
        "29.97": [Fraction(n * 1001, 30_000) for n in range(105)],
        "50": [Fraction(n, 50) for n in range(180)],
        "variable": [Fraction(n, 100) for n in range(360) if n % 7 in (0, 2, 3)],
        "rotated": [Fraction(n, 25) for n in range(90)],
    }[rate]
    frames = np.repeat(talkers[1].frames[:1], len(times), axis=0)
    sound = np.zeros(int(3.6 * 16_000), np.float32)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2400) / 16_000)
    beeps_s = []
    for flash_s in FLASHES:
        shown = [n for n, time in enumerate(times) if flash_s <= time < flash_s + 0.15]
        frames[shown, :24, :24] = 255
        # The beep starts with the first bright picture.
        beeps_s.append(float(times[shown[0]]))
        first_sample = round(beeps_s[-1] * 16_000)
        sound[first_sample : first_sample + len(tone)] = tone
    # The corner is black in every picture without a flash.
    bright_pictures = np.flatnonzero(frames[:, 0, 0].min(axis=1) == 255)
    frames[~np.isin(np.arange(len(times)), bright_pictures), :24, :24] = 0
    turned = np.rot90(frames, -1, axes=(1, 2)) if rate == "rotated" else frames
    write_timed(tmp_path / "v.mp4", turned, times, sound, rotation=90 if rate == "rotated" else 0)
    clip, fate = curate_one_clip(tmp_path / "v.mp4", tmp_path)
    assert fate.status == "kept", fate
    corner = np.array([picture[2:8, 2:8].mean() for picture in read_frames(clip)])
    bright = corner > (corner.max() + corner.min()) / 2
    seen_s = [n / 25 for n in range(1, len(bright)) if bright[n] and not bright[n - 1]]
    # One value per millisecond. A beep starts after at least 20 ms of silence.
    is_loud = np.abs(read_audio(clip)).reshape(-1, 16).max(axis=1) > 0.2
    heard_s = [n / 1000 for n in range(20, len(is_loud)) if is_loud[n] and not is_loud[n - 20 : n].any()]
    assert len(seen_s) == len(FLASHES)
    assert len(heard_s) == len(FLASHES)
    # Half a frame is 20 ms. The measured start of a beep is up to 2 ms off.
    assert np.abs(np.array(seen_s) - heard_s).max() <= 0.020 + 0.002
    assert np.abs(np.array(heard_s) - beeps_s).max() <= 0.002 + 0.001


@pytest.mark.parametrize(("missing", "frames"), [(0, 50), (201, 50), (401, 49), (1001, 48)])
def test_sound_may_end_within_a_frame(talkers, tmp_path, missing, frames):
    talker = talkers[0]
    write_video(tmp_path / "v.mp4", talker.frames[:50], samples=talker.samples[: 50 * 640])
    samples = talker.samples[: 50 * 640 - missing]
    assert spans_of(tmp_path / "v.mp4", samples, (), 100) == [(0, frames)]


def test_a_stream_of_joined_files_is_scanned_whole(tmp_path):
    """FFmpeg takes the jump of the clock back for its wrap, and gives the file a length of 26 hours."""
    parts = [film(tmp_path / f"{start_s}.ts", start_s=start_s) for start_s in (100, 0)]
    joined = join(tmp_path / "joined.ts", *parts)
    bounds = {"max_input_bytes": 1 << 30, "max_pixels": 1 << 20}
    facts = read_facts(str(joined), max_s=100, **bounds)
    assert facts.seconds == pytest.approx(12.1, abs=0.1)
    asked = Video(key="k", name="joined.ts", uri=str(joined), corpus="c", speaker="s")
    spans, samples = Scan.make(max_s=100)((Probed(video=asked, facts=facts), None))
    assert (spans[0][0], spans[-1][1]) == (0, pytest.approx(facts.seconds * 25, abs=3))
    assert len(samples) / 16_000 == pytest.approx(facts.seconds, abs=0.1)
    with pytest.raises(Unusable, match="too_long"):
        read_facts(str(joined), max_s=8, **bounds)


def test_a_long_shot_is_split_where_it_is_quiet():
    loudness = np.ones(4000)
    loudness[1980:1990] = 0
    pieces = split_shot(100, 3100, loudness)
    assert pieces[0][0] == 100
    assert pieces[-1][1] == 3100
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert all(0 < end - first <= MAX_FRAMES for first, end in pieces)
    assert split_shot(0, MAX_FRAMES, loudness) == [(0, MAX_FRAMES)]


def test_shots_begin_at_cuts_and_not_at_flashes_or_gestures():
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 255, (36, 64, 3)) for _ in range(3)]
    frames = [scenes[0]] * 30 + [scenes[1]] * 40 + [scenes[2]] * 3 + [scenes[0]] * 30
    moving = [np.clip(f + rng.integers(-4, 5, f.shape), 0, 255).astype(np.uint8) for f in frames]
    # Frame 15 is a flash. From frame 40 to 59, a hand comes up.
    moving[15] = np.full_like(moving[0], 255)
    for n in range(40, 60):
        moving[n] = moving[n].copy()
        moving[n][36 - (n - 40) :, 20:40] = 120
    moving[60:70] = [moving[59]] * 10
    assert shot_starts(iter(moving)) == ([0, 30, 70, 73], 103)
    assert shot_starts(iter([])) == ([], 0)


@pytest.mark.parametrize("length", [8, 25, 50])
def test_no_clip_contains_part_of_a_dissolve(length):
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 255, (36, 64, 3)) for _ in range(2))
    share = np.concatenate([np.zeros(60), np.arange(1, length + 1) / (length + 1), np.ones(60)])
    frames = [before * (1 - mix) + after * mix for mix in share]
    noisy = (np.clip(frame + rng.integers(-4, 5, frame.shape), 0, 255).astype(np.uint8) for frame in frames)
    starts, count = shot_starts(noisy)
    clips = [(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True) if b - a >= 25]
    assert len(clips) == 2
    for first, end in clips:
        assert len(set(share[first:end].round())) == 1
        # A share of the other shot below 0.2 is hardly visible. Each clip keeps most of the 60 frames of its shot.
        assert np.abs(share[first:end] - share[first:end].round()).max() < 0.2
        assert end - first >= 40


def test_the_measures_distinguish_bad_from_good(talkers):
    import cv2

    face = talkers[1].frames[0]
    soft = [blur(cv2.GaussianBlur(face, (0, 0), sigma)) for sigma in (0.01, 1, 2, 4)]
    assert soft == sorted(soft)
    assert soft[-1] - soft[0] > 0.3
    points = np.array([(55, 65), (105, 65), (80, 90)], np.float32)
    open_faces = [face_thumbnail(picture, points) for picture in talkers[1].frames[::5]]
    covered = []
    for n, picture in enumerate(talkers[1].frames[::5]):
        barred = picture.copy()
        if n % 3 == 0:
            barred[92:125, 40:120] = 15
        covered.append(face_thumbnail(barred, points))
    assert occluded(np.stack(open_faces)) < 0.1
    assert occluded(np.stack(covered)) > 0.3
    time_s = np.arange(32_000) / 16_000
    assert speech_db(np.sin(2 * np.pi * 300 * time_s).astype(np.float32), 640) < 1
    assert speech_db(talkers[0].samples, 640) > 15


def placed(frames: np.ndarray, left: int, top: int) -> np.ndarray:
    """Return frames in a wider grey picture of 320 x 240 px, in which parts of the frames may be cut off."""
    wide = np.full((len(frames), 240 + 2 * 160, 320 + 2 * 160, 3), 128, np.uint8)
    height, width = frames.shape[1:3]
    wide[:, 160 + top : 160 + top + height, 160 + left : 160 + left + width] = frames
    return wide[:, 160:-160, 160:-160]


def test_no_clip_shows_invented_pixels(talkers, tmp_path):
    frames = talkers[1].frames[:50]
    write_video(tmp_path / "v.mp4", placed(frames, 80, 100), samples=talkers[1].samples[: 50 * 640])
    clip, fate = curate_one_clip(tmp_path / "v.mp4", tmp_path, max_outside=1)
    assert fate.status == "kept", fate
    assert fate.outside is not None
    # A part of the square was below the picture. In the clip, the picture's rows are not repeated.
    assert fate.outside > 0.03
    pictures = np.stack(list(read_frames(clip))).astype(int)
    repeated = np.abs(np.diff(pictures[:, -8:], axis=1)).mean(axis=(0, 2, 3))
    assert repeated.min() > 0.1
    _, fate = curate_one_clip(tmp_path / "v.mp4", tmp_path / "again", max_outside=fate.outside / 2)
    assert (fate.status, fate.reason) == ("dropped", "cut_off")
    assert "of the face's square lies outside the picture" in fate.detail


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda frames: np.repeat(frames[:1], len(frames), axis=0), "still"),
        (lambda frames: np.rot90(frames, axes=(1, 2)), "turned"),
        (lambda frames: frames, ""),
    ],
    ids=["still", "on its side", "talking"],
)
def test_a_face_that_does_not_speak_upright_is_dropped(talkers, tmp_path, change, reason):
    frames = np.ascontiguousarray(change(talkers[1].frames[:50]))
    write_video(tmp_path / "v.mp4", frames, samples=talkers[1].samples[: 50 * 640])
    _, fate = curate_one_clip(tmp_path / "v.mp4", tmp_path, min_lips=Gates().min_lips)
    assert fate.reason == reason, fate


def test_light_turns_and_smiles_cover_no_face(talkers):
    """The colors of the light change, and the head moves: both change a face's brightness, and neither covers it."""
    points = np.array([(55, 65), (105, 65), (80, 90)], np.float32)
    faces = talkers[1].frames[::5].astype(np.float32)
    swing = 0.2 * np.sin(np.linspace(0, 6, len(faces)))
    tinted = faces * np.stack([1 + swing, np.ones_like(swing), 1 - swing], axis=1)[:, None, None]
    tinted = tinted.clip(0, 255).astype(np.uint8)
    assert occluded(np.stack([face_thumbnail(face, points) for face in tinted])) < 0.1
    # A blue cup covers the mouth in a third of the frames.
    for number in range(0, len(tinted), 3):
        tinted[number, 92:125, 55:105] = (60, 80, 140)
    assert occluded(np.stack([face_thumbnail(face, points) for face in tinted])) > 0.3


def test_a_persons_clips_are_all_held_out_or_none_is():
    # A long clip has at least 10 s, which are 250 frames.
    splits_by_person = {
        name: [split_of(frames, name, RULES) for frames in (249, 250)] for name in map(str, range(300))
    }
    assert {tuple(splits) for splits in splits_by_person.values()} == {("test", "test"), ("short", "long")}
    assert 60 < sum(splits == ["test", "test"] for splits in splits_by_person.values()) < 120


def test_keys_are_plain_and_unique(tmp_path):
    names = ["a.mp4", "b/a.mp4", "A.mp4", "ä ö.mp4", "../x.mp4", "." * 300 + ".mp4"]
    keys = [key_of(name) for name in names]
    assert len({key.lower() for key in keys}) == len(names)
    assert all(key.replace("-", "").replace("_", "").isalnum() and len(key) < 64 for key in keys)
    with pytest.raises(ValueError, match="no such folder"):
        list_videos(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no videos found"):
        list_videos(str(tmp_path))


def test_files_that_are_not_tried_are_named(tmp_path, caplog):
    for name in ("A.MTS", "b.m2ts", "c.ogv", "notes.txt", "more.txt", "movie", ".hidden.mp4"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "d.mp4").write_bytes(b"x")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with caplog.at_level(logging.WARNING):
        videos, refused = list_videos(str(tmp_path / "in"))
    assert ([video.name for video in videos], refused) == (["A.MTS", "b.m2ts", "c.ogv"], [])
    assert (
        "not tried, because their suffixes are not those of videos: 2 .txt, 1 without a suffix" in caplog.text
    )
    assert "linked: a link to a folder, whose videos are not tried" in caplog.text


def test_saved_progress_is_read_back(tmp_path):
    progress = VideoProgress(str(tmp_path), "v")
    fate = Fate(video="v.mp4", status="kept", clip="v-0000-00", end_s=2.0)
    words, pictures = np.arange(50, dtype=np.uint32), np.arange(10, dtype=np.uint64) << 60
    levels = np.arange(50, dtype=np.uint8)
    prints = Prints(words=words, levels=levels, pictures=pictures, face=np.ones(4, np.float32))
    progress.save_spans([(0, 50), (50, 90)])
    assert progress.spans() == [(0, 50), (50, 90)]
    ended = Ended(key="v", number=1, of=2, fates=(fate,), prints={fate.clip: prints}, looked_s=2.0)
    track = np.ones((50, 57), np.float32)
    landmarks = np.ones((8, 165, 2), np.float32)
    members = {"mp4": b"mp4", "controls.npy": track, "landmarks.npy": landmarks, "json": {"frames": 50}}
    progress.finish(ended, {"v-0000-00": members})
    assert progress.finished(0) is None
    found = progress.finished(1)
    assert found is not None
    (read_back,) = found.prints.values()
    assert all(np.array_equal(vars(read_back)[name], array) for name, array in vars(prints).items())
    assert replace(found, prints={}) == replace(ended, earlier=True, prints={})
    assert progress.all_results() == ([fate], [("v-0000-00", {"frames": 50})])
    found = progress.members("v-0000-00")
    assert found["mp4"] == b"mp4"
    np.testing.assert_array_equal(found["controls.npy"], track)
    np.testing.assert_array_equal(found["landmarks.npy"], landmarks)
    progress.delete()
    assert progress.spans() is None
    assert list((tmp_path / ".parts").iterdir()) == []


def test_a_group_that_has_its_report_is_not_assembled_again(tmp_path):
    prints = Prints(
        words=np.zeros(50, np.uint32),
        levels=np.zeros(50, np.uint8),
        pictures=np.zeros(10, np.uint64),
        face=None,
    )
    clips = {}
    for key in ("a", "b"):
        fate = Fate(video=f"{key}.mp4", status="kept", clip=f"{key}-0000-00", end_s=2.0)
        clips[fate.clip] = replace(known_clip(fate, prints), person=key, split="short")
        ended = Ended(key=key, number=0, of=1, fates=(fate,), looked_s=2.0)
        members = {
            "mp4": b"mp4",
            "controls.npy": np.ones((50, 57), np.float32),
            "landmarks.npy": np.ones((8, 165, 2), np.float32),
            "json": {"frames": 50, "fps": 25},
        }
        VideoProgress(str(tmp_path), key).finish(ended, {f"{key}-0000-00": members})
    assert assemble(str(tmp_path), 0, ["a", "b"], 1 << 20, clips) == ["short-000000.tar"]
    shard = (tmp_path / "short-000000.tar").read_bytes()
    assert b"b-0000-00.mp4" in shard
    # A worker that dies while it deletes the progress leaves a part of it. Ray then retries the task.
    VideoProgress(str(tmp_path), "b").save_spans([(0, 50)])
    assert assemble(str(tmp_path), 0, ["a", "b"], 1 << 20, clips) == []
    assert (tmp_path / "short-000000.tar").read_bytes() == shard
    assert list((tmp_path / ".parts").iterdir()) == []

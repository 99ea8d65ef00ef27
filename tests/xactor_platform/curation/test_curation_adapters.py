"""Test that the files of published datasets determine which videos, and which parts of them, are examined."""

import json
from pathlib import Path

import pytest

from xactor_platform.curation.adapters import find_videos
from xactor_platform.curation.messages import Segment


def touch(folder: Path, *names: str) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return str(folder)


def test_hdtf_names_parts_of_videos_and_where_the_face_is(tmp_path):
    meta = tmp_path / "HDTF_dataset"
    meta.mkdir()
    (meta / "RD_annotion_time.txt").write_text(
        "Radio11.mp4 00:30-01:00 1:01:30-1:02:30\nRadio2.mp4 00:00-00:09\n\n"
    )
    (meta / "RD_crop_wh.txt").write_text("Radio11_0.mp4 412 599 0 599\n")
    (meta / "RD_resolution.txt").write_text("Radio11.mp4 720\n")
    (meta / "WDA_annotion_time.txt").write_text(
        "BarackObama_000.mp4 0:10-0:20 0:30-0:40\nGone.mp4 0:01-0:05\n"
    )
    (meta / "WDA_video_url.txt").write_text("BarackObama_000 https://www.youtube.com/watch?v=abcdefghij0\n")
    videos = touch(tmp_path / "v", "RD_Radio11.mp4", "sub/abcdefghij0.webm", "Radio2_0.mp4", "holiday.mp4")
    found, missing = find_videos(videos, "hdtf", str(meta))
    by_speaker = {video.speaker: video for video in found}
    assert by_speaker.keys() == {"RD_Radio11", "RD_Radio2", "WDA_BarackObama_000"}
    assert {video.corpus for video in found} == {"hdtf"}
    first, second = by_speaker["RD_Radio11"].segments
    assert first == Segment(start_s=30, end_s=60, box=(412 / 1280, 0, 1011 / 1280, 599 / 720))
    assert second == Segment(start_s=3690, end_s=3750)
    # The file of this video is a cut clip already.
    assert by_speaker["RD_Radio2"].segments == ()
    assert by_speaker["WDA_BarackObama_000"].name == "sub/abcdefghij0.webm"
    assert [(fate.video, fate.status, fate.reason) for _, fate in missing] == [
        ("WDA_Gone", "dropped", "missing")
    ]
    (meta / "RD_resolution.txt").write_text("Radio11.mp4 0\n")
    with pytest.raises(ValueError, match=r"Radio11: the height in RD_resolution\.txt must be >= 1, got 0"):
        find_videos(videos, "hdtf", str(meta))
    (meta / "RD_resolution.txt").unlink()
    (meta / "WRA_annotion_time.txt").write_text("A.mp4 00:40-00:30\n")
    with pytest.raises(
        ValueError, match=r"A: '00:40-00:30' is no time such as 00:30-01:00 \(it must end after it begins\)"
    ):
        find_videos(videos, "hdtf", str(meta))
    with pytest.raises(ValueError, match="holds none of RD_annotion_time.txt"):
        find_videos(videos, "hdtf", str(tmp_path))
    with pytest.raises(ValueError, match="needs --metadata: the folder"):
        find_videos(videos, "hdtf", None)


def test_celebv_hq_names_faces_in_parts_of_videos(tmp_path):
    def clip(source: str, start: float, end: float, **box) -> dict:
        edges = {"top": 0.1, "bottom": 0.8, "left": 0.4, "right": 0.9, **box}
        return {
            "ytb_id": source,
            "duration": {"start_sec": start, "end_sec": end},
            "bbox": edges,
            "version": "v0.1",
        }

    info = {
        "abc_1": clip("abc", 9, 12),
        "abc_0": clip("abc", 1.5, 4.5),
        "def_0": clip("def", 0, 3),
        "gone_0": clip("gone", 0, 3),
        "up_0": clip("../../etc/passwd", 0, 3),
    }
    (tmp_path / "info.json").write_text(json.dumps({"meta_info": {}, "clips": info}))
    videos = touch(tmp_path / "v", "abc.mp4", "def_0.mp4", "other.mp4")
    found, missing = find_videos(videos, "celebv-hq", str(tmp_path / "info.json"))
    by_speaker = {video.speaker: video for video in found}
    assert by_speaker.keys() == {"abc", "def"}
    assert [(s.start_s, s.end_s, s.box) for s in by_speaker["abc"].segments] == [
        (1.5, 4.5, (0.4, 0.1, 0.9, 0.8)),
        (9, 12, (0.4, 0.1, 0.9, 0.8)),
    ]
    assert by_speaker["def"].segments == ()
    assert {(fate.video, fate.reason) for _, fate in missing} == {
        ("gone", "missing"),
        ("../../etc/passwd", "bad_name"),
    }
    for broken, says in (
        ("{}", "not CelebV-HQ's"),
        ("[", "not CelebV-HQ's"),
        (json.dumps({"clips": {"x": clip("abc", 3, 2)}}), "x: needs 0 <= start_sec < end_sec"),
        (json.dumps({"clips": {"x": clip("abc", 1, 2, left=1.0)}}), "x: needs"),
    ):
        (tmp_path / "info.json").write_text(broken)
        with pytest.raises(ValueError, match=says):
            find_videos(videos, "celebv-hq", str(tmp_path / "info.json"))


def test_ravdess_videos_are_recognised_by_their_names(tmp_path):
    talks = ("Actor_07/01-01-05-02-01-02-07.mp4", "Actor_24/01-02-01-01-02-01-24.mp4")
    others = ("Actor_07/02-01-05-02-01-02-07.mp4", "Actor_07/01-01-09-02-01-02-07.mp4", "Actor_07/a.mp4")
    found, missing = find_videos(touch(tmp_path, *talks, *others), "ravdess", None)
    assert {(video.name, video.speaker) for video in found} == {
        (talks[0], "ravdess-07"),
        (talks[1], "ravdess-24"),
    }
    assert missing == []
    with pytest.raises(ValueError, match="none of its 1 videos belongs to ravdess"):
        find_videos(touch(tmp_path / "Actor_07" / "deep", "b.mp4"), "ravdess", None)

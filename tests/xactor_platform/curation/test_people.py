"""Test who is who: speakers from folders and lists, copies by fingerprints, people by clusters of faces."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from xactor.faces import CropBox, Face
from xactor.faces.landmarks import crop_landmarks
from xactor.media import read_audio, read_frames, write_video
from xactor.metrics.identity import five_points
from xactor_platform.curation.adapters import find_videos
from xactor_platform.curation.clusters import count_pairs, merge_similar, numbered, similarities
from xactor_platform.curation.copies import find_copies, identical_files
from xactor_platform.curation.fingerprint import picture_bits, shared_frames, sound_levels, sound_words
from xactor_platform.curation.messages import Prints, Segment
from xactor_platform.curation.people import KnownClip, Rules, decide, read_people, write_people
from xactor_platform.curation.people_report import people_lines
from xactor_platform.curation.recognise import identity_facts, installed_identity, restored_face
from xactor_platform.curation.video_files import common_folder, folder_speaker, list_videos, video_of
from xactor_platform.storage.location import Location

REAL = Path(os.environ.get("XACTOR_REAL_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


@pytest.mark.parametrize(
    ("names", "speakers"),
    [
        (["alice/1.mp4", "alice/2.mp4", "bob/1.mp4"], ["alice", "alice", "bob"]),
        (["id1/video/1.mp4", "id1/other/1.mp4", "id2/video/1.mp4"], ["id1", "id1", "id2"]),
        (["mead/M03/front/1.mp4", "mead/M03/left/1.mp4", "mead/M07/front/1.mp4"], ["M03", "M03", "M07"]),
        (["a.mp4", "b.mp4", "carol/1.mp4", "carol/2.mp4"], ["a", "b", "carol", "carol"]),
        (
            ["train/id1/x/1.mp4", "train/id2/x/1.mp4", "test/id3/1.mp4", "test/4.mp4"],
            ["id1", "id2", "id3", "test/4"],
        ),
        (["videos/a.mp4", "videos/b.mp4"], ["videos/a", "videos/b"]),
        (["x/y/only.mp4"], ["x/y/only"]),
    ],
)
def test_folders_name_speakers(names, speakers):
    below = common_folder(names)
    assert [folder_speaker(name, below) for name in names] == speakers


def test_a_list_names_speakers(tmp_path):
    videos = tmp_path / "videos"
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"x")
    table = tmp_path / "speakers.csv"
    table.write_text("speaker,file\nann,a/1.mp4\nben,a/2.mp4\nann,./b/1.mp4\nben,c/gone.mp4\n")
    found, missing = find_videos(str(videos), "folder", str(table))
    by_name = {video.name: video.speaker for video in found}
    assert by_name == {"a/1.mp4": "ann", "a/2.mp4": "ben", "b/1.mp4": "ann"}
    assert [(fate.video, fate.reason) for _, fate in missing] == [("c/gone.mp4", "missing")]
    for text, says in (
        ("file,speaker\na/1.mp4,ann\n", r"names no speaker of a/2.mp4 \(and 1 more videos\)"),
        ("file,speaker\na/1.mp4,ann\na/1.mp4,ben\n", "a/1.mp4 has two speakers: ann and ben"),
        ("file,speaker\na/1.mp4,\n", "line 2 needs a file and a speaker"),
        ("a/1.mp4,ann\n", r"needs the columns file and speaker, got \['a/1.mp4', 'ann'\]"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=says):
            find_videos(str(videos), "folder", str(table))


def test_of_identical_files_the_first_of_the_plan_is_kept(tmp_path):
    for name, content in {"a": b"xyz", "b": b"xyz", "c": b"abc", "d": b"xyzz", "e": b"xyz", "f": b""}.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    videos, _ = list_videos(str(tmp_path))
    assert [video.size_bytes for video in videos] == [3, 3, 3, 4, 3, 0]
    # Video b is from an earlier run, so its group comes first. Segments of e are another part of the same file.
    order = {videos[n].key: place for place, n in enumerate((1, 0, 2, 3, 4, 5))}
    videos[4] = replace(videos[4], segments=(Segment(start_s=0, end_s=1),))
    kept, repeated = identical_files(videos, order)
    assert [video.name for video in kept] == ["b.mp4", "c.mp4", "d.mp4", "e.mp4", "f.mp4"]
    assert [(video.name, first.name) for video, first in repeated] == [("a.mp4", "b.mp4")]
    gone = video_of(str(tmp_path), "gone.mp4", size_bytes=3)
    kept, repeated = identical_files([*videos[:1], gone], {videos[0].key: 0, gone.key: 1})
    assert (len(kept), repeated) == (2, [])


def prints_of(frames, samples: np.ndarray, face: np.ndarray | None = None) -> Prints:
    pictures = np.array([picture_bits(picture) for picture in islice(frames, 0, None, 5)], np.uint64)
    return Prints(words=sound_words(samples), levels=sound_levels(samples), pictures=pictures, face=face)


def encoded(path: Path, frames, samples: np.ndarray, **options) -> Prints:
    """Return the prints of a clip after it was encoded."""
    write_video(path, frames, samples=samples, **options)
    return prints_of(read_frames(path), read_audio(path)[: len(frames) * 640])


def resized(frames, side: int):
    return [cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in frames]


def copies_of(*prints: Prints, max_copied: float = 0.5) -> dict[int, int]:
    return find_copies(prints, 0, max_copied)[0]


def test_copies_are_found_and_other_sentences_are_not(talkers, tmp_path):
    from talkers import Talker

    a, b = talkers
    original = encoded(tmp_path / "a.mp4", a.frames, a.samples, crf=18)
    copies = {
        "encoded again": (a.frames, a.samples, {"crf": 34}),
        "resized": (resized(a.frames, 96), a.samples, {}),
        "trimmed by 1 s": (a.frames[25:], a.samples[25 * 640 :], {}),
        "trimmed at both ends": (a.frames[13:60], a.samples[13 * 640 : 60 * 640], {"crf": 30}),
        # The sound is half a frame apart, as if the video began between two frames.
        "between frames": (a.frames[11:-1], np.roll(a.samples, -320)[11 * 640 : -640], {}),
    }
    for name, (frames, samples, options) in copies.items():
        copy = encoded(tmp_path / "copy.mp4", frames, samples, **options)
        assert copies_of(original, copy) == {1: 0}, name
        # The copy comes first: the rest of the original is new if it is long enough.
        assert copies_of(copy, original) == ({} if name == "trimmed at both ends" else {1: 0}), name
    assert shared_frames(original, encoded(tmp_path / "b.mp4", a.frames[25:], a.samples[25 * 640 :]), 25) == (
        0,
        75,
    )
    other_sentence = Talker(1, seed=5, seconds=2)
    others = (
        encoded(tmp_path / "c.mp4", other_sentence.frames, other_sentence.samples),
        encoded(tmp_path / "d.mp4", b.frames, b.samples),
        # Another person, or another camera, with the same sound.
        encoded(tmp_path / "e.mp4", b.frames[: len(a.frames)], a.samples),
        # A dubbed video: the same pictures with another sound.
        encoded(tmp_path / "f.mp4", a.frames[:50], other_sentence.samples),
    )
    for other in others:
        assert copies_of(original, other) == {}


@pytest.mark.skipif(not (REAL / "talking").is_dir(), reason=f"no real clips in {REAL} (XACTOR_REAL_DATA)")
def test_real_sentences_of_one_speaker_are_no_copies(tmp_path):
    prints = []
    clips = sorted((REAL / "talking").glob("*.mp4"))[:5]
    for clip in clips:
        frames, samples = resized(islice(read_frames(clip), 200), 128), read_audio(clip)
        for first in (0, 50, 100, 150):
            prints.append(prints_of(frames[first : first + 50], samples[first * 640 : (first + 50) * 640]))
    assert copies_of(*prints) == {}
    # All shifts are tried here, also those without a common word.
    pairs = [(a, b) for n, a in enumerate(prints) for b in prints[:n]]
    assert not any(shared_frames(a, b, shift) for a, b in pairs for shift in range(-20, 21, 4))
    frames, samples = resized(islice(read_frames(clips[0]), 27, 127), 96), read_audio(clips[0])
    copy = encoded(tmp_path / "copy.mp4", frames, samples[27 * 640 + 200 : 127 * 640 + 200], crf=32)
    assert copies_of(*prints, copy) == {len(prints): 1}


def drawn(rng: np.random.Generator, frames: int = 100) -> Prints:
    """Return random prints."""
    words = rng.integers(1, 2**32, frames, dtype=np.uint32)
    levels = rng.integers(0, 240, frames, dtype=np.uint8)
    pictures = rng.integers(0, 2**63, -(-frames // 5), dtype=np.uint64)
    return Prints(words=words, levels=levels, pictures=pictures, face=None)


def part(prints: Prints, first: int, end: int) -> Prints:
    pictures = prints.pictures[first // 5 : -(-end // 5)]
    return replace(prints, words=prints.words[first:end], levels=prints.levels[first:end], pictures=pictures)


def joined(a: Prints, b: Prints) -> Prints:
    names = ("words", "levels", "pictures")
    return replace(a, **{name: np.concatenate([vars(a)[name], vars(b)[name]]) for name in names})


def test_what_kept_clips_hold_together_counts():
    rng = np.random.default_rng(0)
    a, b, c = (drawn(rng) for _ in range(3))
    # Both halves are copies of the whole. The whole is no copy of one half alone, but of both.
    assert copies_of(joined(a, b), a, b) == {1: 0, 2: 0}
    assert copies_of(a, joined(a, b), b) == {2: 1}
    assert copies_of(a, b, joined(a, b)) in ({2: 0}, {2: 1})
    assert copies_of(a, joined(a, b), max_copied=0.4) == {1: 0}
    assert find_copies([a, joined(a, b), c], 0, 0.5) == ({}, [(0, 1)])
    # A copy of a copy is a copy of the first clip. Clips of earlier runs stay.
    assert copies_of(*[a] * 60) == dict.fromkeys(range(1, 60), 0)
    assert find_copies([a, a, b, a], 3, 0.5)[0] == {3: 0}
    assert copies_of(a, a, max_copied=1) == {}
    assert copies_of() == {}
    quiet = replace(a, words=np.zeros(100, np.uint32))
    assert copies_of(quiet, quiet) == {}


def test_copies_among_many_clips_are_found_in_seconds():
    rng = np.random.default_rng(0)
    clips = [drawn(rng, 50) for _ in range(10_000)]
    copies = [part(clips[n], 10, 50) for n in range(0, 10_000, 100)]
    assert copies_of(*clips, *copies) == {10_000 + n: 100 * n for n in range(100)}


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_clusters_equal_those_of_scipys_average_linkage(seed):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(rng.integers(1, 20), 16))
    members = rng.integers(len(centres), size=rng.integers(2, 150))
    vectors = unit(centres[members] + rng.uniform(0.2, 1.5) * rng.normal(size=(len(members), 16)))
    tree = linkage(vectors, "average", metric="cosine")
    for bound in (0.9, 0.6, 0.3):
        expected = numbered(fcluster(tree, 1 - bound, "distance"))
        np.testing.assert_array_equal(merge_similar(vectors, np.arange(len(vectors)), bound), expected)
    own, other = similarities(vectors, expected)
    cosines = vectors @ vectors.T
    for n in range(len(vectors)):
        same = (expected == expected[n]) & (np.arange(len(vectors)) != n)
        assert own[n] == pytest.approx(
            cosines[n][same].mean() if same.any() else np.nan, abs=1e-5, nan_ok=True
        )
        means = [cosines[n][expected == label].mean() for label in set(expected) - {expected[n]}]
        assert other[n] == pytest.approx(max(means, default=np.nan), abs=1e-5, nan_ok=True)


def test_fixed_clusters_stay_apart_and_identical_vectors_come_together():
    vectors = np.repeat(unit(np.eye(3)), 100, axis=0)
    assert merge_similar(vectors, np.arange(300), 0.9).tolist() == [0] * 100 + [1] * 100 + [2] * 100
    same = vectors[:4]
    fixed = np.array([True, True, False, False])
    merged = merge_similar(same, np.arange(4), 0.9, fixed)
    assert merged[0] != merged[1]
    assert merged.max() == 1
    assert count_pairs(same, np.array([0, 1, 2, 2]), 0.9) == 3


AXES = np.eye(8)
RULES = Rules(min_similarity=0.9, speakers_are_listed=False, max_copied=0.5, held_out=0.5, seed=0)


def clip(name: str, face: np.ndarray, *, prints: Prints | None = None, crop_px: int = 300) -> KnownClip:
    """Return a clip of the speaker before the slash, whose sound and pictures are drawn from the name."""
    drawn_prints = prints or drawn(np.random.default_rng([*name.encode()]))
    return KnownClip(
        clip=name.replace("/", "-"),
        video=f"{name}.mp4",
        speaker=name.split("/")[0],
        frames=len(drawn_prints.words),
        crop_px=crop_px,
        prints=replace(drawn_prints, face=unit(face)),
    )


def people_of(clips: list[KnownClip]) -> dict[str, str]:
    return {found.video.removesuffix(".mp4"): found.person for found in clips}


def test_people_come_from_folders_and_faces():
    ann, ben = AXES[0], AXES[1]
    # Ann's third clip shows her in another light. The folder "talks" holds two people, and Ann is one of them.
    clips = [clip("ann/1", ann), clip("ann/2", ann), clip("ann/3", ann + 0.6 * AXES[2]), clip("ben/1", ben)]
    clips += [clip("talks/1", ann + 0.1 * AXES[3]), clip("talks/2", AXES[4])]
    people = people_of(decide([], clips, replace(RULES, min_similarity=0.9)))
    assert people["ann/1"] == people["ann/2"] == people["talks/1"] == "ann"
    assert people["talks/2"] == "talks"
    assert people["ben/1"] == "ben"
    # A similarity of 0.857 is too small for two speakers, but not too different for one folder (0.875 is).
    assert people["ann/3"] == "ann-2"
    closer = [*clips[:2], clip("ann/3", ann + 0.5 * AXES[2]), clip("other/1", ann + 0.5 * AXES[5])]
    people = people_of(decide([], closer, RULES))
    assert people == {"ann/1": "ann", "ann/2": "ann", "ann/3": "ann", "other/1": "other"}
    # Listed speakers are not divided, and one of their faces joins them to others.
    people = people_of(decide([], clips, replace(RULES, speakers_are_listed=True)))
    assert people == {
        **{f"ann/{n}": "ann" for n in (1, 2, 3)},
        "ben/1": "ben",
        "talks/1": "talks",
        "talks/2": "talks",
    }
    # Without a model, people are speakers, and those of identical files are one.
    rules = replace(RULES, min_similarity=None)
    people = people_of(decide([], clips, rules, [("talks", "ben")]))
    assert {name: people[name] for name in ("ann/3", "ben/1", "talks/1")} == {
        "ann/3": "ann",
        "ben/1": "ben",
        "talks/1": "ben",
    }


def test_no_person_is_both_held_out_and_trained_on():
    rng = np.random.default_rng(0)
    faces = unit(rng.normal(size=(60, 32)))
    clips = []
    for n in range(600):
        person = n % 60
        # Every person has three speakers' names.
        clips.append(clip(f"s{person}-{n % 3}/{n}", faces[person] + 0.05 * rng.normal(size=32)))
    decided = decide([], clips, replace(RULES, min_similarity=0.7, held_out=0.3))
    splits: dict[int, set[str]] = {}
    for n, found in enumerate(decided):
        splits.setdefault(n % 60, set()).add(found.split)
    assert len({found.person for found in decided}) == 60
    assert {tuple(found) for found in splits.values()} == {("test",), ("short",)}
    lines = people_lines(decided, replace(RULES, min_similarity=0.7), "w")
    held_out = {found.person for found in decided if found.split == "test"}
    assert lines[0] == (
        "60 people by their faces (w) and speakers; clips of each: 10 to 10, median 10; "
        f"held out: {len(held_out)} people with {10 * len(held_out)} clips"
    )
    assert "one person from 0.7 on; uncertain, from 0.625 on: 0 pairs of people" in lines[1]


def test_the_report_names_joined_and_divided_speakers_and_copies():
    original = clip("ann/1", AXES[0])
    clips = [original, clip("ann/2", AXES[1]), clip("eve/1", AXES[0], prints=original.prints)]
    decided = decide([], clips, replace(RULES, speakers_are_listed=True, held_out=0))
    assert decided[2].copy_of == "a copy of ann/1.mp4, clip ann-1"
    assert (decided[2].split, decided[2].person) == ("", "ann")
    lines = people_lines(decided, replace(RULES, speakers_are_listed=True), "w")
    assert lines[2:] == [
        "speakers who are one person: ann = eve (0.500)",
        "speakers with the faces of several people: ann (2)",
        "1 clips dropped as copies of other clips",
    ]
    assert people_lines([], RULES, None) == []
    # The larger face is kept, though it comes later.
    large = clip("eve/1", AXES[0], prints=original.prints, crop_px=500)
    assert decide([], [original, large], RULES)[0].copy_of == "a copy of eve/1.mp4, clip eve-1"


def test_decisions_of_earlier_runs_stay(tmp_path):
    first = decide([], [clip("ann/1", AXES[0]), clip("ben/1", AXES[1])], RULES)
    place = Location.parse(str(tmp_path))
    write_people(place, first)
    known = read_people(place)
    for saved, read in zip(first, known, strict=True):
        assert vars(replace(read, prints=saved.prints)) == vars(saved)
        assert all(
            np.array_equal(vars(saved.prints)[name], vars(read.prints)[name]) for name in vars(saved.prints)
        )
    # One new clip shows Ann under another name. Another one looks like both people, who stay apart.
    new = [
        clip("zoe/1", AXES[0]),
        clip("both/1", AXES[0] + AXES[1]),
        clip("copy/1", AXES[1], prints=known[1].prints),
    ]
    later = decide(known, new, replace(RULES, min_similarity=0.7))
    assert later[0].person == "ann"
    assert later[0].split == first[0].split
    assert later[1].person in ("ann", "ben")
    assert later[2].copy_of == "a copy of ben/1.mp4, clip ben-1"
    assert decide(known, [], RULES) == []
    assert read_people(Location.parse(str(tmp_path / "none"))) == []


def test_a_face_is_restored_from_the_landmarks_that_curation_keeps():
    points = np.random.default_rng(0).uniform(0, 100, (478, 3)).astype(np.float32)
    face = Face(points=points, blendshapes=np.zeros(51, np.float32), matrix=np.eye(4, dtype=np.float32))
    restored = restored_face(crop_landmarks(face, CropBox(left=0, top=0, side=100)), 100)
    # The points by which ArcFace's and dlib's models align a face.
    np.testing.assert_allclose(five_points(restored), five_points(face), atol=1e-3)
    np.testing.assert_allclose(
        restored.points[[263, 362, 33, 133, 2], :2], points[[263, 362, 33, 133, 2], :2], atol=1e-3
    )


def test_a_missing_identity_model_is_named(monkeypatch):
    monkeypatch.setattr("xactor_platform.curation.recognise.find_spec", lambda name: None)
    assert installed_identity("auto") == "none"
    assert installed_identity("model.pt") == "model.pt"
    assert identity_facts("none", None) == {"weights": None, "min_similarity": None}
    with pytest.raises(ValueError, match=r"model.pt: no such model \(a TorchScript file\)"):
        identity_facts("model.pt", None)

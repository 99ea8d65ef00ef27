"""Test that the demo corpus depends only on its seed and holds out people, that its lips follow the sound, and that
real clips become shards."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest

from xactor.controls import CONTROL_COUNT, INDEX, decode_controls, lip_opening
from xactor.faces import CropBox
from xactor.media import read_audio, read_frames, write_video
from xactor.rates import frame_count
from xactor_platform.data.index import load_index
from xactor_platform.demo_corpus import corpus as demo
from xactor_platform.demo_corpus import performance, speech
from xactor_platform.demo_corpus.clip_plan import plan_synthetic
from xactor_platform.demo_corpus.identity import (
    Identity,
    find_crop,
    held_out_identities,
    render_frame,
    training_identities,
)
from xactor_platform.precompute import talking_videos as videos
from xactor_platform.training.latent_corpus import find_audio_encoder

CHECKOUT = Path(__file__).resolve().parents[3]
REAL = Path(os.environ.get("XACTOR_REAL_DATA", CHECKOUT.parent / "shared" / "data"))


def babble(seconds: float, seed: int = 0) -> np.ndarray:
    """Return syllables of a buzzing voice, which sound like speech, float32 [N] at 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.3 * time)
    buzz = sum(np.sin(2 * np.pi * k * np.cumsum(pitch) / 16_000) / k for k in range(1, 20))
    syllables = np.clip(np.sin(2 * np.pi * 2.1 * time + rng.uniform(0, 6)), 0, 1)
    syllables *= np.sin(2 * np.pi * 0.23 * time) > -0.6
    return (0.08 * buzz * syllables).astype(np.float32)


def controls(**values: float) -> np.ndarray:
    row = np.zeros(CONTROL_COUNT, np.float32)
    for name, value in values.items():
        row[INDEX[name]] = value
    return row


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> demo.DemoCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    return demo.make_demo_corpus(
        folder, seed=3, minutes=0.1, held_out_minutes=0.1, size_px=64, crop_px=48, identities=2, workers=1
    )


def read_shard(shard: Path) -> dict[str, dict]:
    """Return a shard's samples by key, with decoded members."""
    found: dict[str, dict] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            stream = tar.extractfile(member)
            assert stream is not None
            data = stream.read()
            if extension == "json":
                data = json.loads(data)
            elif extension.endswith("npy"):
                data = np.load(io.BytesIO(data), allow_pickle=False)
            found.setdefault(key, {})[extension] = data
    return found


def samples_of(folder: Path, split: str) -> dict[str, dict]:
    shards = sorted(folder.glob(f"{split}-*.tar"))
    return {key: sample for shard in shards for key, sample in read_shard(shard).items()}


class TestDemoCorpus:
    def test_clips_tracks_and_shards_agree(self, corpus):
        assert corpus.minutes["train"] >= 0.1
        for split in ("train", "test"):
            for key, sample in samples_of(corpus.shards, split).items():
                clip = corpus.folder / "clips" / split / f"{key}.mp4"
                track = np.load(clip.with_suffix(".controls.npy"))
                frames = sample["json"]["frames"]
                for member in (track, sample["motion.npy"], sample["audio.npy"]):
                    assert len(member) == frames
                assert sum(1 for _ in read_frames(clip)) == frames
                assert frame_count(len(read_audio(clip))) == frames
                assert sample["motion.npy"].dtype == np.float16
                assert sample["audio.npy"].dtype == np.float16
                assert np.abs(decode_controls(sample["motion.npy"]) - track).max() < 1e-3
        index = load_index(str(corpus.shards))
        assert index.samples == sum(corpus.clips.values())

    def test_video_shards_hold_the_same_clips_cropped_to_the_face(self, corpus, tmp_path):
        motion, pictures = load_index(str(corpus.shards)), load_index(str(corpus.videos))
        assert pictures.shape is None
        assert list(pictures.key) == list(motion.key)
        assert np.array_equal(pictures.frames, motion.frames)
        for split in ("train", "test"):
            for key, sample in samples_of(corpus.videos, split).items():
                clip = corpus.folder / "clips" / split / f"{key}.mp4"
                face = tmp_path / "face.mp4"
                face.write_bytes(sample["mp4"])
                assert np.array_equal(sample["controls.npy"], np.load(clip.with_suffix(".controls.npy")))
                assert len(read_audio(face)) == len(read_audio(clip))
                box = CropBox(**sample["json"]["crop"])
                crops = np.stack(list(read_frames(face))).astype(int)
                assert crops.shape == (sample["json"]["frames"], 48, 48, 3)
                with av.open(face) as container:
                    keyframes = [p.pts * p.time_base * 25 for p in container.demux(video=0) if p.is_keyframe]
                # Each second has a keyframe, which makes seeking cheap.
                assert {0, 25, 50, 75, 100, 125} <= set(keyframes)
                whole = np.stack([box.cut(frame, 48) for frame in read_frames(clip)])
                # Both videos are lossy.
                assert np.abs(crops - whole).mean() < 6

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_bytes_in_any_number_of_processes(self, corpus, tmp_path):
        demo.make_demo_corpus(
            tmp_path,
            seed=3,
            minutes=0.1,
            held_out_minutes=0.1,
            size_px=64,
            crop_px=48,
            identities=2,
            workers=2,
        )
        files = [p for p in sorted(corpus.folder.rglob("*")) if p.is_file() and p.suffix != ".parquet"]
        assert len(files) >= 8
        for file in files:
            assert file.read_bytes() == (tmp_path / file.relative_to(corpus.folder)).read_bytes(), file

    def test_neither_faces_nor_sentences_are_in_both_splits(self, corpus):
        splits = {split: samples_of(corpus.shards, split).values() for split in ("train", "test")}
        speakers = {split: {s["json"]["speaker"] for s in found} for split, found in splits.items()}
        spoken = {
            split: {line for s in found for line in s["json"]["text"]} for split, found in splits.items()
        }
        assert speakers["train"].isdisjoint(speakers["test"])
        assert spoken["train"]
        assert spoken["train"].isdisjoint(spoken["test"])

    def test_the_default_plan_is_as_documented(self):
        plans = plan_synthetic(seed=0, train_s=600, held_out_s=112, identities=48)
        train, test = ([p for p in plans if p.split == split] for split in ("train", "test"))
        assert sum(p.duration_s for p in train) >= 600
        assert sum(p.duration_s for p in test) >= 90
        assert max(p.duration_s for p in test) >= 60
        assert all(6 <= p.duration_s <= 66 for p in plans)
        assert len({p.key for p in plans}) == len(plans)
        assert len({p.seed for p in plans}) == len(plans)
        assert {p.identity.name for p in test} == {"drawn-007", "astronaut"}
        assert len({p.identity.name for p in train}) == len(train)
        assert not set(speech.sentences("train")) & set(speech.sentences("test"))

    @pytest.mark.slow
    def test_a_users_recordings_are_spoken(self, tmp_path):
        for i in range(3):
            write_video(
                tmp_path / "in" / f"{i}.mp4", [np.zeros((32, 32, 3), np.uint8)] * 3, samples=babble(7, i)
            )
        made = demo.make_demo_corpus(
            tmp_path / "out", minutes=1, size_px=32, identities=1, speech=tmp_path / "in", workers=1
        )
        assert made.clips == {"train": 2, "test": 1}
        assert {s["json"]["source"] for s in samples_of(made.shards, "train").values()} == {"0.mp4", "1.mp4"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"minutes": 0}, "minutes must be"),
            ({"size_px": 63}, "size_px must be even"),
            ({"crop_px": 30}, "crop_px must be even and >= 32"),
            ({"identities": 0}, "identities must be >= 1"),
            ({"workers": 0}, "workers must be >= 1"),
            ({"speech": "nowhere"}, "no recordings found"),
        ],
    )
    def test_bad_arguments_are_named(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            demo.make_demo_corpus(tmp_path, **options)


class TestPerformance:
    def test_a_performance_depends_only_on_sound_and_seed(self):
        sound = babble(4)
        assert np.array_equal(performance.perform(sound, 1), performance.perform(sound, 1))
        other = performance.perform(sound, 2)
        assert not np.array_equal(performance.perform(sound, 1), other)
        mouth = [i for name, i in INDEX.items() if name.startswith(("jaw", "mouthPucker", "mouthPress"))]
        assert np.array_equal(performance.perform(sound, 1)[:, mouth], other[:, mouth])

    @pytest.mark.parametrize("samples", [320 + 1, 640, 16_000, 16_000 * 3 + 333])
    def test_a_performance_is_as_long_as_the_sound(self, samples):
        track = performance.perform(babble(4)[:samples], 0)
        assert track.shape == (frame_count(samples), CONTROL_COUNT)
        assert np.isfinite(track).all()
        assert track[:, : INDEX["headPitch"]].min() >= 0
        assert track[:, : INDEX["headPitch"]].max() <= 1

    def test_lips_open_with_the_sound_and_close_without(self):
        sound = babble(8)
        sound[3 * 16_000 : 5 * 16_000] = 0
        opening = lip_opening(performance.perform(sound, 0))
        assert opening[80:120].max() < 0.02
        loud = np.sqrt((sound[: 200 * 640].reshape(200, 640) ** 2).mean(axis=1))
        lags = {lag: np.corrcoef(opening[10:190], np.roll(loud, lag)[10:190])[0, 1] for lag in range(-6, 7)}
        assert max(lags, key=lambda lag: lags[lag]) in (-1, 0, 1)
        assert lags[0] > 0.7

    def test_arousal_builds_up_slowly_and_lifts_the_brows(self):
        sound = babble(24) * np.linspace(0.1, 2.0, 24 * 16_000).astype(np.float32)
        track = performance.perform(sound, 0)
        brows = track[:, INDEX["browOuterUpLeft"]]
        assert brows[-100:].mean() > brows[150:250].mean() + 0.05
        assert np.abs(np.diff(track[:, INDEX["mouthSmileLeft"]])).max() < 0.02


@pytest.mark.slow
def test_no_two_people_look_alike():
    faces = [
        render_frame(identity, controls(), 64)[8:56, 12:52].astype(int)
        for identity in [held_out_identities()[0], *training_identities(48)]
    ]
    for i, face in enumerate(faces):
        nearest = min(np.abs(face - other).mean() for j, other in enumerate(faces) if j != i)
        # The first face is the held-out one, which must differ more.
        assert nearest > (15 if i == 0 else 10)


def test_a_face_is_found_in_every_drawn_frame():
    for identity in [*training_identities(6), *held_out_identities()]:
        box = find_crop(identity, 128)
        assert box is not None
        # The crop is about the whole frame.
        assert 112 < box.side < 138
        assert abs(box.left) < 10
        assert abs(box.top) < 10


@pytest.mark.parametrize("identity", [*training_identities(1), *held_out_identities()], ids=lambda i: i.name)
class TestFaces:
    def region(self, picture: np.ndarray, top: float, bottom: float) -> np.ndarray:
        """Return the rows from `top` to `bottom`, as shares of the height, without a fifth at each side."""
        side = len(picture)
        return picture[int(top * side) : int(bottom * side), side // 5 : -side // 5].astype(int)

    def test_a_face_follows_its_controls(self, identity: Identity):
        still = render_frame(identity, controls(), 128)
        assert still.shape == (128, 128, 3)
        assert np.array_equal(still, render_frame(identity, controls(), 128))
        opened = render_frame(identity, controls(jawOpen=0.6), 128)
        mouth, brow = ((0.55, 0.95), (0.2, 0.5))
        assert np.abs(self.region(opened, *mouth) - self.region(still, *mouth)).mean() > 4
        assert np.abs(self.region(opened, *brow) - self.region(still, *brow)).mean() < 0.5
        # The inside of an open mouth is dark.
        mouth_pixels = slice(70, 105), slice(52, 76)
        dark_opened = (opened[mouth_pixels].sum(axis=2) < 190).sum()
        dark_still = (still[mouth_pixels].sum(axis=2) < 190).sum()
        assert dark_opened > dark_still + 20
        for acted in (
            controls(eyeBlinkLeft=1, eyeBlinkRight=1),
            controls(browInnerUp=0.8, browOuterUpLeft=0.8, browOuterUpRight=0.8),
        ):
            moved = render_frame(identity, acted, 128)
            assert np.abs(self.region(moved, *brow) - self.region(still, *brow)).max() > 40
        assert np.abs(render_frame(identity, controls(headYaw=0.25), 128).astype(int) - still).mean() > 1.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write two good clips of the photograph, and one clip with each fault."""
    folder = tmp_path_factory.mktemp("videos")
    astronaut = held_out_identities()[1]
    for i in range(2):
        sound = babble(2, i)
        track = performance.perform(sound, i)
        pictures = (render_frame(astronaut, row, 192) for row in track)
        write_video(folder / f"good {i}.mp4", pictures, samples=sound)
        np.save(folder / f"good {i}.npy", track)
    wall = [np.full((64, 64, 3), 90, np.uint8)] * 40
    write_video(folder / "wall.mp4", wall, samples=babble(1.6))
    write_video(folder / "silence.mp4", wall, samples=np.zeros(25_600, np.float32))
    write_video(folder / "mute.mp4", wall, samples=np.zeros(0, np.float32))
    write_video(folder / "short.mp4", wall[:10], samples=babble(0.4))
    (folder / "corrupt.mp4").write_bytes(b"\0" * 999)
    (folder / "empty.mp4").touch()
    return folder


class TestVideos:
    @pytest.mark.slow
    def test_good_clips_become_shards_and_each_bad_clip_a_line_of_the_report(self, folder, tmp_path):
        results = []
        made = videos.shards_from_videos(
            str(folder), str(tmp_path / "shards"), crops=64, held_out=0, workers=2, progress=results.append
        )
        # Training looks for the encoder of the features in the folder next to the shards.
        assert find_audio_encoder(str(tmp_path / "shards"), None) == str(tmp_path / "audio_encoder")
        report = [
            json.loads(line) for line in (tmp_path / "shards" / "report.jsonl").read_text().splitlines()
        ]
        assert [vars(one) for one in results] == report
        assert [vars(one) for one in made.results] == report
        reasons = {Path(row["file"]).stem: row["reason"] for row in report}
        assert reasons.pop("good 0") is None
        assert reasons.pop("good 1") is None
        expected = {
            "wall": "no face in any frame",
            "silence": "silence",
            "mute": "audio track",
            "short": "too short",
            "corrupt": "cannot be decoded",
            "empty": "the file is empty",
        }
        assert expected.keys() == reasons.keys()
        for name, words in expected.items():
            assert words in reasons[name], reasons
        shard = read_shard(tmp_path / "shards" / "train-000000.tar")
        found = {sample["json"]["speaker"]: sample for sample in shard.values()}
        assert found.keys() == {"good 0", "good 1"}
        for name, sample in found.items():
            truth = np.load(folder / f"{name}.npy")
            seen = decode_controls(sample["motion.npy"])
            for member in (seen, sample["audio.npy"], truth):
                assert len(member) == 50
            # A landmark model recovers the controls that the pictures were made from.
            assert np.corrcoef(lip_opening(seen), lip_opening(truth))[0, 1] > 0.75
            assert np.corrcoef(seen[:, INDEX["headYaw"]], truth[:, INDEX["headYaw"]])[0, 1] > 0.5
        motion, pictures = load_index(str(tmp_path / "shards")), load_index(str(tmp_path / "videos"))
        assert list(motion.key) == list(shard)
        assert list(pictures.key) == list(shard)
        face = tmp_path / "face.mp4"
        for row in range(2):
            face.write_bytes(pictures.read(row, "mp4"))
            crops = np.stack(list(read_frames(face)))
            assert crops.shape == (50, 64, 64, 3)
            assert frame_count(len(read_audio(face))) == 50
            # The crop is about the whole frame of 192 px.
            box = CropBox(**pictures.read_meta(row)["crop"])
            assert 180 < box.side < 205
            clip = read_frames(folder / f"{pictures.speaker[row]}.mp4")
            whole = np.stack([box.cut(frame, 64) for frame in clip]).astype(int)
            assert np.abs(crops - whole).mean() < 3

    @pytest.mark.parametrize("crops", [16, 65, -2])
    def test_the_crops_side_is_checked(self, folder, tmp_path, crops):
        with pytest.raises(ValueError, match=f"crops must be 0, or even and >= 32, got {crops}"):
            videos.shards_from_videos(str(folder), str(tmp_path), crops=crops)

    def test_crops_must_not_be_written_among_the_videos(self, folder, tmp_path):
        with pytest.raises(ValueError, match="crops_output must be a folder of its own"):
            videos.shards_from_videos(str(folder), str(tmp_path), crops=64, crops_output=str(folder))

    def test_crops_must_not_be_written_among_the_latents(self, folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="crops_output must be a folder of its own"):
            videos.shards_from_videos(str(folder), "shards", crops=64, crops_output="shards")

    @pytest.mark.slow
    def test_the_job_ends_with_2_for_no_videos_and_3_for_failed_ones(self, folder, tmp_path):
        def job(*arguments: str) -> subprocess.CompletedProcess:
            command = [sys.executable, "jobs/shards_from_videos.py", *arguments]
            return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)

        none = job("--videos", str(folder / "*.nothing"), "--output", str(tmp_path / "a"))
        assert none.returncode == 2
        assert "no videos found" in none.stderr
        assert len(none.stderr.strip().splitlines()) == 1
        some = job("--videos", str(folder / "[gw]*.mp4"), "--output", str(tmp_path / "b"), "--held-out", "1")
        assert some.returncode == 3, some.stderr
        assert "2 of 3 videos" in some.stdout

    @pytest.mark.slow
    def test_a_file_that_kills_its_process_fails_alone(self, tmp_path):
        # The function that runs in the pool simulates a decoder's crash.
        results = list(videos._in_pool([1, 2, 3], 2, work=_die_on_two))
        assert results == ["1", "the decoder crashed on it", "3"]

    @pytest.mark.parametrize(
        ("held_out", "message"), [(-0.1, "held_out"), (1.5, "held_out"), (9, "leave videos")]
    )
    def test_held_out_is_checked(self, folder, tmp_path, held_out, message):
        with pytest.raises(ValueError, match=message):
            videos.shards_from_videos(str(folder), str(tmp_path), held_out=held_out)

    @pytest.mark.skipif(not (REAL / "talking").is_dir(), reason=f"no real clips in {REAL} (XACTOR_REAL_DATA)")
    def test_a_real_clip_is_read(self, tmp_path):
        clip = sorted((REAL / "talking").glob("*.mp4"))[-1]
        from xactor.audio.encoder import LogMelEncoder

        LogMelEncoder().save_pretrained(tmp_path)
        motion = videos.read_video(str(clip), str(tmp_path)).motion
        opening = lip_opening(decode_controls(motion["motion.npy"]))
        assert len(opening) == motion["json"]["frames"]
        assert len(motion["audio.npy"]) == motion["json"]["frames"]
        assert opening.std() > 0.05


def _die_on_two(job: int) -> str:
    if job == 2:
        os._exit(1)
    return str(job)

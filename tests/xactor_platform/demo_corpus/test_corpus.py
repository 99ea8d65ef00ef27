"""Test that the demo corpus depends only on its seed and holds out people, that its lips follow the sound, and that
real clips become shards."""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from acting import babble, controls
from shard_files import read_shard

from xactor.controls import CONTROL_COUNT, INDEX, decode_controls, lip_opening
from xactor.faces import CropBox
from xactor.faces.landmarks import find_landmarks, landmark_frames
from xactor.media import read_audio, read_frames, write_video
from xactor.rates import frame_count
from xactor_platform.data.index_file import load_index
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

CHECKOUT = Path(__file__).resolve().parents[3]
REAL = Path(os.environ.get("XACTOR_REAL_DATA", CHECKOUT.parent / "shared" / "data"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> demo.DemoCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    return demo.make_demo_corpus(
        folder, seed=3, minutes=0.1, held_out_minutes=0.1, size_px=64, crop_px=48, identities=2, workers=1
    )


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
                # The face is found again in the frames of the clip, which are larger than the crops.
                square = CropBox(**sample["json"]["crop"])
                pictures = list(read_frames(clip))
                for number, found in zip(
                    landmark_frames(len(pictures)), sample["landmarks.npy"], strict=True
                ):
                    again = find_landmarks(square.cut(pictures[number], 256))
                    assert np.abs(found - again).mean() < 0.03
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

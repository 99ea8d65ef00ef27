"""Test that talking videos become shards, and that each bad video is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from acting import babble
from shard_files import read_shard

from xactor.audio.encoder import load_audio_encoder
from xactor.controls import INDEX, ORIGIN, decode_controls, lip_opening
from xactor.faces import CropBox
from xactor.media import read_audio, read_frames, write_video
from xactor.rates import frame_count
from xactor_platform.data.index_file import load_index
from xactor_platform.demo_corpus import performance
from xactor_platform.demo_corpus.identity import (
    Identity,
    held_out_identities,
    render_frame,
    training_identities,
)
from xactor_platform.precompute import talking_videos as videos
from xactor_platform.training.latent_corpus import find_audio_encoder

CHECKOUT = Path(__file__).resolve().parents[3]
REAL = Path(os.environ.get("XACTOR_REAL_DATA", CHECKOUT.parent / "shared" / "data"))


PEOPLE = (held_out_identities()[1], *training_identities(4)[:2])
"""The photograph and two drawn people."""


def speak(person: Identity, seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames of a person who speaks, uint8 [T, 192, 192, 3], the sound and the true control track."""
    sound = babble(seconds, seed)
    track = performance.perform(sound, seed)
    return np.stack([render_frame(person, row, 192) for row in track]), sound, track


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Write two good clips of the photograph, two with several people, and one clip with each fault."""
    folder = tmp_path_factory.mktemp("videos")
    spoken = [speak(PEOPLE[0], 2, seed) for seed in range(2)]
    for i, (pictures, sound, track) in enumerate(spoken):
        write_video(folder / f"good {i}.mp4", pictures, samples=sound)
        np.save(folder / f"good {i}.npy", track)
    others = [speak(person, 2, 2 + n) for n, person in enumerate(PEOPLE[1:])]
    for name, shots in (("two people", [spoken[0], others[0]]), ("three shots", [spoken[1], *others])):
        write_video(
            folder / f"{name}.mp4",
            np.concatenate([pictures for pictures, _, _ in shots]),
            samples=np.concatenate([sound for _, sound, _ in shots]),
        )
    pictures, sound, _ = spoken[0]
    write_video(folder / "still.mp4", np.repeat(pictures[:1], 50, axis=0), samples=sound)
    write_video(folder / "sideways.mp4", np.rot90(pictures, axes=(1, 2)).copy(), samples=sound)
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
        fates = []
        made = videos.shards_from_videos(
            str(folder), str(tmp_path / "shards"), crops=64, held_out=0, workers=2, progress=fates.append
        )
        # Training looks for the encoder of the features in the folder next to the shards.
        assert find_audio_encoder(str(tmp_path / "shards"), None) == str(tmp_path / "audio_encoder")
        report = [
            json.loads(line) for line in (tmp_path / "shards" / "report.jsonl").read_text().splitlines()
        ]
        assert [vars(one) for one in fates] == report
        assert [vars(one) for one in made.fates] == report
        # A clip never shows two people.
        kept = [(Path(f.video).stem, f.start_s, f.end_s) for f in made.fates if f.status == "kept"]
        shots = [("good 0", 1), ("good 1", 1), ("three shots", 3), ("two people", 2)]
        assert kept == [(name, 2.0 * n, 2.0 * n + 2) for name, count in shots for n in range(count)]
        bad = {Path(f.video).stem: (f.status, f.reason) for f in made.fates if f.status != "kept"}
        assert bad == {
            "corrupt": ("failed", "unreadable"),
            "empty": ("failed", "unreadable"),
            "mute": ("dropped", "no_sound"),
            "short": ("dropped", "too_short"),
            "sideways": ("dropped", "turned"),
            "silence": ("dropped", "silent"),
            "still": ("dropped", "still"),
            "wall": ("dropped", "no_face"),
        }
        assert made.unused == {f"{name}.mp4" for name in bad}
        shard = read_shard(tmp_path / "shards" / "train-000000.tar")
        found = {
            sample["json"]["source"]: sample for sample in shard.values() if sample["json"]["start_s"] == 0
        }
        for name in ("good 0", "good 1"):
            sample, truth = found[f"{name}.mp4"], np.load(folder / f"{name}.npy")
            seen = decode_controls(sample["motion.npy"])
            for member in (seen, sample["audio.npy"], truth):
                assert len(member) == 50
            # A landmark model recovers the controls that the pictures were made from.
            assert np.corrcoef(lip_opening(seen), lip_opening(truth))[0, 1] > 0.75
            assert np.corrcoef(seen[:, INDEX["headYaw"]], truth[:, INDEX["headYaw"]])[0, 1] > 0.5
        motion, pictures = load_index(str(tmp_path / "shards")), load_index(str(tmp_path / "videos"))
        assert set(motion.latent_origin) == {ORIGIN}
        assert set(motion.audio_origin) == {load_audio_encoder(tmp_path / "audio_encoder").origin}
        assert list(motion.key) == list(shard)
        assert list(pictures.key) == list(shard)
        face = tmp_path / "face.mp4"
        for row in range(2):
            face.write_bytes(pictures.read(row, "mp4"))
            crops = np.stack(list(read_frames(face)))
            assert crops.shape == (50, 64, 64, 3)
            assert frame_count(len(read_audio(face))) == 50
            # The crop is about the whole frame of 192 px, and never more.
            box = CropBox(**pictures.read_meta(row)["crop"])
            assert 180 < box.side <= 192
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
        assert "2 of 3 videos, 2 clips" in some.stdout

    @pytest.mark.parametrize(
        ("held_out", "message"), [(-0.1, "held_out"), (1.5, "held_out"), (99, "leave speakers")]
    )
    def test_held_out_is_checked(self, folder, tmp_path, held_out, message):
        with pytest.raises(ValueError, match=message):
            videos.shards_from_videos(str(folder), str(tmp_path), held_out=held_out)

    @pytest.mark.skipif(not (REAL / "talking").is_dir(), reason=f"no real clips in {REAL} (XACTOR_REAL_DATA)")
    def test_a_real_clip_is_read(self, tmp_path):
        clip = sorted((REAL / "talking").glob("*.mp4"))[-1]
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / clip.name).symlink_to(clip)
        pattern = str(tmp_path / "in" / "*.mp4")
        made = videos.shards_from_videos(pattern, str(tmp_path / "out"), held_out=0, workers=1)
        (fate,) = made.fates
        assert fate.status == "kept", fate
        (sample,) = read_shard(tmp_path / "out" / "train-000000.tar").values()
        opening = lip_opening(decode_controls(sample["motion.npy"]))
        assert len(opening) == sample["json"]["frames"] == len(sample["audio.npy"])
        assert opening.std() > 0.05

"""Test that video shards become motion shards with the encoders' output, equal bytes in each run, and no work twice."""

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from xactor.audio.encoder import LogMelEncoder, load_audio_encoder
from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.controls import embed_controls
from xactor.media import read_audio, read_frames
from xactor.render import MotionEncoder
from xactor_platform.data.face_video import face_video
from xactor_platform.data.index import Index
from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import Shard, ShardWriter
from xactor_platform.precompute.encoder_folder import save_encoder
from xactor_platform.precompute.latents import PrecomputeResult, _place_encoders, precompute
from xactor_platform.precompute.shard_encoder import ShardEncoder, ShardJob
from xactor_platform.storage.location import Location

CHECKOUT = Path(__file__).resolve().parents[3]
FRAMES = (70, 30, 64)
"""Frames of the clips. The first clip is longer than a batch of the encoder."""


def pictures(frames: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for step in range(frames):
        picture = np.full((64, 64, 3), rng.integers(60, 190, 3), np.uint8)
        picture[10 : 20 + step % 30, 8:40] = rng.integers(0, 255, 3)
        yield picture


def video(frames: int, seed: int) -> bytes:
    sound = np.random.default_rng(seed).normal(0, 0.1, frames * 640).astype(np.float32)
    return face_video(pictures(frames, seed), sound)


def write_videos(folder: Path, clips: Mapping[str, bytes | None], text: str = "hm") -> str:
    """Write one shard for each clip. None is a clip that cannot be decoded."""
    with ShardWriter(str(folder), "train", samples_per_shard=1, overwrite=True) as writer:
        for (key, mp4), frames in zip(clips.items(), FRAMES, strict=True):
            meta = {"frames": frames, "fps": 25, "speaker": key, "crop": None, "text": [text]}
            writer.write(
                key,
                {"mp4": mp4 or bytes(2000), "controls.npy": np.zeros((frames, 57), np.float32), "json": meta},
            )
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    encoder = MotionEncoder(image_size=64, channels=(8, 8, 16), latent_dim=32)
    encoder.save_pretrained(folder / "motion_encoder")
    return folder


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    return {f"clip-{i}": video(frames, i) for i, frames in enumerate(FRAMES)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory, clips) -> str:
    return write_videos(tmp_path_factory.mktemp("corpus") / "videos", clips)


@pytest.fixture(scope="module")
def made(tmp_path_factory, videos, model, ray_cluster) -> Path:
    """Encode the videos, and return the folder of the motion shards."""
    shards = tmp_path_factory.mktemp("made") / "shards"
    result = precompute(videos, model, str(shards))
    assert result.bad == []
    assert result.bill.figures == {"written": 3, "kept": 0, "clips": 3, "frames": sum(FRAMES)}
    assert set(result.bill.stage_s) == {"read", "decode", "motion", "sound", "write", "wait"}
    assert all(seconds > 0 for seconds in result.bill.stage_s.values())
    assert result.summary()[1].startswith("3 clips, 0.002 hours, in ")
    return shards


def written_and_kept(result: PrecomputeResult) -> tuple[int, int]:
    return result.bill.figures["written"], result.bill.figures["kept"]


def array(index: Index, row: int, member: str) -> np.ndarray:
    return np.load(io.BytesIO(index.read(row, member)), allow_pickle=False)


def test_latents_and_features_equal_the_encoders_output(made, videos, model, clips, tmp_path):
    index, source = load_index(str(made)), load_index(videos)
    assert index.shard_names == source.shard_names
    assert list(index.key) == list(source.key)
    assert index.frame_shape.latent_width == 32
    motion = MotionEncoder.from_pretrained(made.parent / "motion_encoder")
    sound = load_audio_encoder(made.parent / "audio_encoder")
    assert isinstance(sound, LogMelEncoder)
    file = tmp_path / "clip.mp4"
    for row in range(index.samples):
        file.write_bytes(clips[index.key[row]])
        z = motion.encode(np.stack(list(read_frames(file)))).numpy()
        stored = array(index, row, "motion.npy")
        assert stored.dtype == np.float16
        assert np.abs(stored - z).max() < 1e-3 * np.abs(z).max()
        # The clip's pictures differ, so its latents must differ too.
        assert z.std(axis=0).max() > 1e-2
        assert np.array_equal(
            array(index, row, "audio.npy"), sound.features(read_audio(file)).astype(np.float16)
        )
        made_by = {"motion": "encoder", "latent_origin": motion.own_origin(), "audio_origin": sound.origin}
        assert index.read_meta(row) == {**source.read_meta(row), **made_by}
        assert index.read(row, "controls.npy") == source.read(row, "controls.npy")


def test_latents_from_controls_are_their_embedding_and_need_no_encoder(made, videos, tmp_path, ray_cluster):
    shards = tmp_path / "controls" / "shards"
    result = precompute(videos, "nowhere", str(shards), latents="controls")
    assert result.bill.figures == {"written": 3, "kept": 0, "clips": 3, "frames": sum(FRAMES)}
    index, seen = load_index(str(shards)), load_index(str(made))
    for row in range(index.samples):
        wanted = embed_controls(array(index, row, "controls.npy")).astype(np.float16)
        assert np.array_equal(array(index, row, "motion.npy"), wanted)
        assert np.array_equal(array(index, row, "audio.npy"), array(seen, row, "audio.npy"))
        made_by = {"motion": "controls", "latent_origin": CONTROLS_ORIGIN}
        assert index.read_meta(row) == {**seen.read_meta(row), **made_by}
    assert sorted(path.name for path in shards.parent.iterdir()) == ["audio_encoder", "shards"]
    # The same call finds them; another kind of latents replaces them.
    assert written_and_kept(precompute(videos, "nowhere", str(shards), latents="controls")) == (0, 3)
    assert written_and_kept(precompute(videos, made.parent, str(shards))) == (3, 0)


def test_latents_from_controls_need_all_control_tracks(tmp_path, clips):
    with ShardWriter(str(tmp_path / "videos"), "train") as writer:
        track = np.zeros((FRAMES[0], 57), np.float32)
        for key, more in (("a", {"controls.npy": track}), ("b", {})):
            meta = {"frames": FRAMES[0], "fps": 25, "speaker": key}
            writer.write(key, {"mp4": clips["clip-0"], **more, "json": meta})
    with pytest.raises(ValueError, match=r"need controls.npy in all samples, got 1 of 2"):
        precompute(str(tmp_path / "videos"), "nowhere", str(tmp_path / "shards"), latents="controls")


def test_the_encoder_is_copied_next_to_its_latents(made, model):
    for file in (model / "motion_encoder").iterdir():
        assert (made.parent / "motion_encoder" / file.name).read_bytes() == file.read_bytes()


def test_the_audio_encoder_is_named(tmp_path, capsys):
    output = str(tmp_path / "latents" / "shards")
    _place_encoders(None, None, output)
    text = f"{output}: LogMel audio features, [1, 160] per frame, because no --audio-encoder is given\n"
    assert capsys.readouterr().out == text
    made = tmp_path / "latents" / "audio_encoder"
    _place_encoders(None, made, output)
    assert capsys.readouterr().out.endswith(f"per frame, made by {made}\n")


def test_two_runs_write_the_same_bytes_and_a_restart_writes_only_missing_shards(
    made, videos, model, tmp_path, ray_cluster
):
    shards = tmp_path / "shards"
    precompute(videos, model, str(shards))
    names = sorted(path.name for path in made.glob("*.tar"))
    assert names == ["train-000000.tar", "train-000001.tar", "train-000002.tar"]
    for name in names:
        assert (shards / name).read_bytes() == (made / name).read_bytes()

    before = {name: (shards / name).stat().st_mtime_ns for name in names}
    (shards / names[0]).unlink()
    # A crash of the machine may leave a truncated shard.
    with (shards / names[2]).open("r+b") as file:
        file.truncate(4000)
    lines: list[str] = []
    result = precompute(videos, model, str(shards), progress=lines.append)
    assert result.bill.figures == {"written": 2, "kept": 1, "clips": 2, "frames": FRAMES[0] + FRAMES[2]}
    assert len(lines) == 3
    for name in names:
        assert (shards / name).read_bytes() == (made / name).read_bytes()
        was_kept = (shards / name).stat().st_mtime_ns == before[name]
        assert was_kept == (name == names[1])


@pytest.fixture
def worker(made) -> ShardEncoder:
    encoders = {"motion": str(made.parent / "motion_encoder"), "sound": str(made.parent / "audio_encoder")}
    return ShardEncoder(**encoders, decoders=2, device="cpu")


@pytest.fixture(scope="module")
def one_shard(tmp_path_factory, clips) -> Index:
    """Write all clips into one shard, and a clip that cannot be decoded between them."""
    folder = tmp_path_factory.mktemp("one") / "videos"
    with ShardWriter(str(folder), "train") as writer:
        for key, mp4, frames in (
            ("a", clips["clip-0"], 70),
            ("b", clips["clip-1"], 30),
            ("c", bytes(2000), 9),
            ("d", clips["clip-2"], 64),
        ):
            writer.write(key, {"mp4": mp4, "json": {"frames": frames, "fps": 25, "speaker": key}})
    return load_index(str(folder))


def test_batches_span_clips_and_a_bad_clip_spoils_no_other(worker, one_shard, made, tmp_path, monkeypatch):
    sizes = []
    encode = worker._motion.encode

    def logged_encode(frames, **options):
        sizes.append(len(frames))
        return encode(frames, **options)

    monkeypatch.setattr(worker._motion, "encode", logged_encode)
    (result,) = worker.run_batch([ShardJob(index=one_shard, place=Location.parse(str(tmp_path)))])
    assert (result.written, result.clips, result.frames, result.error) == (True, 3, sum(FRAMES), None)
    assert [bad.key for bad in result.bad] == ["c"]
    # The clips' 164 frames in batches of 64.
    assert sizes == [64, 64, 36]
    alone, made_together = load_index(str(made)), load_index(str(tmp_path))
    assert list(made_together.key) == ["a", "b", "d"]
    for row in range(3):
        expected = array(alone, row, "motion.npy")
        assert (
            np.abs(array(made_together, row, "motion.npy") - expected).max() < 1e-3 * np.abs(expected).max()
        )
        assert np.array_equal(array(made_together, row, "audio.npy"), array(alone, row, "audio.npy"))


def test_clips_are_decoded_while_others_are_encoded(worker, one_shard, tmp_path, monkeypatch):
    """Let the encoder wait in its first batch until the reading of a clip outside of that batch has begun."""
    next_clip_begun = threading.Event()
    read, encode = Index.read, worker._motion.encode

    def noted_read(index, row, member):
        if index.key[row] == "b":
            next_clip_begun.set()
        return read(index, row, member)

    def waiting_encode(frames, **options):
        assert next_clip_begun.wait(60)
        return encode(frames, **options)

    monkeypatch.setattr(Index, "read", noted_read)
    monkeypatch.setattr(worker._motion, "encode", waiting_encode)
    (result,) = worker.run_batch([ShardJob(index=one_shard, place=Location.parse(str(tmp_path)))])
    assert result.written


def test_a_shard_that_fails_leaves_nothing_and_no_thread_behind(worker, one_shard, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Shard, "write", full)
    (result,) = worker.run_batch([ShardJob(index=one_shard, place=Location.parse(str(tmp_path)))])
    assert (result.written, result.error) == (False, "[Errno 28] No space left on device")
    assert not list(tmp_path.iterdir())
    # This call returns only if no thread waits for room in a queue.
    worker._threads.shutdown(wait=True)


def test_a_worker_that_dies_loses_no_other_shard(videos, model, made, tmp_path, ray_cluster, monkeypatch):
    """Let one shard kill its worker at every attempt. Once it no longer does, the same call makes the missing shard."""
    deadly = tmp_path / "deadly"
    deadly.write_text("")

    class Deadly(ShardEncoder):
        def make(self, job):
            if job.name == "train-000001.tar" and deadly.exists():
                os._exit(1)
            return super().make(job)

    monkeypatch.setattr("xactor_platform.precompute.latents.ShardEncoder", Deadly)
    shards = tmp_path / "shards"
    with pytest.raises(OSError, match=r"1 of 3 shards were lost with their workers.*train-000001\.tar"):
        precompute(videos, model, str(shards))
    assert sorted(path.name for path in shards.glob("*.tar")) == ["train-000000.tar", "train-000002.tar"]
    deadly.unlink()
    result = precompute(videos, model, str(shards))
    assert written_and_kept(result) == (1, 2)
    for shard in made.glob("*.tar"):
        assert (shards / shard.name).read_bytes() == shard.read_bytes()


def test_a_clip_that_cannot_be_read_is_named(clips, model, tmp_path, ray_cluster):
    folder = write_videos(tmp_path / "videos", {**clips, "clip-1": None, "clip-2": video(60, 2)})
    with pytest.raises(ValueError, match=r"2 of 3 samples are unusable.*clip-1: cannot be decoded") as caught:
        precompute(folder, model, str(tmp_path / "shards"))
    assert "clip-2: mp4 has 60 frames, its json says 64" in str(caught.value)
    result = precompute(folder, model, str(tmp_path / "shards"), max_bad_fraction=0.7)
    assert sorted(bad.key for bad in result.bad) == ["clip-1", "clip-2"]
    assert list(load_index(str(tmp_path / "shards")).key) == ["clip-0"]


def test_latents_of_other_videos_are_not_kept(clips, model, tmp_path, ray_cluster):
    source, shards = tmp_path / "videos", tmp_path / "shards"
    precompute(write_videos(source, clips), model, str(shards))
    result = precompute(write_videos(source, clips, text="hear, hear"), model, str(shards))
    assert written_and_kept(result) == (3, 0)
    assert load_index(str(shards)).read_meta(1)["text"] == ["hear, hear"]
    (shards / "train-000007.tar").write_bytes((shards / "train-000000.tar").read_bytes())
    with pytest.raises(ValueError, match=r"does not have, the first train-000007\.tar"):
        precompute(str(source), model, str(shards))


def test_latents_of_two_encoders_are_not_mixed(made, videos, tmp_path, ray_cluster):
    torch.manual_seed(1)
    other = MotionEncoder(image_size=64, channels=(8, 8, 16), latent_dim=32)
    other.save_pretrained(tmp_path / "motion_encoder")
    with pytest.raises(ValueError, match="motion_encoder: holds another .*safetensors than is used now"):
        precompute(videos, tmp_path, str(made))


def test_latents_of_an_encoder_that_was_taught_by_controls_have_their_origin(made, tmp_path):
    encoders = {"motion": str(tmp_path), "sound": str(made.parent / "audio_encoder")}
    taught = MotionEncoder(image_size=64, channels=(8, 8, 16), latent_dim=32, latent_origin=CONTROLS_ORIGIN)
    taught.save_pretrained(tmp_path)
    assert ShardEncoder(**encoders, decoders=1, device="cpu")._made["latent_origin"] == CONTROLS_ORIGIN


def test_shards_of_another_encoder_are_made_again_and_those_without_an_origin_are_kept(
    worker, one_shard, tmp_path
):
    """The folder of the encoder was removed, but the shards next to it were not."""
    place, good = Location.parse(str(tmp_path)), one_shard.subset(np.array([0, 1, 3]))
    job = ShardJob(index=good, place=place)
    others = dict(worker._made)

    def make(**made) -> bool:
        worker._made = {name: value for name, value in {**others, **made}.items() if value}
        (result,) = worker.run_batch([job])
        assert result.error is None
        return result.written

    assert make(latent_origin="motion-encoder-0")
    assert not make(latent_origin="motion-encoder-0")
    assert make()
    assert make(audio_origin="log-mel-0")
    # Write the shard as an earlier version did.
    shutil.rmtree(tmp_path)
    with ShardWriter(str(tmp_path), "train") as writer:
        for row in range(good.samples):
            frames = int(good.frames[row])
            arrays = {"motion.npy": np.ones((frames, 32), "f2"), "audio.npy": np.ones((frames, 1, 160), "f2")}
            meta = {**good.read_meta(row), "motion": "encoder"}
            writer.write(str(good.key[row]), {**arrays, "json": meta})
    assert not make()


def test_an_encoders_config_of_an_earlier_version_is_replaced(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    encoder = MotionEncoder(image_size=64, channels=(8, 8, 16), latent_dim=32, latent_origin=CONTROLS_ORIGIN)
    encoder.save_pretrained(source)
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    for changes, fits in (({"latent_origin": None}, False), ({}, True), ({"image_size": 32}, False)):
        earlier = {**config, **changes}
        if fits:
            del earlier["latent_origin"]
        (target / "config.json").write_text(json.dumps(earlier))
        if fits:
            save_encoder(source, str(target))
            assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()
        else:
            with pytest.raises(ValueError, match="holds another config.json"):
                save_encoder(source, str(target))


def test_unusable_folders_are_named(made, videos, model, tmp_path, ray_cluster):
    with pytest.raises(ValueError, match="holds latents, not videos"):
        precompute(str(made), model, str(tmp_path / "shards"))
    with pytest.raises(ValueError, match="need another folder"):
        precompute(videos, model, videos)
    with pytest.raises(FileNotFoundError, match="holds no motion_encoder/config.json"):
        precompute(videos, tmp_path, str(tmp_path / "shards"))


def test_the_job_runs_on_a_cluster(videos, model, made, tmp_path, ray_cluster):
    """The job joins a cluster by its address alone, and relative paths start at the job's working folder."""
    command = [sys.executable, CHECKOUT / "jobs" / "precompute.py", "--videos", videos, "--model", str(model)]
    done = subprocess.run(
        [*command, "--output", "out/shards"],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": ray_cluster},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "3 shards written, 0 already existed, 0 samples left out" in done.stdout
    for shard in made.glob("*.tar"):
        assert (tmp_path / "out" / "shards" / shard.name).read_bytes() == shard.read_bytes()

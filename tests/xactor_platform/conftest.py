"""Provide small corpora, a small model and its input to the platform's tests."""

import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
from PIL import Image

from xactor.media import write_video
from xactor_platform.data.shards import ShardWriter

LATENT_WIDTH, AUDIO_LAYERS, AUDIO_WIDTH = 6, 2, 5


def make_sample(frames: int, seed: int = 0) -> dict[str, Any]:
    """Return a sample's members. Column 0 of its motion holds the frame number."""
    generator = np.random.default_rng([seed, frames])
    motion = generator.standard_normal((frames, LATENT_WIDTH)).astype(np.float16)
    motion[:, 0] = np.arange(frames)
    audio = generator.standard_normal((frames, AUDIO_LAYERS, AUDIO_WIDTH)).astype(np.float16)
    meta = {"frames": frames, "fps": 25, "speaker": f"s{seed % 3}", "sync_confidence": 5.5}
    return {"motion.npy": motion, "audio.npy": audio, "json": meta}


@pytest.fixture
def sample() -> Callable[..., dict[str, Any]]:
    return make_sample


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes shards of clips of given lengths and returns their folder.

    The keys are `<split>-<number>`.
    """

    def write(lengths: Sequence[int], split: str = "train", samples_per_shard: int = 8) -> str:
        folder = str(tmp_path / "shards")
        with ShardWriter(folder, split, samples_per_shard=samples_per_shard) as writer:
            for i, frames in enumerate(lengths):
                writer.write(f"{split}-{i:04d}", make_sample(frames, seed=i))
        return folder

    return write


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    """Write the corpus of small_run and return its folder. A test that changes the corpus copies it first."""
    return small_run.write_corpus(str(tmp_path_factory.mktemp("corpus") / "shards"))


@pytest.fixture(scope="session")
def whole_run(ray_cluster, shards, tmp_path_factory):
    """Train the run `whole` on two ranks without interruption, for comparison. Return its storage and result."""
    from xactor_platform.training.launch import train

    storage = tmp_path_factory.mktemp("runs")
    return storage, train(small_run.config_of(shards, storage, "whole"))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    from pipelines import small_pipeline

    folder = tmp_path_factory.mktemp("model")
    small_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Path:
    """Return a folder with face.png, bust.mp4 with that face, 1.wav to 4.wav of 1 to 4 s, and unusable files."""
    from xactor.controls import CONTROL_COUNT
    from xactor_platform.demo_corpus.identity import held_out_identities, render_frame

    folder = tmp_path_factory.mktemp("media")
    face = render_frame(held_out_identities()[0], np.zeros(CONTROL_COUNT, np.float32), 256)
    Image.fromarray(face).save(folder / "face.png")
    Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(folder / "wall.png")
    write_video(folder / "bust.mp4", [face] * 10, samples=np.zeros(0, np.float32))
    for seconds in (1, 2, 3, 4):
        write_wav(folder / f"{seconds}.wav", seconds)
    (folder / "text.png").write_text("no picture")
    (folder / "cut.wav").write_bytes((folder / "1.wav").read_bytes()[:20])
    return folder


def write_wav(path: Path, seconds: float, seed: int = 0) -> None:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * 16_000))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((3000 * noise).astype("<i2").tobytes())


@pytest.fixture(scope="session")
def talkers() -> tuple:
    from talkers import Talker

    return Talker(1, seed=1), Talker(0, seed=2)

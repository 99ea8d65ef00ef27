"""Small corpora for the platform's tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xactor_platform.shards import ShardWriter

LATENT_WIDTH, AUDIO_LAYERS, AUDIO_WIDTH = 6, 2, 5


def make_sample(frames: int, seed: int = 0) -> dict[str, Any]:
    """A sample's members; its motion says in column 0 which frame it is."""
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
    """Writes clips of the given lengths, `<split>-<number>` by key, and returns the folder."""

    def write(lengths: Sequence[int], split: str = "train", samples_per_shard: int = 8) -> str:
        folder = str(tmp_path / "shards")
        with ShardWriter(folder, split, samples_per_shard=samples_per_shard) as writer:
            for i, frames in enumerate(lengths):
                writer.write(f"{split}-{i:04d}", make_sample(frames, seed=i))
        return folder

    return write

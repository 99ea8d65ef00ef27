"""Configure a training that takes seconds, write its corpus, and read its metrics."""

from pathlib import Path
from typing import Any

import numpy as np

from xactor_platform.data.index_file import load_index
from xactor_platform.data.shards import ShardWriter
from xactor_platform.training.run.folder import RunFolder
from xactor_platform.training.stage2_config import LatentDataConfig, MotionConfig, Stage2Config, tiny
from xactor_platform.training.train_config import RunConfig, ScaleConfig, TrainConfig, as_dict

STEPS, EVERY = 60, 12
BAD_CLIP = "train-004"


def write_corpus(folder: str) -> str:
    """Write 40 training clips, one of them with a NaN, and 4 held-out clips, with latents of width 6."""
    generator = np.random.default_rng(0)
    for split, clips in (("train", 40), ("test", 4)):
        with ShardWriter(folder, split, samples_per_shard=10) as writer:
            for i in range(clips):
                frames = int(generator.integers(10, 70))
                audio = generator.standard_normal((frames, 2, 5)).astype(np.float16)
                # A wave that the model can learn.
                wave = np.sin(0.2 * np.arange(frames) + generator.uniform(0, 6))
                motion = np.repeat(1.4 * wave[:, None], 6, axis=1).astype(np.float16)
                meta = {"frames": frames, "fps": 25, "speaker": f"s{i % 3}"}
                writer.write(f"{split}-{i:03d}", {"motion.npy": motion, "audio.npy": audio, "json": meta})
    # The writer refuses a sample with a NaN, so it is damaged afterwards.
    index = load_index(folder)
    row = index.key.tolist().index(BAD_CLIP)
    with (Path(folder) / index.shard_names[index.shard[row]]).open("r+b") as file:
        # Skip the first 33 float16 numbers.
        file.seek(int(index.offset["motion.npy"][row] + index.header["motion.npy"][row]) + 2 * 33)
        file.write(np.float16(np.nan).tobytes())
    return folder


def config_of(
    shards: str, storage: Path | str, name: str, *, scale: dict[str, Any] | None = None, **train
) -> Stage2Config:
    """Return a config with two ranks, and an evaluation and a checkpoint every twelve steps.

    `scale` and `train` override single values.
    """
    scales = {"ranks": 2, "cpus_per_rank": 0.5, "start_timeout_s": 5, "max_failures": 0, **(scale or {})}
    options = {"steps": STEPS, "evaluate_every": EVERY, "checkpoint_every": EVERY, "log_samples": True}
    options |= {"micro_batches": 4, "budget_frames": 96, "warmup_steps": 2, "learning_rate": 1e-2, **train}
    sizes = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 48, "audio_width": 16}
    return Stage2Config(
        run=RunConfig(storage=str(storage), name=name),
        scale=ScaleConfig(**scales),
        data=LatentDataConfig(shards=shards, max_bad_fraction=0.5),
        model=MotionConfig(**sizes, chunk_frames=8, context_frames=48),
        train=TrainConfig(**options),
    )


def options_of(config: Stage2Config) -> dict[str, Any]:
    """Return the options of `jobs/train_stage2.py tiny` that give this config."""
    given, preset = as_dict(config), as_dict(tiny())
    return {
        f"{section}.{name}".replace("_", "-"): value
        for section, options in given.items()
        for name, value in options.items()
        if value != preset[section][name]
    }


def rows(storage: Path | str, name: str, file: str = "metrics.jsonl") -> list[dict]:
    return RunFolder(str(storage), name).read_lines(file)

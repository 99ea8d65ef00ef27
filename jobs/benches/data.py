"""Compare the planned stream, our data stream, with plain webdataset, and time the plan of the paper's corpus.

A plan is the order of the samples in an epoch. The planned stream reads the samples in this order through Ray Data.
"""

import logging
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any, cast

import numpy as np
import ray
import torch
from torch.utils.data import DataLoader
from webdataset.compat import WebDataset

from xactor.rates import FPS

from xactor_platform.data.batch import Arena, LatentReader
from xactor_platform.data.index import Index
from xactor_platform.data.index_file import load_index
from xactor_platform.data.plan import Cursor, PlanConfig, plan_epoch
from xactor_platform.data.shards import ShardWriter
from xactor_platform.data.stream import PlannedStream

# Numbers in a motion latent, and in one layer of a frame's audio features.
LATENT_WIDTH, AUDIO_WIDTH = 512, 768
# Frames per second that one A100 consumes when it trains the 7B model. A frame takes 6 x 7.6e9 FLOPs, and the GPU is
# assumed to reach half of its peak of 312 TFLOP/s.
A100_FRAMES_PER_S = 3400


def write_synthetic(folder: str, size_bytes: int, audio_layers: int, context_frames: int) -> None:
    """Write shards of Gaussian noise with the layout of motion shards.

    Args:
        folder: Folder of the shards.
        size_bytes: Approximate size of all shards together.
        audio_layers: Number of layers of the audio features.
        context_frames: Maximum length of a clip. The lengths are random, and at least 1 s.
    """
    generator = np.random.default_rng(0)
    values_per_frame = LATENT_WIDTH + audio_layers * AUDIO_WIDTH
    # A float16 number has 2 bytes.
    bytes_per_frame = 2 * values_per_frame
    noise = generator.standard_normal((2 * context_frames, values_per_frame), dtype=np.float32)
    # All clips are parts of this noise.
    pool = noise.astype(np.float16)
    written = number = 0
    with ShardWriter(folder, "train", samples_per_shard=64) as writer:
        while written < size_bytes:
            frames = int(generator.integers(FPS, context_frames + 1))
            first = int(generator.integers(0, context_frames))
            clip = pool[first : first + frames]
            writer.write(
                f"clip{number:06d}",
                {
                    "motion.npy": clip[:, :LATENT_WIDTH],
                    "audio.npy": clip[:, LATENT_WIDTH:].reshape(frames, audio_layers, AUDIO_WIDTH),
                    "json": {"frames": frames, "fps": FPS, "speaker": "noise"},
                },
            )
            written += frames * bytes_per_frame
            number += 1


def compare(shards: str, *, workers: int, rounds: int, epochs: int, config: PlanConfig) -> dict[str, Any]:
    """Measure the frames per second of the planned stream and of webdataset, in turn, over local shards.

    Both decode the same arrays to float32 batches of at most `config.budget_frames` frames. `workers` processes read
    the shards, and this process takes the batches. A round's rate is measured from its first batch on.

    Args:
        shards: Local folder of the shards.
        workers: Number of reading processes.
        rounds: Number of times that each reader reads all epochs. The rates are medians over the rounds.
        epochs: Number of times that each round reads the shards.
        config: Sizes of the samples and batches.

    Returns:
        The options, the rates and the rates of each round, for JSON. `ratio` is the planned stream's rate over
        webdataset's, and `times_an_a100_rank` the planned stream's rate over A100_FRAMES_PER_S.
    """
    # Torch computes on one core in this process, for both readers.
    torch.set_num_threads(1)
    index = load_index(shards)
    ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level=logging.ERROR)
    try:
        readers = {"planned_stream": _planned, "webdataset": _webdataset}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
        for _ in range(rounds):
            for name, reader in readers.items():
                runs[name].append(_rate(reader(index, config, workers, epochs)))
    finally:
        ray.shutdown()
    rates = {name: median(run["frames_per_s"] for run in runs[name]) for name in runs}
    pairs = zip(runs["planned_stream"], runs["webdataset"], strict=True)
    return {
        "workers": workers,
        "epochs": epochs,
        "frames": int(index.frames.sum()),
        "bytes_per_frame": index.frame_shape.bytes_per_frame,
        "budget_frames": config.budget_frames,
        "frames_per_s": rates,
        "ratio": median(ours["frames_per_s"] / theirs["frames_per_s"] for ours, theirs in pairs),
        "times_an_a100_rank": rates["planned_stream"] / A100_FRAMES_PER_S,
        "runs": runs,
    }


def _rate(batches: Iterable[int]) -> dict[str, float]:
    """Return the seconds to the first batch, and the frames per second after it.

    Args:
        batches: Reads the batches, and yields the number of frames of each.
    """
    started = time.perf_counter()
    iterator = iter(batches)
    next(iterator)
    first_batch = time.perf_counter()
    frames = sum(iterator)
    seconds = time.perf_counter() - first_batch
    return {"first_batch_s": first_batch - started, "frames_per_s": frames / seconds}


def _planned(index: Index, config: PlanConfig, workers: int, epochs: int) -> Iterator[int]:
    """Read the shards with the planned stream, and yield the number of real frames of each batch."""
    steps = sum(plan_epoch(index.frames, index.shard, config, epoch).steps for epoch in range(epochs))
    with PlannedStream(LatentReader(index), config, rank=0, ranks=1, start=Cursor(), steps=steps) as stream:
        for batch in stream:
            yield int((batch.frames * (batch.weight > 0)).sum())


def _webdataset(index: Index, config: PlanConfig, workers: int, epochs: int) -> Iterator[int]:
    """Read the shards with webdataset, and yield the number of frames of each batch."""
    urls = [f"{index.location.path}/{name}" for name in index.shard_names] * epochs
    dataset = cast(Any, WebDataset(urls, shardshuffle=False, empty_check=False)).decode()
    loader = DataLoader(
        dataset.compose(_Pack(config.budget_frames, config.context_frames)),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4,
        multiprocessing_context="spawn",
    )
    # Convert to float32 in memory that is used again for every batch, as the planned stream does.
    arena = Arena()
    for motion, audio, _frames in loader:
        for stored in (motion, audio):
            torch.from_numpy(arena.take(tuple(stored.shape))).copy_(stored)
        yield len(motion)


class _Pack:
    """Pack decoded clips into batches as a plain loader does: in order and without padding.

    The batches stay float16, and the main process converts them to float32. A loader whose workers convert them is half
    as fast, because each batch then needs new shared memory, which causes page faults. The comparison uses the faster
    way.
    """

    def __init__(self, budget_frames: int, context_frames: int):
        self.budget_frames, self.context_frames = budget_frames, context_frames

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, ...]]:
        motion, audio, total = [], [], 0
        for sample in samples:
            for start in range(0, len(sample["motion.npy"]), self.context_frames):
                piece = sample["motion.npy"][start : start + self.context_frames]
                if total + len(piece) > self.budget_frames:
                    yield self._join(motion, audio)
                    motion, audio, total = [], [], 0
                motion.append(piece)
                audio.append(sample["audio.npy"][start : start + self.context_frames])
                total += len(piece)
        if motion:
            yield self._join(motion, audio)

    def _join(self, motion: list[np.ndarray], audio: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
        """Join the pieces of a batch: motion [N, D], audio [N, L, F], and the number of frames of each piece."""
        joined = []
        for pieces in (motion, audio):
            joined.append(torch.from_numpy(np.concatenate(pieces)))
        return *joined, torch.tensor([len(piece) for piece in motion])


def paper_lengths() -> np.ndarray:
    """Draw random lengths with the distribution of the paper's clips, in frames, int64 [440,000].

    160K clips have up to 10 s (5 s on average), and 280K clips have 10..60 s (15 s on average).
    """
    generator = np.random.default_rng(0)
    short = np.clip(generator.gamma(4, 1.27, 160_000), 0.4, 10)
    long = np.clip(10 + generator.exponential(5, 280_000), 10, 60)
    lengths = (np.concatenate([short, long]) * FPS).astype(np.int64)
    generator.shuffle(lengths)
    return lengths


def measure_plan(config: PlanConfig) -> dict[str, Any]:
    """Measure the time and the peak memory of planning one epoch of the paper's corpus, and the padding in the plan."""
    lengths = paper_lengths()
    # 256 clips in each shard.
    shard = np.arange(len(lengths)) // 256
    started = time.perf_counter()
    plan = plan_epoch(lengths, shard, config, 0)
    seconds = time.perf_counter() - started
    # Plan again to measure the memory, because tracemalloc makes planning slower.
    tracemalloc.start()
    plan_epoch(lengths, shard, config, 0)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "clips": len(lengths),
        "frames": int(lengths.sum()),
        "samples": len(plan.row),
        "micro_batches": plan.micro_batches,
        "steps": plan.steps,
        "seconds": seconds,
        "peak_mb": peak_bytes / 1e6,
        "padding": plan.padding,
    }

"""Measure the motion engine: its cache, its batching of streams, its speed, and the memory of an hour-long run.

A stream is the motion of one recording. The engine generates it in chunks of frames and puts several streams into one
forward pass. Its cache holds the keys and values of the frames before a chunk, the history. The weights are random,
which does not change the speed. Ray is not needed.
"""

import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Config

from xactor.rates import FPS
from xactor.motion import (
    MotionEngine,
    MotionScheduler,
    MotionStream,
    MotionTransformer,
    MotionTransformerConfig,
    SamplingConfig,
)
from xactor.motion.sampling_plan import sampling_plan
from xactor.randomness import frame_noise

# Sizes of Qwen2.5 (0.5B and 7B) and of smaller models with its architecture: width, layers, heads, key-value heads, MLP
# width.
SIZES = {
    "3M": (256, 4, 4, 2, 512),
    "15M": (512, 4, 8, 2, 1536),
    "90M": (768, 12, 12, 2, 3072),
    "0.5B": (896, 24, 14, 2, 4864),
    "7B": (3584, 28, 28, 4, 18944),
}
# Layers L and width F of the audio features, as from Wav2Vec2 base.
AUDIO = (4, 768)
# The engine pauses a stream that is this many frames ahead of its viewer. Streams without a viewer must never pause.
_NEVER_AHEAD_FRAMES = 10**9


def make_model(size: str) -> MotionTransformer:
    """Make a motion model of a size in SIZES, with random weights and the paper's lengths of context and chunk.

    The weights are bfloat16 on a GPU and float32 on a CPU.
    """
    hidden, layers, heads, kv_heads, mlp = SIZES[size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
    )
    # Create the weights in their final type, on the device.
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = MotionTransformer(
                MotionTransformerConfig(
                    backbone=backbone,
                    audio_layers=AUDIO[0],
                    audio_dim=AUDIO[1],
                    audio_width=min(hidden, 1024),
                )
            )
    finally:
        torch.set_default_dtype(default_dtype)
    return model.eval()


def speech(frames: int, seed: int = 0) -> Tensor:
    """Return noise in place of audio features, [frames, L, F]."""
    return torch.randn(frames, *AUDIO, generator=torch.Generator().manual_seed(seed))


def compare_cache(size: str, *, steps: int, rounds: int) -> dict[str, Any]:
    """Time one chunk after a full history: with the cache, and with the history recomputed in every DDIM step.

    The two ways make `rounds` chunks each, in turn. The times are medians.
    """
    model = make_model(size)
    chunk, history = model.config.chunk_frames, model.config.context_frames - model.config.chunk_frames
    config, window = SamplingConfig(steps=steps), model.config.audio_window
    engine = MotionEngine(model, max_streams=1, run_ahead_frames=_NEVER_AHEAD_FRAMES)
    stream = engine.open(seed=0, config=config)
    stream.feed(speech(history + rounds * chunk + window))
    _step_until(engine, stream, history)
    past = torch.randn(1, history, model.config.latent_dim, device=model.device)
    audio = speech(history + chunk + window)
    cached_s, uncached_s = [], []
    for _ in range(rounds):
        cached_s.append(_seconds(lambda: _step_until(engine, stream, stream.made + chunk)))
        uncached_s.append(_seconds(lambda: uncached_chunk(model, past, audio, config)))
    return {
        "size": size,
        "parameters": model.num_parameters(),
        "context_frames": model.config.context_frames,
        "chunk_frames": chunk,
        "steps": steps,
        "cached_s": median(cached_s),
        "uncached_s": median(uncached_s),
        "uncached_over_cached": median(uncached_s) / median(cached_s),
    }


@torch.inference_mode()
def uncached_chunk(model: MotionTransformer, past: Tensor, audio: Tensor, config: SamplingConfig) -> Tensor:
    """Make the same chunk as the engine with seed 0, but without a cache.

    Symbols: H frames of history, n frames of the chunk, w frames of sound that the model hears on each side of a frame.

    Args:
        model: The motion model.
        past: The standardised latents of the history, [1, H, D].
        audio: Audio features of the history, of the chunk and of the w frames after the chunk, [H + n + w, L, F].
        config: The sampling options.

    Returns:
        The standardised latents of the chunk, [1, n, D].
    """
    scheduler, h, chunk = MotionScheduler(), past.shape[1], model.config.chunk_frames
    window, device = model.config.audio_window, past.device
    plan = sampling_plan(h, chunk, h, config).to(device)
    eps = frame_noise(0, "history", 0, h, past.shape[2]).to(past)[None]
    noised = scheduler.add_noise(past, eps, plan[:1, :h])
    # The audio window of the first frame reaches w frames before the start of the sound. Pad these frames with zeros;
    # `audio_real` is False for them.
    padded = torch.nn.functional.pad(audio, (0, 0, 0, 0, window, 0)).expand(2, -1, -1, -1).to(device)
    audio_real = (torch.arange(h + chunk + 2 * window, device=device) >= window).expand(2, -1)
    # Both branches of classifier-free guidance are in one pass, as in the engine: the first with audio, the second
    # without.
    branches = model.embed_audio(padded, torch.tensor([1.0, 0.0], device=device))
    z = frame_noise(0, "chunk", h, chunk, past.shape[2]).to(past)[None]
    for k, k_next in zip(plan[:-1, None], plan[1:, None], strict=True):
        z_k = torch.cat([noised, z], 1).expand(2, -1, -1)
        v = model(z_k, k.expand(2, -1), branches, audio_real)[:, h:].float()
        z = scheduler.step(v[1:] + config.audio_cfg * (v[:1] - v[1:]), z, k[:, h:], k_next[:, h:])
    return z


@dataclass(frozen=True, kw_only=True)
class Request:
    """Describe a request for the motion of one recording."""

    number: int
    """Number of the request, also the seed of its motion and of its audio features."""
    frames: int
    """Length of the recording, in frames."""
    arrives_s: float
    """Seconds from the start of the measurement to the request's arrival."""


def compare_batching(
    size: str, *, streams: int, chunks: int, steps: int, rounds: int, max_batch: int
) -> dict[str, Any]:
    """Compare three ways to serve the same requests.

    The engine admits a request at any time, into the batch of the running streams. The other two ways serve one request
    after another, or one batch after another, where a batch is all requests that have arrived. The requests arrive
    twice as fast as they can be served one after another. The three ways take turns in every round. There are `streams`
    requests, each for `chunks` chunks.

    Returns:
        The options, the figures of each way as medians over the rounds, and the engine's frames per second divided by
        those of the faster of the other two ways.
    """
    model = make_model(size)
    config = SamplingConfig(steps=steps)
    frames = chunks * model.config.chunk_frames
    single = Request(number=0, frames=frames, arrives_s=0.0)
    # The first run warms up.
    _serve(model, [single], config, admit="one", max_batch=1)
    service_s = _serve(model, [single], config, admit="one", max_batch=1)["seconds"]
    requests = [Request(number=n, frames=frames, arrives_s=n * service_s / 2) for n in range(streams)]
    ways = {"engine": "any", "one_after_another": "one", "whole_batches": "batch"}
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, admit in ways.items():
            runs[way].append(_serve(model, requests, config, admit=admit, max_batch=max_batch))
    figures = {
        way: {name: median(run[name] for run in way_runs) for name in way_runs[0]}
        for way, way_runs in runs.items()
    }
    best = max(figures[way]["frames_per_s"] for way in ("one_after_another", "whole_batches"))
    return {
        "size": size,
        "streams": streams,
        "frames_a_stream": frames,
        "steps": steps,
        "max_batch": max_batch,
        **figures,
        "throughput_over_the_better": figures["engine"]["frames_per_s"] / best,
    }


def _serve(
    model: MotionTransformer, requests: list[Request], config: SamplingConfig, *, admit: str, max_batch: int
) -> dict[str, float]:
    """Serve requests as they arrive.

    The rule of admission is `admit`. `any` admits each request when it arrives. `one` admits the next request when the
    previous request is finished. `batch` admits all requests that have arrived when the previous batch is finished.

    Returns:
        `seconds` in which all requests were served; `frames_per_s` of all requests together; and the median and the
        95th percentile of the seconds from a request's arrival to its first chunk.
    """
    engine = MotionEngine(
        model, max_streams=len(requests), max_batch=max_batch, run_ahead_frames=_NEVER_AHEAD_FRAMES
    )
    waiting, running = list(requests), {}
    first_s: dict[int, float] = {}
    made = 0
    begun = time.perf_counter()
    while waiting or running:
        now = time.perf_counter() - begun
        arrived = [request for request in waiting if request.arrives_s <= now]
        max_admitted = {
            "any": len(arrived),
            "one": 0 if running else 1,
            "batch": 0 if running else len(arrived),
        }
        for request in arrived[: max_admitted[admit]]:
            stream = engine.open(seed=request.number, config=config)
            stream.feed(speech(request.frames, request.number))
            stream.end()
            running[stream] = request
            waiting.remove(request)
        if not engine.step():
            # No stream has work, so wait for the next request.
            time.sleep(0.0005)
        for stream, request in list(running.items()):
            made += len(stream.take())
            if stream.made and request.number not in first_s:
                _synchronize()
                first_s[request.number] = time.perf_counter() - begun - request.arrives_s
            if stream.done:
                del running[stream]
    _synchronize()
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "frames_per_s": made / seconds,
        "first_chunk_p50_s": float(np.percentile(list(first_s.values()), 50)),
        "first_chunk_p95_s": float(np.percentile(list(first_s.values()), 95)),
    }


def measure_rate(size: str, *, config: SamplingConfig, rounds: int) -> dict[str, Any]:
    """Measure the speed of one stream with a full history, as medians over `rounds` chunks.

    Returns:
        The options; `frames_per_s`; `real_time_factor`, the seconds that one second of motion takes; `first_frames_s`,
        the seconds from the start of a chunk to its first finished frames; and on a GPU `of_the_bandwidth_floor`, the
        time to read all weights from memory in every forward pass, as a fraction of the measured time.
    """
    model = make_model(size)
    chunk, history = model.config.chunk_frames, model.config.context_frames - model.config.chunk_frames
    engine = MotionEngine(model, max_streams=1, run_ahead_frames=_NEVER_AHEAD_FRAMES)
    stream = engine.open(seed=0, config=config)
    stream.feed(speech(history + (rounds + 1) * chunk + model.config.audio_window))
    _step_until(engine, stream, history)
    chunk_s, first_frames_s = [], []
    for _ in range(rounds):
        begun, made = time.perf_counter(), stream.made
        _step_until(engine, stream, made + 1)
        _synchronize()
        first_frames_s.append(time.perf_counter() - begun)
        _step_until(engine, stream, made + chunk)
        _synchronize()
        chunk_s.append(time.perf_counter() - begun)
    row = {
        "size": size,
        "parameters": model.num_parameters(),
        "steps": config.steps,
        "groups": config.groups,
        "frames_per_s": chunk / median(chunk_s),
        "real_time_factor": median(chunk_s) / (chunk / FPS),
        "first_frames_s": median(first_frames_s),
    }
    if torch.cuda.is_available():
        # Every forward pass reads all weights, so it takes at least the time to read them from memory.
        weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        # The plan has a row of noise levels before the first step and after every step. The engine makes one pass for
        # each step and one pass over the history, so the number of passes is the number of rows.
        passes = len(sampling_plan(0, chunk, 1, config))
        row["of_the_bandwidth_floor"] = passes * weight_bytes / memory_bandwidth() / median(chunk_s)
    return row


def memory_bandwidth() -> float:
    """Measure the GPU's memory bandwidth with copies of 1 GiB: bytes read plus bytes written, per second."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.numel() / min(_seconds(lambda: target.copy_(source)) for _ in range(10))


def measure_length(size: str, *, minutes: int, steps: int) -> dict[str, Any]:
    """Compare the last minute of a long stream with a stream's second minute: the time of a chunk, and the memory.

    The first minute fills the context. A machine's speed changes over an hour. Therefore the last minute of the long
    stream and the second minute of a new stream are both timed at the end, chunk by chunk in turn. The memory is that
    of the long stream, at the start of its second minute and at the start of its last minute.

    Raises:
        ValueError: `minutes` is below 2.
    """
    if minutes < 2:
        raise ValueError(f"minutes must be >= 2, got {minutes}")
    model = make_model(size)
    chunks_a_minute = 60 * FPS // model.config.chunk_frames
    chunk_speech, config = speech(model.config.chunk_frames), SamplingConfig(steps=steps)

    def make_first_minute() -> tuple[MotionEngine, MotionStream]:
        """Open a stream and make its first minute."""
        engine = MotionEngine(model, max_streams=1)
        stream = engine.open(seed=0, config=config)
        for _ in range(chunks_a_minute):
            make_chunk(engine, stream)
        return engine, stream

    def make_chunk(engine: MotionEngine, stream: MotionStream) -> None:
        """Feed the sound of one chunk, and make the chunk."""
        stream.feed(chunk_speech)
        _drain(engine, stream)

    long = make_first_minute()
    early_mb = _memory_mb()
    for _ in range((minutes - 2) * chunks_a_minute):
        make_chunk(*long)
    late_mb = _memory_mb()
    new = make_first_minute()
    early_chunks_s, late_chunks_s = [], []
    for _ in range(chunks_a_minute):
        early_chunks_s.append(_seconds(lambda: make_chunk(*new)))
        late_chunks_s.append(_seconds(lambda: make_chunk(*long)))
    early_s, late_s = median(early_chunks_s), median(late_chunks_s)
    return {
        "size": size,
        "minutes": minutes,
        "steps": steps,
        "chunk_s_early": early_s,
        "chunk_s_late": late_s,
        "late_over_early_s": late_s / early_s,
        "memory_mb_early": early_mb,
        "memory_mb_late": late_mb,
        "late_over_early_mb": late_mb / early_mb,
    }


def _step_until(engine: MotionEngine, stream: MotionStream, made: int) -> None:
    """Step the engine until the stream has made `made` frames in all."""
    while stream.made < made:
        engine.step()
        stream.take()


def _drain(engine: MotionEngine, stream: MotionStream) -> None:
    """Step the engine until all sound is used. Mark each frame as played at once, so that the stream does not pause."""
    while engine.step():
        stream.take()
        stream.played = stream.made


def _seconds(action: Callable[[], Any]) -> float:
    """Do something and return the seconds that it took, with the GPU's work that it started."""
    _synchronize()
    begun = time.perf_counter()
    action()
    _synchronize()
    return time.perf_counter() - begun


def _synchronize() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory_mb() -> float:
    """Return the memory in use now, in MB: memory of the GPU, or of this process if there is no GPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() / 1e6
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

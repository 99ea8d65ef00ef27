"""Measure the renderer's frames per second and peak memory by window, steps and size, against AnimateDiff.

Weights are random, which takes as long. Each case runs in a process of its own, because the peak of memory is that of
a process.
"""

import gc
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_motion_model import MotionAdapter, UNetMotionModel
from diffusers.pipelines.animatediff.pipeline_animatediff import AnimateDiffPipeline

from xactor.rates import SAMPLE_RATE_HZ
from xactor.motion import SamplingConfig
from xactor.pipeline import XActorPipeline
from xactor.render import (
    MotionEncoder,
    Components,
    ReferenceUNet,
    RenderConfig,
    Renderer,
    RendererUNet,
    random_components,
)
from xactor.render.components import ddim_scheduler

Size = Literal["tiny", "sd15"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Describe one measurement."""

    size: Size
    """Size of the networks."""
    image_size: int
    """Side of the pictures, in pixels."""
    window_frames: int
    """Frames that are denoised together; twice as many with guidance."""
    steps: int
    """DDIM steps of a window."""
    kind: Literal["cached", "uncached", "animatediff"] = "cached"
    """`cached` computes the reference once, `uncached` for every window; `animatediff` is diffusers' own pipeline."""
    rounds: int = 3
    """Windows that are timed, after one that warms up."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Hold the figures of one measurement."""

    frames_per_s: float
    """Frames a second, the median of the rounds."""
    peak_mb: float
    """Peak of the GPU's memory, or of the process's on a CPU, in MB."""


def measure(cases: list[Case]) -> Iterator[dict[str, Any]]:
    """Yield each case with its figures, as soon as it is measured."""
    for case in cases:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            yield asdict(case) | asdict(pool.submit(run_case, case).result())


@dataclass(frozen=True, kw_only=True)
class Long:
    """Hold the figures of a whole video that a model made from noise as audio."""

    seconds: float
    """Length of the video, in seconds."""
    steps: int
    """DDIM steps of a chunk and of a window."""
    frames_per_s: float
    """Frames a second."""
    peak_mb: float
    """Peak of the GPU's memory, or of the process's on a CPU, in MB."""
    at_seams: float
    """Mean change from a frame to the next where two windows share frames, in grey levels."""
    elsewhere: float
    """Mean change from a frame to the next elsewhere, in grey levels."""


def measure_lengths(
    model: str, image: str, seconds: Sequence[float], *, steps: int
) -> Iterator[dict[str, Any]]:
    """Make a video of each length, each in a process of its own, and yield its figures."""
    for each in seconds:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            yield asdict(pool.submit(run_long, model, image, each, steps).result())


def run_long(model: str, image: str, seconds: float, steps: int) -> Long:
    """Make and measure a whole video in this process."""
    pipeline = XActorPipeline.from_pretrained(model)
    if torch.cuda.is_available():
        pipeline.to("cuda", torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ))).astype(np.float32)
    config = RenderConfig(steps=steps, cfg=1)
    begun, before, changes = time.perf_counter(), None, []
    for frame in pipeline(image, samples, motion=SamplingConfig(steps=steps), render=config).frames:
        now = frame.astype(np.float32)
        if before is not None:
            changes.append(float(np.abs(now - before).mean()))
        before = now
    took_s = time.perf_counter() - begun
    # Frames first..first + overlap are blended with the window before: changes into, inside and out of them are seams.
    # Number of the later frame of each change.
    place = np.arange(1, len(changes) + 1)
    seam = (place >= config.stride) & (place % config.stride <= config.overlap_frames)
    device_mb = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else _peak_rss_mb()
    found = np.array(changes)
    return Long(
        seconds=seconds,
        steps=steps,
        frames_per_s=(len(changes) + 1) / took_s,
        peak_mb=device_mb,
        at_seams=float(found[seam].mean()),
        elsewhere=float(found[~seam].mean()),
    )


def run_case(case: Case) -> Measured:
    """Measure a case in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    once = _animatediff(case, device, dtype) if case.kind == "animatediff" else _ours(case, device, dtype)
    # The first window warms up.
    once()
    # The memory that making the models took is not the window's.
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(case.rounds):
        start = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else _peak_rss_mb()
    return Measured(frames_per_s=case.window_frames / median(seconds), peak_mb=peak)


def _ours(case: Case, device: torch.device, dtype: torch.dtype):
    renderer = Renderer(**vars(make_parts(case.size, case.image_size, device))).to(device, dtype)
    config = RenderConfig(
        steps=case.steps, window_frames=case.window_frames, overlap_frames=min(4, case.window_frames // 2)
    )
    size = renderer.image_size
    portrait = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    z = torch.randn(case.window_frames, renderer.latent_dim, generator=torch.Generator().manual_seed(0))
    cached = renderer.reference(portrait) if case.kind == "cached" else None

    def once() -> None:
        reference = renderer.reference(portrait) if cached is None else cached
        renderer.window(reference, z, seed=0, first_frame=0, config=config)

    return once


def _animatediff(case: Case, device: torch.device, dtype: torch.dtype):
    """Prepare diffusers' pipeline with a UNet of the same widths. The text is given as embeddings."""
    parts = make_parts(case.size, case.image_size, device)
    ours = parts.unet.config
    names = (
        "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
        "layers_per_block", "norm_num_groups", "cross_attention_dim", "num_attention_heads", "motion_max_seq_length",
        "motion_num_attention_heads", "use_motion_mid_block",
    )  # fmt: skip
    with device:
        unet = UNetMotionModel(**{name: ours[name] for name in names})
    # Text encoder and tokenizer are not needed, because the embeddings are given.
    unused: Any = None
    pipeline = AnimateDiffPipeline(
        vae=parts.vae,
        text_encoder=unused,
        tokenizer=unused,
        unet=unet,
        motion_adapter=MotionAdapter(
            block_out_channels=tuple(ours["block_out_channels"]),
            motion_norm_num_groups=ours["norm_num_groups"],
        ),
        scheduler=parts.scheduler,
    ).to(device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    text = torch.randn(1, 77, ours["cross_attention_dim"], device=device, dtype=dtype)

    def once() -> None:
        pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            num_frames=case.window_frames,
            height=case.image_size,
            width=case.image_size,
            num_inference_steps=case.steps,
            guidance_scale=2.5,
            decode_chunk_size=4,
            output_type="np",
        )

    return once


def make_parts(size: Size, image_size: int, device: torch.device) -> Components:
    """Make random networks of either size. SD1.5's are made on the device, because a CPU takes long for them."""
    if size == "tiny":
        return random_components(image_size=image_size)
    latents = image_size // 8
    scheduler = ddim_scheduler()
    with device:
        return Components(
            motion_encoder=MotionEncoder(),
            unet=RendererUNet(sample_size=latents),
            reference_unet=ReferenceUNet(sample_size=latents),
            vae=AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),  # pyright: ignore[reportArgumentType]
                down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
                up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
                layers_per_block=2,
                scaling_factor=0.18215,
            ),
            scheduler=scheduler,
        )


def _peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

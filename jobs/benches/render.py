"""Measures the renderer: frames per second and peak memory by window, steps and size, beside diffusers' AnimateDiff.

Weights are random, which takes as long. Each case runs in a process of its own, since memory's peak is a process's.
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
    """
    window_frames: how many frames are denoised together, twice that with guidance.
    kind: `cached` computes the reference once, `uncached` for every window, `animatediff` is diffusers' own pipeline.
    """

    size: Size
    image_size: int
    window_frames: int
    steps: int
    kind: Literal["cached", "uncached", "animatediff"] = "cached"
    rounds: int = 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """frames_per_s: the median of the rounds. peak_mb: of the GPU's memory, or of the process's."""

    frames_per_s: float
    peak_mb: float


def measure(cases: list[Case]) -> Iterator[dict[str, Any]]:
    """Each case with what was measured of it, as soon as it is."""
    for case in cases:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            yield asdict(case) | asdict(pool.submit(run_case, case).result())


@dataclass(frozen=True, kw_only=True)
class Long:
    """A whole video by a model, of so many seconds of noise.

    peak_mb: as in `Measured`. at_seams, elsewhere: the mean change from a frame to the next, in grey levels, where two
    windows share frames and where they do not.
    """

    seconds: float
    steps: int
    frames_per_s: float
    peak_mb: float
    at_seams: float
    elsewhere: float


def measure_lengths(
    model: str, image: str, seconds: Sequence[float], *, steps: int
) -> Iterator[dict[str, Any]]:
    """A video of each length, in a process of its own."""
    for each in seconds:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            yield asdict(pool.submit(run_long, model, image, each, steps).result())


def run_long(model: str, image: str, seconds: float, steps: int) -> Long:
    """In this process."""
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
    # Frames first..first + overlap are faded from the window before: into, inside and out of them are seams.
    place = np.arange(1, len(changes) + 1)  # of the later frame
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
    """In this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    once = _animatediff(case, device, dtype) if case.kind == "animatediff" else _ours(case, device, dtype)
    once()  # warm
    if device.type == "cuda":  # what making the models took is not the window's
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
    """diffusers' pipeline with a UNet of the same widths, given its text as embeddings."""
    parts = make_parts(case.size, case.image_size, device)
    ours = parts.unet.config
    names = (
        "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
        "layers_per_block", "norm_num_groups", "cross_attention_dim", "num_attention_heads", "motion_max_seq_length",
        "motion_num_attention_heads", "use_motion_mid_block",
    )  # fmt: skip
    with device:
        unet = UNetMotionModel(**{name: ours[name] for name in names})
    unused: Any = None  # text encoder and tokenizer: embeddings are given
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
    """Random ones of either size; SD1.5's are made on the device, as a CPU takes long over them."""
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

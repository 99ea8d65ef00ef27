"""Compare the renderer's frames per second and peak memory with AnimateDiff's, by window, steps and size.

The weights are random, which does not change the speed. Each case runs in a separate process, because the operating
system records the peak of memory per process.
"""

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
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
    """Frames of a window. Guidance denoises twice as many frames in one pass."""
    steps: int
    """DDIM steps per window."""
    kind: Literal["cached", "uncached", "animatediff"] = "cached"
    """`cached` and `uncached` are our renderer, which computes the reference (the features of the portrait that it
    copies from) once or for every window; `animatediff` is diffusers' AnimateDiff pipeline."""
    rounds: int = 3
    """Number of windows that are timed, after one window that warms up."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Hold the figures of one measurement."""

    frames_per_s: float
    """Frames per second, the median of the rounds."""
    peak_mb: float
    """Peak of the GPU's memory, or of the process's memory on a CPU, in MB."""


def measure(cases: list[Case]) -> Iterator[dict[str, Any]]:
    """Measure each case in a separate process. Yield the fields of the `Case` and of its `Measured` when it is done."""
    for case in cases:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            yield asdict(case) | asdict(pool.submit(run_case, case).result())


@dataclass(frozen=True, kw_only=True)
class Long:
    """Hold the figures of a whole video that a model made from noise in place of speech."""

    seconds: float
    """Length of the video, in seconds."""
    steps: int
    """DDIM steps per chunk and per window."""
    frames_per_s: float
    """Frames per second."""
    peak_mb: float
    """Peak of the GPU's memory, or of the process's memory on a CPU, in MB."""
    at_seams: float
    """Mean absolute difference of two successive frames, in grey levels, where at least one belongs to two windows."""
    elsewhere: float
    """Mean absolute difference of all other pairs of successive frames, in grey levels."""


def measure_lengths(
    model: str, image: str, seconds: Sequence[float], *, steps: int
) -> Iterator[dict[str, Any]]:
    """Make and measure a video of each length, each in a separate process.

    Args:
        model: Folder of a pipeline.
        image: File of the portrait.
        seconds: Lengths of the videos, in seconds.
        steps: DDIM steps per chunk of motion and per window of frames.

    Yields:
        The fields of `Long` for each video.
    """
    for length_s in seconds:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            yield asdict(pool.submit(run_long, model, image, length_s, steps).result())


def run_long(model: str, image: str, seconds: float, steps: int) -> Long:
    """Make and measure a whole video in this process."""
    pipeline = XActorPipeline.from_pretrained(model)
    if torch.cuda.is_available():
        pipeline.to("cuda", torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE_HZ))).astype(np.float32)
    config = RenderConfig(steps=steps, cfg=1)
    begun, previous, differences = time.perf_counter(), None, []
    for frame in pipeline(image, samples, motion=SamplingConfig(steps=steps), render=config).frames:
        current = frame.astype(np.float32)
        if previous is not None:
            differences.append(float(np.abs(current - previous).mean()))
        previous = current
    took_s = time.perf_counter() - begun
    # The first `overlap_frames` frames of each later window are blended with the previous window. A difference is at a
    # seam if at least one of its two frames is such a blended frame.
    # Number of the second of the two frames of each difference.
    later_frame = np.arange(1, len(differences) + 1)
    is_seam = (later_frame >= config.stride) & (later_frame % config.stride <= config.overlap_frames)
    peak_mb = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else _peak_rss_mb()
    grey_levels = np.array(differences)
    return Long(
        seconds=seconds,
        steps=steps,
        frames_per_s=(len(differences) + 1) / took_s,
        peak_mb=peak_mb,
        at_seams=float(grey_levels[is_seam].mean()),
        elsewhere=float(grey_levels[~is_seam].mean()),
    )


def run_case(case: Case) -> Measured:
    """Measure a case in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    prepare = _animatediff if case.kind == "animatediff" else _ours
    render_window = prepare(case, device, dtype)
    # The first window warms up.
    render_window()
    # On a GPU, leave out the memory that only the creation of the models needed. The peak of a process cannot be reset.
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(case.rounds):
        begun = time.perf_counter()
        render_window()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    peak_mb = torch.cuda.max_memory_allocated() / 1e6 if device.type == "cuda" else _peak_rss_mb()
    return Measured(frames_per_s=case.window_frames / median(seconds), peak_mb=peak_mb)


def _ours(case: Case, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that renders a window with our renderer."""
    renderer = Renderer(**vars(make_parts(case.size, case.image_size, device))).to(device, dtype)
    config = RenderConfig(
        steps=case.steps, window_frames=case.window_frames, overlap_frames=min(4, case.window_frames // 2)
    )
    size = renderer.image_size
    portrait = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    z = torch.randn(case.window_frames, renderer.latent_dim, generator=torch.Generator().manual_seed(0))
    cached = renderer.reference(portrait) if case.kind == "cached" else None

    def render_window() -> None:
        reference = renderer.reference(portrait) if cached is None else cached
        renderer.window(reference, z, seed=0, first_frame=0, config=config)

    return render_window


def _animatediff(case: Case, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that renders a window with diffusers' AnimateDiff, with a UNet of the same widths as ours."""
    parts = make_parts(case.size, case.image_size, device)
    ours = parts.unet.config
    names = (
        "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
        "layers_per_block", "norm_num_groups", "cross_attention_dim", "num_attention_heads", "motion_max_seq_length",
        "motion_num_attention_heads", "use_motion_mid_block",
    )  # fmt: skip
    with device:
        unet = UNetMotionModel(**{name: ours[name] for name in names})
    # The pipeline needs no text encoder and no tokenizer, because it gets embeddings instead of text.
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
    # Embeddings of CLIP's 77 text tokens.
    text = torch.randn(1, 77, ours["cross_attention_dim"], device=device, dtype=dtype)

    def render_window() -> None:
        pipeline(
            prompt_embeds=text,
            negative_prompt_embeds=text,
            num_frames=case.window_frames,
            height=case.image_size,
            width=case.image_size,
            num_inference_steps=case.steps,
            # As in our renderer: the guidance scale that RenderConfig has by default, and four frames in a pass of the
            # VAE's decoder.
            guidance_scale=2.5,
            decode_chunk_size=4,
            output_type="np",
        )

    return render_window


def make_parts(size: Size, image_size: int, device: torch.device) -> Components:
    """Make our renderer's networks with random weights. On a CPU, networks of SD1.5's size would take long to make.

    Args:
        size: Size of the networks.
        image_size: Side of the pictures, in pixels.
        device: Device on which networks of SD1.5's size are made.
    """
    if size == "tiny":
        return random_components(image_size=image_size)
    latent_size = image_size // 8
    scheduler = ddim_scheduler()
    with device:
        return Components(
            motion_encoder=MotionEncoder(),
            unet=RendererUNet(sample_size=latent_size),
            reference_unet=ReferenceUNet(sample_size=latent_size),
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
    """Return the peak of this process's resident memory, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

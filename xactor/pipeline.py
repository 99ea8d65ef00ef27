"""Define the diffusers pipeline that makes a video from a portrait and speech."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils.import_utils import is_accelerate_available
from PIL import Image

from xactor.animation import CONVERSIONS, OUTPUT_TYPES, Animation, OutputType
from xactor.audio.encoder import AudioEncoder, load_audio_encoder
from xactor.media import Sound, TooLong, mono, read_audio
from xactor.model_folder import (
    BOX,
    COMPONENTS,
    RENDERER_COMPONENTS,
    check_origins,
    config_file,
    downloaded,
    loading,
    located,
)
from xactor.motion import MotionScheduler, MotionTransformer, SamplingConfig, stream_motion
from xactor.motion.loading import load_transformer
from xactor.options import AnimateOptions, Recommended
from xactor.origin import check_loaded
from xactor.portrait import Portrait, find_portrait, read_image, sized_for_video
from xactor.randomness import into_own_memory
from xactor.rates import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, frame_count
from xactor.render import MotionEncoder, ReferenceUNet, RenderConfig, Renderer, RendererUNet

_log = logging.getLogger(__name__)

_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only")
_CLASSES: dict[str, Any] = {
    "motion": MotionTransformer,
    "motion_scheduler": MotionScheduler,
    "motion_encoder": MotionEncoder,
    "audio_encoder": AudioEncoder,
    "unet": RendererUNet,
    "reference_unet": ReferenceUNet,
    "vae": AutoencoderKL,
    "scheduler": DDIMScheduler,
}

Config = TypeVar("Config", SamplingConfig, RenderConfig)
StepCallback = Callable[["XActorPipeline", int, int, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
"""A callback in diffusers' form: see `XActorPipeline.__call__`."""


class XActorPipeline(DiffusionPipeline):
    """Animate portraits: `XActorPipeline.from_pretrained()("face.png", "speech.wav").save("out.mp4")`."""

    # With None, diffusers refuses to offload models to the CPU.
    model_cpu_offload_seq = None

    def __init__(
        self,
        motion: MotionTransformer,
        motion_scheduler: MotionScheduler,
        motion_encoder: MotionEncoder,
        audio_encoder: AudioEncoder,
        unet: RendererUNet,
        reference_unet: ReferenceUNet,
        vae: AutoencoderKL,
        scheduler: DDIMScheduler,
    ):
        """Combine loaded components. Raises ValueError if they do not fit together."""
        super().__init__()
        self.recommended = Recommended()
        latent_dim = int(unet.config["latent_dim"])
        if motion.config.latent_dim != latent_dim:
            raise ValueError(
                f"the motion model makes latents of {motion.config.latent_dim} numbers, "
                f"the renderer takes {latent_dim}"
            )
        audio_layers, audio_dim = motion.config.audio_layers, motion.config.audio_dim
        if (audio_layers, audio_dim) != (audio_encoder.layers, audio_encoder.width):
            raise ValueError(
                f"the motion model takes audio features of {audio_layers} layers of {audio_dim}, "
                f"the audio encoder makes {audio_encoder.layers} of {audio_encoder.width}"
            )
        check_loaded(motion, motion_encoder, unet, audio_encoder)
        self.register_modules(
            motion=motion,
            motion_scheduler=motion_scheduler,
            motion_encoder=motion_encoder,
            audio_encoder=audio_encoder,
            unet=unet,
            reference_unet=reference_unet,
            vae=vae,
            scheduler=scheduler,
        )

    @torch.inference_mode()
    def animate(
        self,
        portrait: Portrait,
        samples: np.ndarray,
        *,
        seed: int = 0,
        motion: SamplingConfig | None = None,
        render: RenderConfig | None = None,
        paste_back: bool = False,
        callback_on_step_end: StepCallback | None = None,
    ) -> Iterator[np.ndarray]:
        """Yield each frame as soon as it is made: uint8 [S, S, 3], or the whole picture with `paste_back`.

        Args:
            portrait: The picture and the face in it.
            samples: The audio, float32 [N], mono, 16 kHz. It gives round(N / 640) frames. Memory does not grow with N.
            seed: The same seed, portrait and audio give the same frames.
            motion: Options of the motion model. By default the model's recommendation, `self.recommended`.
            render: Options of the renderer. By default the model's recommendation, too.
            paste_back: Put the face back into its picture.
            callback_on_step_end: See `__call__`.
        """
        renderer, options = self.renderer, AnimateOptions().with_recommended(self.recommended)
        motion, config = motion or options.sampling(), render or options.rendering()
        samples = np.pad(samples, (config.lead_frames * SAMPLES_PER_FRAME, 0))
        audio = (torch.from_numpy(piece) for piece in self.audio_encoder.stream(samples))  # [n, L, F]
        z = stream_motion(self.motion, audio, seed=seed, config=motion)  # [n, D]
        reference = renderer.reference(portrait.box.cut(portrait.picture, renderer.image_size))
        on_step = partial(_call_back, self, callback_on_step_end) if callback_on_step_end else None
        shown = {"seed": seed, "config": config, "lead_frames": config.lead_frames, "on_step": on_step}
        for frame in renderer.render(reference, z, **shown):
            yield portrait.box.paste(portrait.picture, frame) if paste_back else frame

    def __call__(
        self,
        image: str | Path | bytes | Image.Image | np.ndarray,
        audio: str | Path | np.ndarray | tuple[int, np.ndarray],
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_motion_steps: int | None = None,
        audio_guidance_scale: float | None = None,
        motion: SamplingConfig | None = None,
        render: RenderConfig | None = None,
        paste_back: bool = False,
        max_seconds: float | None = None,
        output_type: OutputType = "uint8",
        callback_on_step_end: StepCallback | None = None,
    ) -> Animation:
        """Check the inputs and return an animation. Its frames are computed, with a progress bar, while they are read.

        Args:
            image: A picture with a face: a file in any format of `xactor.portrait.FORMATS`, its content, an open
                picture, or uint8 [H, W, 3].
            audio: Audio or video in any format that PyAV reads, samples float32 [N], mono, 16 kHz, or a sample rate
                and samples [N] or [N, channels], float in [-1, 1] or int16.
            seed: The same seed, image and audio give the same video.
            generator: If given, the seed is drawn from it.
            num_inference_steps: DDIM steps of each window of frames. By default `render.steps`.
            guidance_scale: Guidance of the frames by the motion, 1..20. By default `render.cfg`.
            num_motion_steps: DDIM steps of each chunk of motion. By default `motion.steps`.
            audio_guidance_scale: Guidance of the motion by the audio, 1..20. By default `motion.audio_cfg`.
            motion: Options of the motion model. By default the model's recommendation, `self.recommended`.
            render: Options of the renderer. By default the model's recommendation, too.
            paste_back: Put the face back into its picture, which is shrunk so that no side is longer than 1920
                pixels.
            max_seconds: Maximum length of the audio; None means no maximum.
            output_type: Type of the frames.
            callback_on_step_end: Called after each DDIM step of N windows of W frames with this pipeline, the step's
                number, its timestep and {"latents": [N, W, C, h, w]}. "latents" in its result replace the given ones.

        Raises:
            ValueError: The picture has no face, a file cannot be decoded, the audio is too short or too long, or an
                option is out of range.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        options = AnimateOptions().with_recommended(self.recommended)
        motion = _replaced(
            motion or options.sampling(), steps=num_motion_steps, audio_cfg=audio_guidance_scale
        )
        render = _replaced(render or options.rendering(), steps=num_inference_steps, cfg=guidance_scale)
        self.motion.config.check_chunk(motion.chunk_frames)
        self.renderer.check_config(render)
        if generator is not None:
            seed = int(torch.randint(0, 2**63 - 1, (), generator=generator, device=generator.device))
        samples = _samples(audio, max_seconds)
        count = frame_count(len(samples))
        if count < 1:
            length_ms = len(samples) / SAMPLE_RATE_HZ * 1000
            raise ValueError(f"{_describe(audio, 'the audio')}: {length_ms:.0f} ms of audio are too short")
        picture = read_image(image)
        try:
            portrait = find_portrait(sized_for_video(picture) if paste_back else picture)
        except ValueError as error:
            raise ValueError(f"{_describe(image, 'the picture')}: {error}") from error
        frames = self.animate(
            portrait,
            samples,
            seed=seed,
            motion=motion,
            render=render,
            paste_back=paste_back,
            callback_on_step_end=callback_on_step_end,
        )
        return Animation(
            frames=map(CONVERSIONS[output_type], self._with_progress(frames, count)),
            frame_count=count,
            sound=Sound.of(audio) if isinstance(audio, str | Path) else samples,
            notes=portrait.notes,
        )

    @property
    def renderer(self) -> Renderer:
        """Return a renderer that uses the current components."""
        return Renderer(**{name: getattr(self, name) for name in RENDERER_COMPONENTS})

    def to(self, *args, **kwargs):
        """Move and cast the models. The audio encoder is not cast: its features are float32, as in training."""
        super().to(*args, **kwargs)
        self.audio_encoder.to(self.device)
        return self

    def register_modules(self, **components):
        """Register the components. Record ours as `xactor.<class>`, so that saved folders load if a class has moved."""
        super().register_modules(**components)
        ours = {name: c for name, c in components.items() if type(c).__module__.startswith("xactor.")}
        self.register_to_config(**{name: ("xactor", type(c).__name__) for name, c in ours.items()})

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # pyright: ignore
        """Write each component to its folder, model_index.json, and recommended.json if there is a recommendation.

        Args:
            save_directory: The model folder.
            **options: Options of the models, such as `max_shard_size`.
        """
        # Diffusers' own method omits, with a warning, components that are neither diffusers' nor transformers'.
        for name, component in self.components.items():
            component.save_pretrained(Path(save_directory, name), **(options if _is_model(name) else {}))
        self.recommended.save(save_directory)
        self.save_config(save_directory)

    @classmethod
    def from_pretrained(  # pyright: ignore
        cls, folder: str | Path = BOX, *, torch_dtype: torch.dtype = torch.float32, **options: Any
    ) -> "XActorPipeline":
        """Load a saved pipeline.

        Args:
            folder: The model folder, or a name `owner/model` on the Hugging Face hub, which is downloaded. `box` is the
                model that comes with this package.
            torch_dtype: Type of the models' weights, except the audio encoder's.
            **options: Components that are already loaded, by name, which replace the folder's; `revision`, `cache_dir`,
                `token` and `local_files_only`, for the hub. All other options, such as `variant`, are passed to the
                models' `from_pretrained`.

        Raises:
            ValueError: The hub has no such model or cannot be reached, or a component is missing or of another kind.
                The message names the folder and the component.
        """
        hub = {name: options.pop(name) for name in _HUB_OPTIONS if name in options}
        folder = downloaded(located(folder), hub)
        index = Path(folder, "model_index.json")
        if not index.is_file():
            raise ValueError(f"{folder}: no model folder (model_index.json is missing)")
        name = _read_json(index).get("_class_name")
        if name != cls.__name__:
            raise ValueError(f"{index}: _class_name must be {cls.__name__}, got {name}")
        recommended = Recommended.of(folder)
        pipeline = cls._assemble(dict.fromkeys(COMPONENTS, Path(folder)), torch_dtype, options)
        pipeline.recommended = recommended
        return pipeline

    @classmethod
    def from_stages(
        cls,
        stage1: str | Path,
        stage2: str | Path,
        *,
        torch_dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> "XActorPipeline":
        """Load the pipeline from two trainings' exports. The options are those of `from_pretrained`.

        Args:
            stage1: Export of stage 1, the renderer.
            stage2: Export of stage 2, the motion model.
            torch_dtype: Type of the models' weights, except the audio encoder's.
            **options: See `from_pretrained`.
        """
        folders = {name: Path(stage1 if name in RENDERER_COMPONENTS else stage2) for name in COMPONENTS}
        return cls._assemble(folders, torch_dtype, options)

    @classmethod
    def _assemble(cls, folders: dict[str, Path], torch_dtype: torch.dtype, options: dict[str, Any]):
        """Load each component from its folder, unless `options` contain it, and build the pipeline."""
        ready = {name: options.pop(name) for name in COMPONENTS if name in options}
        folders = {name: folder for name, folder in folders.items() if name not in ready}
        # Check all folders first, because loading a component may take minutes.
        for name, folder in folders.items():
            if not (folder / name).is_dir():
                raise ValueError(f"{folder}: the component {name}/ is missing")
        for note in check_origins(folders):
            _log.warning("%s", note)
        ready |= {name: _load(folder, name, torch_dtype, options) for name, folder in folders.items()}
        pipeline = cls(**ready)
        if "unet" in folders:
            # Sizes in the UNet's config that are no numbers would fail at the first call.
            with loading(folders["unet"], "unet", RendererUNet.__name__):
                _ = pipeline.renderer
        return pipeline

    def _with_progress(self, frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
        with self.progress_bar(total=count) as bar:  # pyright: ignore
            for frame in frames:
                yield frame
                bar.update()


def _load(folder: Path, name: str, dtype: torch.dtype, options: dict[str, Any]):
    """Load one component of a model folder. Raises ValueError that names the folder and the component."""
    kind = _CLASSES[name]
    with loading(folder, name, kind.__name__):
        if name == "audio_encoder":
            return load_audio_encoder(folder / name)
        config = config_file(name)
        if not (folder / name / config).is_file():
            raise ValueError(f"{config} is missing")
        if name == "motion":
            # The options come last, so that they may contain another dtype.
            return load_transformer(folder / name, **{"dtype": dtype, **options})
        return _load_diffusers(kind, folder / name, config, dtype, options)


def _load_diffusers(kind: Any, folder: Path, config: str, dtype: torch.dtype, options: dict[str, Any]):
    """Load a scheduler, or a model in diffusers' format. Its config must name the class `kind`."""
    # diffusers would also load the config of another class, and would leave the weights random.
    saved = _read_json(folder / config).get("_class_name")
    if saved != kind.__name__:
        raise ValueError(f"{config} must describe a {kind.__name__}, got {saved}")
    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(folder)
    options = {"torch_dtype": dtype, "low_cpu_mem_usage": is_accelerate_available(), **options}
    model, info = kind.from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
        folder, output_loading_info=True, **options
    )
    if info["missing_keys"]:
        raise ValueError(f"weights are missing: {', '.join(sorted(info['missing_keys'])[:3])}")
    into_own_memory(model)
    return model


def _is_model(name: str) -> bool:
    """Return whether a component is a torch module. The schedulers and the audio encoder are not."""
    return issubclass(_CLASSES[name], torch.nn.Module)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _samples(
    audio: str | Path | np.ndarray | tuple[int, np.ndarray], max_seconds: float | None
) -> np.ndarray:
    """Convert audio of any kind that `XActorPipeline` takes to float32 [N], mono, 16 kHz. Raises ValueError."""
    if isinstance(audio, str | Path):
        return read_audio(audio, max_seconds=max_seconds)
    rate_hz, samples = audio if isinstance(audio, tuple) else (SAMPLE_RATE_HZ, audio)
    samples = mono(samples, rate_hz)
    if max_seconds is not None and len(samples) > max_seconds * SAMPLE_RATE_HZ:
        raise TooLong(f"the audio: longer than {max_seconds:g} s, the maximum")
    return samples


def _replaced(config: Config, **values: Any) -> Config:
    """Return a config in which the values that are not None replace its own."""
    return replace(config, **{name: value for name, value in values.items() if value is not None})  # pyright: ignore


def _call_back(
    pipeline: XActorPipeline, callback: StepCallback, step: int, level: int, latents: torch.Tensor
) -> torch.Tensor:
    """Call a user's callback after a DDIM step. Return the latents for the next step."""
    return (callback(pipeline, step, level, {"latents": latents}) or {}).get("latents", latents)


def _describe(source: Any, fallback: str) -> str:
    """Return the source's path as text, or `fallback` if the source is not a path."""
    return str(source) if isinstance(source, str | Path) else fallback

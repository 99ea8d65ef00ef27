"""Define the diffusers pipeline that makes a video from a portrait and speech."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils.import_utils import is_accelerate_available
from PIL import Image

from xactor.audio.encoder import AudioEncoder, load_audio_encoder
from xactor.media import Sound, read_audio, write_video
from xactor.model_folder import COMPONENTS, RENDERER_COMPONENTS, config_file
from xactor.motion import (
    MotionScheduler,
    MotionTransformer,
    SamplingConfig,
    stream_motion,
)
from xactor.motion.loading import LOADING_ERRORS, load_transformer
from xactor.portrait import Portrait, find_portrait, read_image, sized_for_video
from xactor.provenance import ai_generated
from xactor.randomness import into_own_memory
from xactor.rates import FPS, SAMPLE_RATE_HZ, frame_count
from xactor.render import MotionEncoder, ReferenceUNet, RenderConfig, Renderer, RendererUNet

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


@dataclass(frozen=True, kw_only=True)
class Animation:
    """Hold a video whose frames are computed while they are read. They can be read only once."""

    frames: Iterator[np.ndarray]
    """Frames uint8 [H, W, 3], at 25 fps."""
    frame_count: int
    """Number of frames."""
    sound: Sound | np.ndarray
    """The audio as the caller gave it."""
    notes: tuple[str, ...] = ()
    """Remarks on the portrait for the user, such as that it holds several faces."""

    def save(self, path: str | Path) -> int:
        """Compute the frames and write an mp4 that says it is AI-generated. Return the number of frames.

        The file appears only when it is complete.
        """
        return write_video(path, self.frames, fps=FPS, samples=self.sound, metadata=ai_generated())


class XActorPipeline(DiffusionPipeline):
    """Animate portraits: `XActorPipeline.from_pretrained(folder)("face.png", "speech.wav").save("out.mp4")`."""

    # Without an order of offloading, diffusers refuses to offload models to the CPU.
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
    ) -> Iterator[np.ndarray]:
        """Yield each frame as soon as it is made: uint8 [S, S, 3], or the whole picture with `paste_back`.

        Memory does not grow with the length of the audio.

        Args:
            portrait: The picture and the face in it.
            samples: The audio, float32 [N], mono, 16 kHz. It gives round(N / 640) frames.
            seed: The same seed, portrait and audio give the same frames.
            motion: Options of the motion model.
            render: Options of the renderer.
            paste_back: Put the face back into its picture.
        """
        renderer = self.renderer
        audio = (torch.from_numpy(piece) for piece in self.audio_encoder.stream(samples))  # [n, L, F]
        z = stream_motion(self.motion, audio, seed=seed, config=motion)  # [n, D]
        reference = renderer.reference(portrait.box.cut(portrait.picture, renderer.image_size))
        for frame in renderer.render(reference, z, seed=seed, config=render or RenderConfig()):
            yield portrait.box.paste(portrait.picture, frame) if paste_back else frame

    def __call__(
        self,
        image: str | Path | bytes | Image.Image,
        audio: str | Path | np.ndarray,
        *,
        seed: int = 0,
        motion: SamplingConfig | None = None,
        render: RenderConfig | None = None,
        paste_back: bool = False,
        max_seconds: float | None = None,
    ) -> Animation:
        """Read and check the inputs. The frames are computed while they are read, under diffusers' progress bar.

        Args:
            image: A picture with a face, in any format that Pillow reads.
            audio: Audio or video in any format that PyAV reads, or samples float32 [N], mono, 16 kHz.
            seed: The same seed, image and audio give the same video.
            motion: Options of the motion model.
            render: Options of the renderer.
            paste_back: Put the face back into its picture, which is shrunk so that no side is longer than 1920
                pixels.
            max_seconds: Refuse longer audio.

        Raises:
            ValueError: The picture has no face, a file cannot be decoded, or the audio is too short or too long.
        """
        samples = read_audio(audio, max_seconds=max_seconds) if isinstance(audio, str | Path) else audio
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
            portrait, samples, seed=seed, motion=motion, render=render, paste_back=paste_back
        )
        return Animation(
            frames=self._with_progress(frames, count),
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
        """Register the components. Record ours as `xactor.<class>`, so that saved folders survive moved modules."""
        super().register_modules(**components)
        ours = {name: c for name, c in components.items() if type(c).__module__.startswith("xactor.")}
        self.register_to_config(**{name: ("xactor", type(c).__name__) for name, c in ours.items()})

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:  # pyright: ignore
        """Write each component to its folder, and model_index.json.

        Args:
            save_directory: The model folder.
            **options: Options of the models, such as `max_shard_size`.
        """
        # Diffusers' own method omits, with a warning, components that are neither diffusers' nor transformers'.
        for name, component in self.components.items():
            component.save_pretrained(Path(save_directory, name), **(options if _is_model(name) else {}))
        self.save_config(save_directory)

    @classmethod
    def from_pretrained(  # pyright: ignore
        cls, folder: str | Path, *, torch_dtype: torch.dtype = torch.float32, **options: Any
    ) -> "XActorPipeline":
        """Load the pipeline that is saved in a local folder.

        Args:
            folder: The model folder.
            torch_dtype: Type of the models' weights, except the audio encoder's.
            **options: Components that are already loaded, by name, which replace the folder's. All other options, such
                as `variant`, are passed to the models' `from_pretrained`.

        Raises:
            ValueError: A component is missing or of another kind. The message names the folder and the component.
        """
        index = Path(folder, "model_index.json")
        if not index.is_file():
            raise ValueError(f"{folder}: no model folder (model_index.json is missing)")
        name = _read_json(index).get("_class_name")
        if name != cls.__name__:
            raise ValueError(f"{index}: _class_name must be {cls.__name__}, got {name}")
        return cls._assemble(dict.fromkeys(COMPONENTS, Path(folder)), torch_dtype, options)

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
        # Check all folders first, because loading a component may take minutes.
        for name, folder in folders.items():
            if name not in ready and not (folder / name).is_dir():
                raise ValueError(f"{folder}: the component {name}/ is missing")
        for name, folder in folders.items():
            if name not in ready:
                ready[name] = _load(folder, name, torch_dtype, options)
        return cls(**ready)

    def _with_progress(self, frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
        with self.progress_bar(total=count) as bar:  # pyright: ignore
            for frame in frames:
                yield frame
                bar.update()


def _load(folder: Path, name: str, dtype: torch.dtype, options: dict[str, Any]):
    """Load one component of a model folder. Raises ValueError that names the folder and the component."""
    kind = _CLASSES[name]
    try:
        if name == "audio_encoder":
            return load_audio_encoder(folder / name)
        config = config_file(name)
        if not (folder / name / config).is_file():
            raise ValueError(f"{config} is missing")
        if name == "motion":
            # The options come last, so that they may contain another dtype.
            return load_transformer(folder / name, **{"dtype": dtype, **options})
        return _load_diffusers(kind, folder / name, config, dtype, options)
    except LOADING_ERRORS as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{folder}: the component {name}/ is no {kind.__name__}: {why}") from error


def _load_diffusers(kind: Any, folder: Path, config: str, dtype: torch.dtype, options: dict[str, Any]):
    """Load a scheduler, or a model in diffusers' format. Its config must name the class `kind`."""
    # diffusers would also load the config of another class, and would leave the weights random.
    saved = _read_json(folder / config).get("_class_name")
    if saved != kind.__name__:
        raise ValueError(f"{config} must be of a {kind.__name__}, got {saved}")
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
    return issubclass(_CLASSES[name], torch.nn.Module)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _describe(source: Any, fallback: str) -> str:
    """Return the source's path as text, or `fallback` if the source is not a path."""
    return str(source) if isinstance(source, str | Path) else fallback

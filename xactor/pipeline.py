"""The whole: a portrait and speech in, an acted portrait out. A diffusers pipeline over the parts of both models."""

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
    """A video in the making: its frames are computed as they are taken, once.

    Attributes:
        frames: uint8 [H, W, 3], `frame_count` of them at 25 fps.
        sound: what is heard, as it was given.
        notes: what a viewer of the result should know of the portrait, such as that it held several faces.
    """

    frames: Iterator[np.ndarray]
    frame_count: int
    sound: Sound | np.ndarray
    notes: tuple[str, ...] = ()

    def save(self, path: str | Path) -> int:
        """Makes the frames and writes an mp4 that says it is AI-generated, whole or not at all: their number."""
        return write_video(path, self.frames, fps=FPS, samples=self.sound, metadata=ai_generated())


class XActorPipeline(DiffusionPipeline):
    """Animates portraits: `XActorPipeline.from_pretrained(folder)("face.png", "speech.wav").save("out.mp4")`.

    Raises:
        ValueError: parts that do not fit each other.
    """

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
        super().__init__()
        latent_dim = int(unet.config["latent_dim"])
        if motion.config.latent_dim != latent_dim:
            raise ValueError(
                f"the motion model makes latents of {motion.config.latent_dim} numbers, "
                f"the renderer takes {latent_dim}"
            )
        takes = (motion.config.audio_layers, motion.config.audio_dim)
        if takes != (audio_encoder.layers, audio_encoder.width):
            raise ValueError(
                f"the motion model takes audio features of {takes[0]} layers of {takes[1]}, "
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
        """Frames as they are made, uint8 [S, S, 3], or of the whole picture with `paste_back`.

        Memory does not grow with the sound.

        Args:
            samples: float32 [N], mono, 16 kHz; there are round(N / 640) frames.
            seed: the same seed, portrait and sound give the same frames.
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
        """Reads and checks everything; the frames are made as they are taken, under diffusers' progress bar.

        Args:
            image: any picture that Pillow reads, with a face in it.
            audio: any sound or video that PyAV reads, or float32 [N], mono, 16 kHz.
            paste_back: the face back into its picture, which is shrunk to at most 1920 pixels a side.
            max_seconds: refuse longer sound.

        Raises:
            ValueError: a picture without a face, a file that cannot be decoded, sound too short or too long.
        """
        samples = read_audio(audio, max_seconds=max_seconds) if isinstance(audio, str | Path) else audio
        count = frame_count(len(samples))
        if count < 1:
            length_ms = len(samples) / SAMPLE_RATE_HZ * 1000
            raise ValueError(f"{_name(audio, 'the sound')}: {length_ms:.0f} ms of sound are too short")
        picture = read_image(image)
        try:
            portrait = find_portrait(sized_for_video(picture) if paste_back else picture)
        except ValueError as error:
            raise ValueError(f"{_name(image, 'the picture')}: {error}") from error
        frames = self.animate(
            portrait, samples, seed=seed, motion=motion, render=render, paste_back=paste_back
        )
        return Animation(
            frames=self._shown(frames, count),
            frame_count=count,
            sound=Sound.of(audio) if isinstance(audio, str | Path) else samples,
            notes=portrait.notes,
        )

    @property
    def renderer(self) -> Renderer:
        """Over the parts as they are now."""
        return Renderer(**{name: getattr(self, name) for name in RENDERER_COMPONENTS})

    def to(self, *args, **kwargs):
        """Moves and casts the models. The audio encoder only moves: its features are float32, as in training."""
        super().to(*args, **kwargs)
        self.audio_encoder.to(self.device)
        return self

    def register_modules(self, **parts):
        super().register_modules(**parts)
        # By the package, not by the file: saved folders outlive the places of files.
        ours = {name: p for name, p in parts.items() if type(p).__module__.startswith("xactor.")}
        self.register_to_config(**{name: ("xactor", type(part).__name__) for name, part in ours.items()})

    def save_pretrained(self, save_directory: str | Path, **options) -> None:  # pyright: ignore
        """Every part in its folder, and model_index.json. `options` go to the models, such as `max_shard_size`."""
        # Not diffusers' own: it leaves out, with a warning, parts that are neither its nor transformers'.
        for name, part in self.components.items():
            part.save_pretrained(Path(save_directory, name), **(options if _is_model(name) else {}))
        self.save_config(save_directory)

    @classmethod
    def from_pretrained(  # pyright: ignore
        cls, folder: str | Path, *, torch_dtype: torch.dtype = torch.float32, **options
    ) -> "XActorPipeline":
        """The pipeline saved in a local folder.

        Args:
            torch_dtype: of the models' weights, but for the audio encoder's.
            options: ready parts by name, instead of the folder's; others go to the models, such as `variant`.

        Raises:
            ValueError: naming the folder, and the part that is missing or another than it should be.
        """
        index = Path(folder, "model_index.json")
        if not index.is_file():
            raise ValueError(f"{folder}: no pipeline's folder (model_index.json is missing)")
        name = _read_json(index).get("_class_name")
        if name != cls.__name__:
            raise ValueError(f"{folder}: must be of an {cls.__name__}, got {name}")
        return cls._assemble(dict.fromkeys(COMPONENTS, Path(folder)), torch_dtype, options)

    @classmethod
    def from_stages(
        cls, stage1: str | Path, stage2: str | Path, *, torch_dtype: torch.dtype = torch.float32, **options
    ) -> "XActorPipeline":
        """The pipeline of two trainings' exports, the renderer's and the motion model's. As `from_pretrained`."""
        folders = {name: Path(stage1 if name in RENDERER_COMPONENTS else stage2) for name in COMPONENTS}
        return cls._assemble(folders, torch_dtype, options)

    @classmethod
    def _assemble(cls, folders: dict[str, Path], torch_dtype: torch.dtype, options: dict[str, Any]):
        ready = {name: options.pop(name) for name in COMPONENTS if name in options}
        for name, folder in folders.items():  # all of them, before minutes go into loading the first
            if name not in ready and not (folder / name).is_dir():
                raise ValueError(f"{folder}: the component {name}/ is missing")
        for name, folder in folders.items():
            if name not in ready:
                ready[name] = _load(folder, name, torch_dtype, options)
        return cls(**ready)

    def _shown(self, frames: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
        with self.progress_bar(total=count) as bar:  # pyright: ignore
            for frame in frames:
                yield frame
                bar.update()


def _load(folder: Path, name: str, dtype: torch.dtype, options: dict[str, Any]):
    """Load one component of a model folder. ValueError names the folder and the component."""
    kind = _CLASSES[name]
    try:
        if name == "audio_encoder":
            return load_audio_encoder(folder / name)
        config = config_file(name)
        if not (folder / name / config).is_file():
            raise ValueError(f"{config} is missing")
        if name == "motion":
            return load_transformer(folder / name, **{"dtype": dtype, **options})
        return _load_diffusers(kind, folder / name, config, dtype, options)
    except LOADING_ERRORS as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{folder}: the component {name}/ is no {kind.__name__}: {why}") from error


def _load_diffusers(kind: Any, folder: Path, config: str, dtype: torch.dtype, options: dict[str, Any]):
    """Load a scheduler, or a model in diffusers' format, of a class that the config must name."""
    # A foreign config would load all the same, into weights left random.
    saved = _read_json(folder / config).get("_class_name")
    if saved != kind.__name__:
        raise ValueError(f"{config} must be of a {kind.__name__}, got {saved}")
    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(folder)
    options = {"torch_dtype": dtype, "low_cpu_mem_usage": is_accelerate_available(), **options}
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
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


def _name(source: Any, otherwise: str) -> str:
    return str(source) if isinstance(source, str | Path) else otherwise

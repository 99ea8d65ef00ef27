"""Train stage 1, the motion encoder and the renderer: build, feed, evaluate and export them, and draw sheets.

A sheet is one picture that shows generated frames next to the real ones.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from xactor.controls import ORIGIN as CONTROLS_ORIGIN
from xactor.faces.landmarks import find_landmarks
from xactor.randomness import keyed_generator
from xactor.render import (
    Components,
    Phase,
    RenderConfig,
    Renderer,
    RenderObjective,
    published_components,
    random_components,
)
from xactor.render.autoencoder import decode, encode
from xactor.render.frames import from_model, to_model
from xactor.render.objective import FaceTracks
from xactor.transfer import to_device
from xactor_platform.data.index import BadSample, Index
from xactor_platform.data.plan import MicroBatch, Step
from xactor_platform.data.video import VideoBatch, VideoReader
from xactor_platform.storage.weights import local_weights
from xactor_platform.training.averages import Averages
from xactor_platform.training.engine import learning_rate
from xactor_platform.training.held_out import Evaluation, HeldOut
from xactor_platform.training.run.folder import SHEETS, RunFolder
from xactor_platform.training.sheet import draw_sheet
from xactor_platform.training.stage1_config import RendererConfig, Stage1Config
from xactor_platform.training.train_config import Facts
from xactor_platform.training.training_stage import TrainingStage


class Stage1(TrainingStage):
    """Train the renderer on videos in four phases: the VAE, the motion encoder, single frames, windows of frames.

    The renderer may have a guess network, which guesses a frame: it moves the portrait by the change of the motion
    latent z. The motion phase trains this network together with the motion encoder. In later phases the UNet learns to
    correct the guess.

    One engine holds the parameters of all phases. Parameters that the current phase does not train have a learning rate
    of 0 and no gradient. When a phase ends, the moving averages of the weights that it trained replace these weights,
    so that the next phase builds on the weights that will be exported.
    """

    objective: RenderObjective

    def __init__(
        self, config: Stage1Config, facts: Facts, index: Index, *, rank: int, ranks: int, device: torch.device
    ):
        train = config.train
        self._config, self._rank, self._device = config, rank, device
        self.objective = build_objective(config)
        # `Module.to` refuses the fake parameters of a dry run, so move the data.
        for tensor in (*self.objective.parameters(), *self.objective.buffers()):
            tensor.data = tensor.data.to(device)
        self._groups: dict[Phase, list[nn.Parameter]] = {
            name: group for name, group in self.objective.parameter_groups().items() if group
        }
        self._averages = {name: Averages(group, train.ema_decay) for name, group in self._groups.items()}
        # The phase for which `begin` has set the parameters' requires_grad.
        self._prepared_phase: str | None = None
        size, held_out = config.model.image_size, index.held_out()
        # Control tracks are numbers for the face's motion in each frame. A renderer with a guess network learns motion
        # from them if the corpus has any. Other renderers learn motion from pictures.
        reading: Any = {"image_size": size, "tracks": self.objective.unet.guess_network is not None}
        reader = VideoReader(index.training(), seed=train.seed, stills=train.stills_of, **reading)
        self.reader, self._learns_from_controls = reader, reader.has_controls
        self._held_out_reader = VideoReader(held_out, seed=0, stills=train.stills_of, **reading)
        self._held_out = HeldOut(held_out, config.plan, train.evaluate_frames, rank=rank, ranks=ranks)

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        return list(self._groups.values())

    def rates(self, step: int) -> list[float]:
        train = self._config.train
        phase = train.phase(step)
        first, end = train.span(phase)
        peaks = train.peaks(phase)
        return [
            learning_rate(step - first, train, peak=peaks.get(name, 0.0), steps=end - first)
            for name in self._groups
        ]

    def target_frames(self, planned: Step, step: int) -> int:
        window = self._config.model.window_frames
        return planned.frames // window * (self._config.train.stills_of(step) or window)

    def begin(self, step: int) -> None:
        phase = self._config.train.phase(step)
        if phase == self._prepared_phase:
            return
        previous_phase = self._config.train.phase(step - 1) if step else phase
        if previous_phase != phase:
            for averages in self._averages_of(previous_phase):
                averages.adopt()
        trained = self._config.train.peaks(phase)
        for name, group in self._groups.items():
            for parameter in group:
                parameter.requires_grad_(name in trained)
        self._prepared_phase = phase
        # DeepSpeed casts only parameters to bf16, but diffusers adds its buffer of position encodings without a cast.
        # So cast the buffers too.
        for module in (self.objective.unet, self.objective.reference_unet):
            for buffer in module.buffers():
                buffer.data = buffer.to(module.dtype)

    def inputs(self, batch: VideoBatch, random_key: tuple[int | str, ...]) -> dict[str, Any]:
        def moved(values: np.ndarray | None) -> Any:
            return None if values is None else to_device(torch.from_numpy(values), self._device)

        tracks = None
        if batch.controls is not None:
            tracks = FaceTracks(
                controls=moved(batch.controls),
                landmarks=moved(batch.landmarks),
                landmark_controls=moved(batch.landmark_controls),
            )
        starts = batch.starts.tolist()
        return {
            "frames": moved(batch.targets),
            "reference": moved(batch.references),
            "weight": moved(batch.weight),
            "seeds": [(*random_key, clip, start) for clip, start in zip(batch.keys, starts, strict=True)],
            "tracks": tracks,
        }

    def loss(self, forward: Callable[..., Tensor], inputs: dict[str, Any], step: int) -> Tensor:
        # Draws inside modules, such as dropout, use torch's global generator. These draws must not depend on the rank
        # or on a resume, so the generator is seeded for each micro-batch.
        torch.manual_seed(keyed_generator(*inputs["seeds"][0], "modules").initial_seed())
        return forward(**inputs, phase=self._config.train.phase(step))

    def end(self, step: int) -> None:
        phase = self._config.train.phase(step)
        for averages in self._averages_of(phase):
            averages.update(step - self._config.train.span(phase)[0])

    def columns(self, step: int) -> dict[str, Any]:
        return {"phase": self._config.train.phase(step)}

    def evaluate(self, step: int) -> Evaluation:
        def held_out_loss(micro_batch: MicroBatch) -> tuple[Tensor, int, list[BadSample]]:
            batch = read_now(self._held_out_reader, micro_batch, step, "held-out")
            good_samples = int(batch.weight.sum())
            # The key is constant, so that every evaluation draws the same noise.
            loss = self.loss(self.objective, self.inputs(batch, (0, "held-out")), step)
            return loss, good_samples * batch.targets.shape[1], batch.bad

        with self._with_averages(step):
            self.objective.eval()
            evaluation = self._held_out.evaluate(held_out_loss, self._device)
            if self._rank == 0:
                self._draw_sheet(step)
            self.objective.train()
        return evaluation

    def export(self, folder: Path) -> None:
        """Save motion_encoder/, unet/, reference_unet/, vae/ and scheduler/, with averaged weights."""
        with self._with_averages(self._config.train.steps - 1):
            origin = self._latent_origin()
            for model in (self.objective.motion_encoder, self.objective.unet):
                model.register_to_config(latent_origin=origin)
            self._renderer().save_pretrained(folder)

    def state(self) -> dict[str, Any]:
        return {"averages": {name: averages.state() for name, averages in self._averages.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, values in state["averages"].items():
            self._averages[name].load_state(values)

    def _latent_origin(self) -> str:
        """Return the origin of the latents that the motion encoder makes and the renderer takes."""
        encoder = self.objective.motion_encoder
        if self._learns_from_controls:
            # The renderer learned from embedded control tracks, and the encoder learned to read them from pictures.
            return CONTROLS_ORIGIN
        # An encoder that is not trained further makes the same latents as before.
        return encoder.own_origin() if self._config.train.trains_encoder else encoder.latent_origin

    def _averages_of(self, phase: Phase) -> list[Averages]:
        """Return the averages of the groups of parameters that a phase trains."""
        return [self._averages[name] for name in self._config.train.peaks(phase)]

    @contextmanager
    def _with_averages(self, step: int) -> Iterator[None]:
        """Give the parameters that a step trains their averaged weights inside the block."""
        with ExitStack() as stack:
            for averages in self._averages_of(self._config.train.phase(step)):
                stack.enter_context(averages.applied())
            yield

    def _renderer(self) -> Renderer:
        """Return a renderer that shares the components in training."""
        parts = self.objective
        return Renderer(parts.motion_encoder, parts.unet, parts.reference_unet, parts.vae, parts.scheduler)

    @torch.no_grad()
    def _draw_sheet(self, step: int) -> None:
        """Write a sheet to the run's folder, with a row for each of some held-out clips.

        A row shows the reference picture, a real frame of the clip, and the same frame as the model generates it.
        """
        index, window = self._held_out_reader.index, self._config.model.window_frames
        long_enough = np.flatnonzero(index.frames >= window)
        rows = long_enough[_evenly_spaced(len(long_enough), self._config.train.sheet_rows)]
        if not len(rows):
            return
        middle_windows = MicroBatch(rows, (index.frames[rows] - window) // 2, np.full(len(rows), window))
        # `stills` returns None at every step, so that complete windows are read in all phases.
        reader = VideoReader(
            index, image_size=self._config.model.image_size, seed=0, stills=lambda step: None
        )
        batch = read_now(reader, middle_windows, step, "sheet")
        pictures = [
            [reference, targets[window // 2], self._generate(reference, targets, step)]
            for reference, targets in zip(batch.references, batch.targets, strict=True)
        ]
        folder = RunFolder.of(self._config.run)
        folder.write_bytes(f"{SHEETS}/step-{step + 1:08d}.png", draw_sheet(pictures))

    def _generate(self, reference: np.ndarray, targets: np.ndarray, step: int) -> np.ndarray:
        """Generate the middle frame of a window, uint8 [S, S, 3], with the components that are trained so far.

        Args:
            reference: the reference picture, uint8 [S, S, 3].
            targets: the real frames of the window, uint8 [W, S, S, 3].
            step: the global step, whose phase decides which components are trained.
        """
        phase, middle = self._config.train.phase(step), len(targets) // 2
        vae, unet = self.objective.vae, self.objective.unet
        # The UNet is not trained yet in the phases `vae` and `motion`. Return the guess, or the VAE's reconstruction.
        if phase == "motion" and unet.guess_network is not None:
            pictures = to_model(np.stack([reference, targets[middle]]), vae.device, vae.dtype)
            z = self.objective.motion_encoder(pictures)[0]
            landmarks = torch.from_numpy(find_landmarks(reference)).to(vae.device)[None]
            return from_model(unet.guess_network(pictures[:1], landmarks, z[1:] - z[:1]))[0]
        if phase in ("vae", "motion"):
            latents = encode(vae, to_model(targets[middle : middle + 1], vae.device, vae.dtype))
            return from_model(decode(vae, latents))[0]
        # The temporal layers are not trained yet in the phase `frames`: render the middle frame as a window of one.
        if phase == "frames":
            targets, middle = targets[middle : middle + 1], 0
        renderer = self._renderer()
        config = RenderConfig(
            steps=self._config.train.sheet_steps, window_frames=len(targets), overlap_frames=0
        )
        z = self.objective.motion_encoder.encode(targets)
        return renderer.window(renderer.reference(reference), z, seed=0, first_frame=0, config=config)[middle]


def build_objective(config: Stage1Config) -> RenderObjective:
    """Build the model and its loss in one module, the same on every rank."""
    components = build_components(config.model, seed=config.train.seed)
    if config.train.gradient_checkpointing:
        components.unet.enable_gradient_checkpointing()
        components.reference_unet.enable_gradient_checkpointing()
    return RenderObjective(
        **vars(components), config=config.objective, train_vae=config.train.vae_steps > 0
    ).train()


def build_components(config: RendererConfig, *, seed: int) -> Components:
    """Build the renderer's components, from weights that the config names or from random weights.

    Args:
        config: sizes and initial weights of the components.
        seed: seed of the random weights.

    Raises:
        ValueError: sizes do not fit each other, or do not fit the weights.
    """
    if config.start:
        components = ("motion_encoder", "unet", "reference_unet", "vae", "scheduler")
        renderer = Renderer.from_pretrained(local_weights(config.start, *components))
        if renderer.model_size != config.image_size:
            raise ValueError(
                f"model.image_size must be {renderer.model_size}, as in {config.start}, got {config.image_size}"
            )
        return renderer.components
    sizes = {"latent_dim": config.latent_dim, "motion_tokens": config.motion_tokens}
    options: dict[str, Any] = {
        "prediction_type": config.prediction_type,
        "guess_channels": config.guess_channels if config.guess else None,
        "seed": seed,
        **sizes,
    }
    if config.sd15:
        components = published_components(
            local_weights(config.sd15, "unet", *(() if config.vae else ("vae",))),
            animatediff=local_weights(config.animatediff) if config.animatediff else None,
            vae=local_weights(config.vae) if config.vae else None,
            **options,
        )
        # The configs of the UNets record the side of their latents. Each level of the VAE except the last halves the
        # side of the picture.
        shrink = 1 << (len(components.vae.config["block_out_channels"]) - 1)
        for unet in (components.unet, components.reference_unet):
            unet.register_to_config(sample_size=config.image_size // shrink)
        return components
    published_vae, vae_channels, latent_channels = None, config.vae_channels, config.latent_channels
    if config.vae:
        # Without low_cpu_mem_usage=False, diffusers needs the package accelerate to load a model.
        published_vae = AutoencoderKL.from_pretrained(local_weights(config.vae), low_cpu_mem_usage=False)
        vae_channels = tuple(published_vae.config["block_out_channels"])
        latent_channels = published_vae.config["latent_channels"]
    # The temporal layers accept windows of at least 32 frames, even if training uses shorter ones.
    components = random_components(
        image_size=config.image_size,
        channels=config.channels,
        vae_channels=vae_channels,
        latent_channels=latent_channels,
        encoder_channels=config.encoder_channels,
        encoder_size=config.encoder_size,
        layers_per_block=config.layers_per_block,
        heads=config.heads,
        motion_width=config.motion_width,
        window_frames=max(config.window_frames, 32),
        guess_scale=config.guess_scale,
        **options,
    )
    return replace(components, vae=published_vae) if published_vae else components


def read_now(reader: VideoReader, micro_batch: MicroBatch, step: int, epoch: str) -> VideoBatch:
    """Read a micro-batch in this process, without Ray Data.

    Args:
        reader: reader of the corpus.
        micro_batch: the samples to read.
        step: the global step, from which the reader derives how many frames to draw for each sample.
        epoch: any name in place of the number of the epoch. It decides which frames are drawn.
    """
    request = reader.request(micro_batch, step=step, epoch=epoch)
    return reader.batch(request, reader.read([request])[0])


def _evenly_spaced(count: int, wanted: int) -> np.ndarray:
    """Return `wanted` evenly spaced integers from 0 to `count` - 1, or all `count` of them if there are fewer."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(int))

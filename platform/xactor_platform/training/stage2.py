"""Train stage 2, the motion model: build, feed, evaluate and export it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pyarrow import fs
from torch import Tensor, nn

from xactor.audio.encoder import CONFIG_FILE
from xactor.audio.origin import saved_origin
from xactor.motion.forcing import DiffusionForcing, ForcingBatch, draw
from xactor.motion.loading import load_motion_model
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer, MotionTransformerConfig
from xactor.origin import AUDIO, LATENTS
from xactor_platform.data.batch import LatentBatch, LatentReader, read_batch
from xactor_platform.data.index import BadSample, CorpusShape, Index
from xactor_platform.data.plan import MicroBatch, Step
from xactor_platform.storage.location import Location
from xactor_platform.storage.retries import with_retries
from xactor_platform.storage.weights import local_weights
from xactor_platform.training.engine import learning_rate, use_bf16
from xactor_platform.training.held_out import Evaluation, HeldOut
from xactor_platform.training.stage2_config import MotionConfig, Stage2Config
from xactor_platform.training.train_config import Facts
from xactor_platform.training.training_stage import TrainingStage


class Stage2(TrainingStage):
    """Train the motion transformer on motion latents and audio features.

    `facts` holds the latents' mean and standard deviation (`moments`), the folder of the encoder that made the audio
    features (`audio_encoder`, None if it is not known), and the origins of the latents and of the features
    (`latent_origin` and `audio_origin`, None if the corpus does not record them).
    """

    objective: DiffusionForcing

    def __init__(
        self, config: Stage2Config, facts: Facts, index: Index, *, rank: int, ranks: int, device: torch.device
    ):
        self._config, self._device = config, device
        self._audio_encoder, self._audio_origin = facts["audio_encoder"], facts[AUDIO]
        self._held_out_index = index.held_out()
        dtype = torch.bfloat16 if use_bf16(config.train, device) else torch.float32
        self.objective = build_objective(config, index.frame_shape, facts["moments"], dtype=dtype)
        # The export records the origins, so that it is not combined with a renderer of other latents.
        for kind in (LATENTS, AUDIO):
            setattr(self.objective.model.config, kind, facts[kind])
        self.reader = LatentReader(index.training())
        # A frame needs 2 FLOPs per parameter in the forward pass, and 4 in the backward pass.
        self.flops_per_frame = 6 * sum(p.numel() for p in self.objective.parameters())
        self._held_out = HeldOut(
            self._held_out_index, config.plan, config.train.evaluate_frames, rank=rank, ranks=ranks
        )

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        return [[p for p in self.objective.parameters() if p.requires_grad]]

    def rates(self, step: int) -> list[float]:
        return [learning_rate(step, self._config.train)]

    def target_frames(self, planned: Step, step: int) -> int:
        return planned.frames

    def inputs(self, batch: LatentBatch, random_key: tuple[int | str, ...]) -> ForcingBatch:
        model = self.objective.model.config
        draws = [
            draw(
                (*random_key, clip, int(start)),
                int(frames),
                model.latent_dim,
                model.chunk_frames,
                self._config.forcing,
            )
            for clip, start, frames in zip(batch.keys, batch.starts, batch.frames, strict=True)
        ]
        z, audio, frames, weight = (
            torch.from_numpy(a) for a in (batch.motion, batch.audio, batch.frames, batch.weight)
        )
        return ForcingBatch.build(z, audio, frames, weight, draws).to(self._device)

    def loss(self, forward: Callable[..., Tensor], inputs: ForcingBatch, step: int) -> Tensor:
        return forward(inputs)

    def evaluate(self, step: int) -> Evaluation:
        def held_out_loss(micro_batch: MicroBatch) -> tuple[Tensor, int, list[BadSample]]:
            batch = read_batch(self._held_out_index, micro_batch)
            # The key is constant, so that every evaluation draws the same noise.
            loss = self.loss(self.objective, self.inputs(batch, (0, "held-out")), step)
            return loss, int(batch.mask.sum()), batch.bad

        self.objective.eval()
        evaluation = self._held_out.evaluate(held_out_loss, self._device)
        self.objective.train()
        return evaluation

    def export(self, folder: Path) -> None:
        """Save motion/, motion_scheduler/ and, if the audio encoder is known, audio_encoder/."""
        self.objective.model.save_pretrained(folder / "motion")
        MotionScheduler().save_pretrained(folder / "motion_scheduler")
        if self._audio_encoder:
            place, target = Location.parse(self._audio_encoder), folder / "audio_encoder"
            target.mkdir()

            def copy() -> None:
                fs.copy_files(place.path, str(target), source_filesystem=place.filesystem)

            with_retries(copy, place.uri)
            # A published encoder's config does not tell the origin of its features.
            file = target / CONFIG_FILE
            config = json.loads(file.read_text()) if file.exists() else {}
            if self._audio_origin and saved_origin(config) is None:
                file.write_text(json.dumps({**config, AUDIO: self._audio_origin}, indent=2) + "\n")


def build_model(
    config: MotionConfig,
    shape: CorpusShape,
    *,
    seed: int,
    chunk_lengths: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> MotionTransformer:
    """Build the motion transformer, the same on every rank, from weights that the config names or from random weights.

    Weights whose type in the files is `dtype` are mapped: the ranks of a node share one copy, until the engine moves
    them to its device.

    Args:
        config: sizes and initial weights of the model.
        shape: widths of a frame's latent and audio features.
        seed: seed of the random weights.
        chunk_lengths: chunk lengths, in frames, that the model records as trained. If this is empty, a new model
            records only `config.chunk_frames`, and a model that is trained further keeps what it has recorded.
        dtype: type of weights that are loaded. Random weights have torch's default type.
    """
    torch.manual_seed(seed)
    if config.start:
        return _load_start(config, shape, chunk_lengths, dtype)
    sizes = {
        "latent_dim": shape.latent_width,
        "audio_layers": shape.audio_layers,
        "audio_dim": shape.audio_width,
        "audio_width": config.audio_width,
        "chunk_frames": config.chunk_frames,
        "chunk_lengths": list(chunk_lengths) or None,
        "context_frames": config.context_frames,
        "attention": config.attention,
    }
    if config.backbone:
        backbone = local_weights(config.backbone)
        model = MotionTransformer.from_backbone(backbone, dtype=dtype, **sizes)
    else:
        sizes_of_qwen = {
            "hidden_size": config.hidden,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "intermediate_size": config.mlp,
        }
        model = MotionTransformer(MotionTransformerConfig(backbone=sizes_of_qwen, **sizes))
    model.backbone.set_attn_implementation(config.attn_implementation)
    return model


def _load_start(
    config: MotionConfig, shape: CorpusShape, chunk_lengths: Sequence[int], dtype: torch.dtype
) -> MotionTransformer:
    """Load the model to train further. Raise ValueError if it does not fit the config or the corpus."""
    folder = local_weights(str(config.start), "motion", "motion_scheduler")
    model = load_motion_model(folder, dtype=dtype, mapped=True).train()
    own = model.config
    wanted = {
        "chunk_frames": config.chunk_frames,
        "context_frames": config.context_frames,
        "attention": config.attention,
        "latent_dim": shape.latent_width,
        "audio_layers": shape.audio_layers,
        "audio_dim": shape.audio_width,
    }
    for name, value in wanted.items():
        if getattr(own, name) != value:
            raise ValueError(f"{config.start} has {name} {getattr(own, name)}, this training needs {value}")
    # The export records the chunk lengths that the model was last trained for.
    if chunk_lengths:
        own.chunk_lengths = sorted(chunk_lengths)
    model.backbone.set_attn_implementation(config.attn_implementation)
    return model


def build_objective(
    config: Stage2Config,
    shape: CorpusShape,
    moments: tuple[list[float], list[float]],
    *,
    dtype: torch.dtype = torch.float32,
) -> DiffusionForcing:
    """Build the model and its loss in one module, which the DeepSpeed engine wraps.

    Args:
        config: the configuration of the run.
        shape: widths of a frame's latent and audio features in the corpus.
        moments: the latents' mean and standard deviation, [D] each.
        dtype: see `build_model`.
    """
    model = build_model(
        config.model, shape, seed=config.train.seed, chunk_lengths=config.forcing.chunk_lengths, dtype=dtype
    )
    # A model that is trained further keeps its own statistics.
    if not config.model.start:
        model.set_latent_statistics(*(torch.tensor(m) for m in moments))
    if config.train.gradient_checkpointing:
        model.enable_checkpointing()
    if config.model.compile_blocks:
        model.compile_blocks()
    # A loaded backbone is in evaluation mode, in which nothing is checkpointed.
    return DiffusionForcing(model, config.forcing).train()

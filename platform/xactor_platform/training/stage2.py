"""Train stage 2, the motion model: build, feed, evaluate and export it."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from xactor.motion.forcing import DiffusionForcing, ForcingBatch, draw
from xactor.motion.loading import load_motion_model
from xactor.motion.scheduler import MotionScheduler
from xactor.motion.transformer import MotionTransformer, MotionTransformerConfig
from xactor_platform.data.batch import LatentBatch, LatentReader, read_batch
from xactor_platform.data.index import CorpusShape, Index
from xactor_platform.data.plan import MicroBatch, Step
from xactor_platform.training.engine import learning_rate
from xactor_platform.training.held_out import HeldOut
from xactor_platform.training.stage2_config import MotionConfig, Stage2Config
from xactor_platform.training.train_config import Facts
from xactor_platform.training.training_stage import TrainingStage


class Stage2(TrainingStage):
    """Train the motion transformer on motion latents and audio features.

    `facts` holds the latents' mean and standard deviation (`moments`) and the folder of the encoder that made the audio
    features (`audio_encoder`, None if it is not known).
    """

    objective: DiffusionForcing

    def __init__(
        self, config: Stage2Config, facts: Facts, index: Index, *, rank: int, ranks: int, device: torch.device
    ):
        self._config, self._audio_encoder, self._device = config, facts["audio_encoder"], device
        self._held_out_index = index.held_out()
        self.objective = build_objective(config, index.frame_shape, facts["moments"])
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

    def loss(
        self, forward: Callable[..., Tensor], batch: LatentBatch, step: int, random_key: tuple[int | str, ...]
    ) -> Tensor:
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
        return forward(ForcingBatch.build(z, audio, frames, weight, draws).to(self._device))

    def evaluate(self, step: int) -> dict[str, float]:
        def held_out_loss(micro_batch: MicroBatch) -> tuple[Tensor, int]:
            batch = read_batch(self._held_out_index, micro_batch)
            # The key is constant, so that every evaluation draws the same noise.
            loss = self.loss(self.objective, batch, step, random_key=(0, "held-out"))
            return loss, int(batch.mask.sum())

        self.objective.eval()
        figures = self._held_out.evaluate(held_out_loss, self._device)
        self.objective.train()
        return figures

    def export(self, folder: Path) -> None:
        """Save motion/, motion_scheduler/ and, if the audio encoder is known, audio_encoder/."""
        self.objective.model.save_pretrained(folder / "motion")
        MotionScheduler().save_pretrained(folder / "motion_scheduler")
        if self._audio_encoder:
            shutil.copytree(self._audio_encoder, folder / "audio_encoder")


def build_model(
    config: MotionConfig, shape: CorpusShape, *, seed: int, chunk_lengths: Sequence[int] = ()
) -> MotionTransformer:
    """Build the motion transformer, the same on every rank, from weights that the config names or from random weights.

    Args:
        config: sizes and initial weights of the model.
        shape: widths of a frame's latent and audio features.
        seed: seed of the random weights.
        chunk_lengths: chunk lengths, in frames, that the model records as trained. If this is empty, a new model
            records only `config.chunk_frames`, and a model that is trained further keeps what it has recorded.
    """
    torch.manual_seed(seed)
    if config.start:
        return _load_start(config, shape, chunk_lengths)
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
        model = MotionTransformer.from_backbone(config.backbone, **sizes)
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


def _load_start(config: MotionConfig, shape: CorpusShape, chunk_lengths: Sequence[int]) -> MotionTransformer:
    """Load the model to train further. Raise ValueError if it does not fit the config or the corpus."""
    model = load_motion_model(str(config.start)).train()
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
    config: Stage2Config, shape: CorpusShape, moments: tuple[list[float], list[float]]
) -> DiffusionForcing:
    """Build the model and its loss in one module, which the DeepSpeed engine wraps.

    Args:
        config: the configuration of the run.
        shape: widths of a frame's latent and audio features in the corpus.
        moments: the latents' mean and standard deviation, [D] each.
    """
    model = build_model(
        config.model, shape, seed=config.train.seed, chunk_lengths=config.forcing.chunk_lengths
    )
    # A model that is trained further keeps its own statistics.
    if not config.model.start:
        model.set_latent_statistics(*(torch.tensor(m) for m in moments))
    if config.train.gradient_checkpointing:
        model.enable_checkpointing()
    # A loaded backbone is in evaluation mode, in which nothing is checkpointed.
    return DiffusionForcing(model, config.forcing).train()

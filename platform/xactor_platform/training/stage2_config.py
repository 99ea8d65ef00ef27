"""Configure stage 2, the training of the motion model, and name its presets."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from xactor.motion.forcing_config import Attention, ForcingConfig
from xactor.origin import AUDIO, LATENTS, Origin
from xactor_platform.data.index import Index
from xactor_platform.storage.location import child_uri
from xactor_platform.storage.weights import check_weights, read_config
from xactor_platform.training.latent_corpus import (
    audio_feature_warning,
    check_moments,
    corpus_origin,
    encoder_origin,
    find_audio_encoder,
    latent_moments,
)
from xactor_platform.training.train_config import (
    DataConfig,
    Facts,
    RunConfig,
    ScaleConfig,
    StageConfig,
    TrainConfig,
    at_least,
)

if TYPE_CHECKING:
    from xactor_platform.training.stage2 import Stage2


@dataclass(frozen=True, kw_only=True)
class LatentDataConfig(DataConfig):
    """Configure the corpus of stage 2: motion latents and audio features."""

    shards: str = "demo/corpus/shards"
    """Folder or URI (s3://, gs://) of the latent shards."""
    audio_encoder: str | None = None
    """Folder or URI of the encoder that made the audio features. It is copied into the export.
    By default `audio_encoder` in the folder of the shards, or next to that folder."""
    features: Literal["any", "wav2vec2"] = "any"
    """Audio features to train on. `wav2vec2`, the paper's, refuses log-mel energies."""


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """Configure the motion transformer. Its backbone is a Qwen2 transformer.

    The widths of latents and audio features are not options, because they come from the shards.
    """

    start: str | None = None
    """Folder or URI of a model or an export of stage 2 to train further. The model keeps its own mean and standard
    deviation of latents, and its own sizes. Its chunk_frames, context_frames and attention must equal these options;
    the other size options have no effect. None starts from the backbone or from random weights."""
    backbone: str | None = None
    """Folder or URI of published Qwen2.5 weights. Their sizes override hidden, layers, heads, kv_heads and mlp. None
    starts from random weights."""
    hidden: int = 128
    """Width of the backbone, >= 1; a multiple of heads."""
    layers: int = 3
    """Layers of the backbone, >= 1."""
    heads: int = 4
    """Attention heads of the backbone, >= 1; a multiple of kv_heads."""
    kv_heads: int = 2
    """Attention heads of keys and values, >= 1."""
    mlp: int = 336
    """Inner width of the backbone's MLPs, >= 1."""
    audio_width: int = 128
    """Width of the audio embedding into which the audio encoder's layers are fused, >= 1."""
    chunk_frames: int = 16
    """Number of frames in a chunk, >= 1. The frames of a chunk are denoised together."""
    context_frames: int = 128
    """Maximum number of frames in a sample, history and chunk together: a multiple of chunk_frames, at least
    2 x chunk_frames."""
    attention: Attention = "chunk"
    """`chunk`: full attention inside a chunk, causal across chunks. `causal`: causal everywhere (Paper, Table 2)."""
    attn_implementation: Literal["sdpa", "flex_attention"] = "sdpa"
    """Attention kernel. FlexAttention has no backward pass on a CPU."""
    compile_blocks: bool = False
    """Compile the layers of the backbone and their audio attentions by torch.compile. The first steps take minutes
    longer, and results are rounded differently. It has been tested on CPUs only."""

    def __post_init__(self):
        at_least(self, 1, "hidden", "layers", "heads", "kv_heads", "mlp", "audio_width", "chunk_frames")
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads must divide hidden and kv_heads divide heads, "
                f"got hidden {self.hidden}, heads {self.heads}, kv_heads {self.kv_heads}"
            )
        if self.context_frames < 2 * self.chunk_frames or self.context_frames % self.chunk_frames:
            raise ValueError(
                f"context_frames must be a multiple of chunk_frames and at least twice as many, "
                f"got {self.context_frames} with chunk_frames {self.chunk_frames}"
            )
        if self.start and self.backbone:
            raise ValueError(f"start replaces backbone: give one or the other, got start {self.start}")


@dataclass(frozen=True, kw_only=True)
class Stage2Config(StageConfig):
    """Configure stage 2, the motion model (Paper 3.2, 3.3, 4.1)."""

    locations: ClassVar[tuple[str, ...]] = (
        *StageConfig.locations,
        "data.audio_encoder",
        "model.start",
        "model.backbone",
    )

    data: LatentDataConfig = field(default_factory=LatentDataConfig)
    """Options of the corpus."""
    model: MotionConfig = field(default_factory=MotionConfig)
    """Options of the motion transformer."""
    forcing: ForcingConfig = field(default_factory=ForcingConfig)
    """Options of the training objective."""

    def __post_init__(self):
        super().__post_init__()
        if any(length < 1 or self.model.chunk_frames % length for length in self.forcing.chunk_lengths):
            raise ValueError(
                f"forcing.chunk_lengths must divide model.chunk_frames ({self.model.chunk_frames}), "
                f"got {list(self.forcing.chunk_lengths)}"
            )

    @property
    def sample_frames(self) -> int:
        return self.model.context_frames

    def prepare(self, index: Index, saved: Facts | None) -> Facts:
        """Check the folders of weights, and that the corpus, its audio encoder and the model to start from fit.

        Return the latents' mean and standard deviation, the audio encoder's folder, and the origins of latents and
        features. With a published backbone, print a warning if the audio features may differ from the paper's.

        Raises:
            FileNotFoundError: a folder holds no weights.
            ValueError: the features are log-mel energies, and `data.features` does not allow them; or the origins of
                the corpus, the encoder and the model to start from differ.
        """
        shape, backbone = index.frame_shape, self.model.backbone
        start = self.model.start and child_uri(self.model.start, "motion")
        for what, folder in (("backbone", backbone), ("motion model", start)):
            if folder:
                check_weights(folder, what)
        encoder = find_audio_encoder(self.data.shards, self.data.audio_encoder)
        only_wav2vec2 = self.data.features == "wav2vec2"
        if backbone or only_wav2vec2:
            warning = audio_feature_warning(self.data.shards, shape.audio_layers, shape.audio_width, encoder)
            # The warning about a known encoder is about log-mel energies.
            if warning and encoder and only_wav2vec2:
                raise ValueError(f"{warning}, or allow them by --data.features any")
            if warning:
                print(f"warning: {warning}", flush=True)
        elif encoder is None:
            print(
                f"NOTE: {self.data.shards} has no audio_encoder/ in it or next to it, so the export will lack it: "
                f"name the encoder's folder by --data.audio-encoder",
                flush=True,
            )
        started = read_config(start) if start else {}
        origins = {}
        for kind in (LATENTS, AUDIO):
            parts = [Origin(start, started.get(kind))] if start else []
            if kind == AUDIO and encoder:
                parts.append(encoder_origin(index, encoder))
            origins[kind] = corpus_origin(index, kind, *parts)
        # Moments are the mean and the standard deviation. A resumed run keeps those that it began with.
        moments = latent_moments(index.training(), self.plan) if saved is None else saved.get("moments")
        check_moments(moments, shape.latent_width)
        return {"moments": moments, "audio_encoder": encoder, **origins}

    def training_stage(self) -> "type[Stage2]":
        from xactor_platform.training.stage2 import Stage2

        return Stage2


def tiny() -> Stage2Config:
    """Train in minutes on two CPU cores, on the demo corpus."""
    return Stage2Config(
        train=TrainConfig(
            steps=300,
            learning_rate=1e-3,
            schedule="cosine",
            micro_batches=4,
            budget_frames=512,
            evaluate_every=100,
        )
    )


def box() -> Stage2Config:
    """Train the small motion model that comes with the package ("the box"), for chunks of 8, 16 or 32 frames.

    The training takes a quarter of an hour on two CPU cores.
    """
    return Stage2Config(
        run=RunConfig(name="box"),
        scale=ScaleConfig(ranks=1, threads=2),
        model=MotionConfig(
            hidden=192, layers=4, heads=6, kv_heads=2, mlp=512, chunk_frames=32, context_frames=256
        ),
        forcing=ForcingConfig(chunk_lengths=(8, 16, 32)),
        train=TrainConfig(
            steps=500,
            learning_rate=1e-3,
            schedule="cosine",
            micro_batches=2,
            budget_frames=1024,
            evaluate_every=200,
            checkpoint_every=200,
        ),
    )


def small() -> Stage2Config:
    """Train a Qwen2.5-0.5B backbone on one GPU."""
    return Stage2Config(
        run=RunConfig(name="small"),
        scale=ScaleConfig.one_gpu(),
        data=LatentDataConfig(features="wav2vec2"),
        model=MotionConfig(
            backbone="weights/Qwen2.5-0.5B",
            hidden=896,
            layers=24,
            heads=14,
            kv_heads=2,
            mlp=4864,
            audio_width=768,
            chunk_frames=64,
            context_frames=512,
        ),
        train=TrainConfig(
            steps=30_000,
            warmup_steps=500,
            budget_frames=8192,
            micro_batches=2,
            evaluate_every=500,
            evaluate_frames=32_768,
            checkpoint_every=1000,
        ),
    )


def paper_7b() -> Stage2Config:
    """Train the paper's model: Qwen2.5-7B, chunk 64, context 512, lr 1e-4, 66K steps on 16 A100 GPUs (Paper 4.1).

    The paper calls the size of its batch "runtime-dynamic". Ours: 16 micro-batches of at most 8,192 frames, padding
    included.
    """
    return Stage2Config(
        run=RunConfig(name="paper-7b"),
        scale=ScaleConfig.gpu_cluster(ranks=16),
        data=LatentDataConfig(features="wav2vec2"),
        model=MotionConfig(
            backbone="weights/Qwen2.5-7B",
            hidden=3584,
            layers=28,
            heads=28,
            kv_heads=4,
            mlp=18_944,
            audio_width=1024,
            chunk_frames=64,
            context_frames=512,
        ),
        train=TrainConfig(
            steps=66_000,
            warmup_steps=1000,
            budget_frames=8192,
            micro_batches=16,
            evaluate_every=1000,
            evaluate_frames=131_072,
            checkpoint_every=500,
            gradient_checkpointing=True,
        ),
    )


PRESETS = {"tiny": tiny, "box": box, "small": small, "paper-7b": paper_7b}

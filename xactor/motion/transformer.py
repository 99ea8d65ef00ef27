"""Define the motion transformer: a Qwen2 backbone that denoises chunks of facial motion latents (Paper 3.2)."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen2Model

from xactor.motion.audio_attention import AudioFusion, WindowedAudioAttention
from xactor.motion.cache import HistoryPass
from xactor.motion.forcing_config import Attention
from xactor.motion.masks import make_mask, real_frames, teacher_visible, visible


class MotionTransformerConfig(PreTrainedConfig):
    """Configure the motion transformer.

    Args:
        backbone: A Qwen2Config, or its dict.
        latent_dim: D, the width of a motion latent. It must match the data shards.
        audio_layers: L, the number of layers in the audio features. It must match the data shards.
        audio_dim: F, the width of the audio features. It must match the data shards.
        audio_width: A, the width of the fused audio embedding.
        chunk_frames: Maximum length of a chunk, in frames. The frames of a chunk are denoised together.
        chunk_lengths: The chunk lengths that the model is trained with, divisors of chunk_frames. None: chunk_frames
            alone.
        context_frames: Maximum length of a chunk and its history together, in frames: a multiple of chunk_frames. The
            history is the frames before the chunk that the model sees.
        audio_window: w, in frames. Frame t attends to the audio of frames t-w..t+w.
        attention: Self-attention: `chunk` (the paper's) or `causal` (Table 2, first row); see `visible` in masks.py.
        latent_origin: Origin of the motion latents that the model makes; see `xactor.origin`. None: not recorded.
        audio_origin: Origin of the audio features that the model takes. None: not recorded.
    """

    model_type = "xactor_motion"
    sub_configs = {"backbone": Qwen2Config}  # noqa: RUF012  # pyright: ignore

    def __init__(
        self,
        backbone: Qwen2Config | dict | None = None,
        latent_dim: int = 512,
        audio_layers: int = 4,
        audio_dim: int = 768,
        audio_width: int = 1024,
        chunk_frames: int = 64,
        chunk_lengths: Sequence[int] | None = None,
        context_frames: int = 512,
        audio_window: int = 2,
        attention: Attention = "chunk",
        latent_origin: str | None = None,
        audio_origin: str | None = None,
        **kwargs,
    ):
        self.backbone = Qwen2Config(**backbone) if isinstance(backbone, dict) else backbone or Qwen2Config()
        self.latent_dim = latent_dim
        self.audio_layers = audio_layers
        self.audio_dim = audio_dim
        self.audio_width = audio_width
        self.chunk_frames = chunk_frames
        self.chunk_lengths = sorted(chunk_lengths or [chunk_frames])
        self.context_frames = context_frames
        self.audio_window = audio_window
        self.attention = attention
        self.latent_origin = latent_origin
        self.audio_origin = audio_origin
        for name in ("latent_dim", "audio_layers", "audio_dim", "audio_width", "chunk_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if any(length < 1 or chunk_frames % length for length in self.chunk_lengths):
            raise ValueError(
                f"chunk_lengths must divide chunk_frames ({chunk_frames}), got {self.chunk_lengths}"
            )
        if context_frames < 2 * chunk_frames or context_frames % chunk_frames:
            raise ValueError(
                f"context_frames must be a multiple of chunk_frames and at least two, "
                f"got {context_frames} with chunk_frames {chunk_frames}"
            )
        if attention not in ("chunk", "causal"):
            raise ValueError(f"attention must be 'chunk' or 'causal', got {attention!r}")
        super().__init__(**kwargs)

    def check_chunk(self, frames: int | None) -> None:
        """Raise ValueError if the model was not trained with chunks of this length. None means `chunk_frames`."""
        if frames is not None and frames not in self.chunk_lengths:
            lengths = ", ".join(map(str, self.chunk_lengths))
            raise ValueError(f"chunk_frames must be one of this model's, {lengths}, got {frames}")

    @property
    def history_frames(self) -> int:
        """Return the maximum length of a chunk's history, in frames."""
        return self.context_frames - self.chunk_frames

    def first_audio_frame(self, first_frame: int) -> int:
        """Return the first frame whose audio is needed by a stream that continues at `first_frame`."""
        return max(first_frame - self.history_frames - self.audio_window, 0)


class LevelEmbedding(nn.Module):
    """Embed noise levels k in 0..1000 by sines of many frequencies and an MLP: [B, T] -> [B, T, H]."""

    def __init__(self, hidden: int, sines: int = 128):
        super().__init__()
        self.sines = sines
        self.mlp = nn.Sequential(nn.Linear(2 * sines, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, k: Tensor) -> Tensor:
        # Compute in float32, because bf16 cannot tell 999 from 1000.
        number = torch.arange(self.sines, device=k.device, dtype=torch.float32)
        rates = torch.exp(number * (-math.log(10_000.0) / self.sines))  # [sines]
        angles = k.float()[..., None] * rates  # [B, T, sines]
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


class MotionTransformer(PreTrainedModel):
    """Predict the velocity from noised latents, their noise levels and audio: v_theta of Equations 2 and 3.

    The backbone is the model Qwen2 of the library transformers, without its token embedding and head. A windowed audio
    cross-attention follows each of its layers. The model takes and returns standardised latents. `latent_mean` and
    `latent_std` are the mean and standard deviation of each dimension in the training corpus, and are saved with the
    model.
    """

    config: MotionTransformerConfig
    latent_mean: Tensor
    latent_std: Tensor
    config_class = MotionTransformerConfig
    base_model_prefix = "motion"
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ["Qwen2DecoderLayer"]  # noqa: RUF012 - transformers' own convention
    # Loading in bf16 keeps the statistics of latents in float32.
    _keep_in_fp32_modules_strict = {"latent_mean", "latent_std"}  # noqa: RUF012

    def __init__(self, config: MotionTransformerConfig, backbone: Qwen2Model | None = None):
        super().__init__(config)
        qwen = config.backbone
        hidden = qwen.hidden_size
        # The token embedding is removed below, so do not allocate a large one.
        qwen.vocab_size = 1
        qwen.pad_token_id = qwen.bos_token_id = qwen.eos_token_id = None
        self.backbone = backbone or Qwen2Model(qwen)
        self.backbone.embed_tokens = None  # pyright: ignore[reportAttributeAccessIssue]
        self.backbone.set_attn_implementation(config._attn_implementation or "sdpa")
        self.latent_in = nn.Linear(config.latent_dim, hidden)
        self.level = LevelEmbedding(hidden)
        self.audio_fusion = AudioFusion(config.audio_layers, config.audio_dim, config.audio_width)
        self.audio_attention = nn.ModuleList(
            WindowedAudioAttention(
                hidden, config.audio_width, qwen.num_attention_heads, config.audio_window, qwen.rms_norm_eps
            )
            for _ in range(qwen.num_hidden_layers)
        )
        self.latent_out = nn.Linear(hidden, config.latent_dim)
        # Ours: a gated skip connection around the backbone. At low noise levels the velocity is nearly the noise
        # itself, and a backbone that is narrower than D could not carry the noise's D numbers per frame.
        self.pass_gain = nn.Linear(hidden, config.latent_dim)
        self.pass_out = nn.Linear(config.latent_dim, config.latent_dim, bias=False)
        self.register_buffer("latent_mean", torch.zeros(config.latent_dim))
        self.register_buffer("latent_std", torch.ones(config.latent_dim))
        self._checkpointing = False
        self._run_block: Callable[..., Tensor] = _run_block
        self.post_init()
        self._zero_init()

    @classmethod
    def from_backbone(
        cls, folder: str | Path, *, dtype: torch.dtype = torch.float32, **sizes
    ) -> "MotionTransformer":
        """Build a new motion transformer around published Qwen2.5 weights of any size, in transformers' format.

        Args:
            folder: Folder of the published weights.
            dtype: Type of all weights. If it is the type in the files, bf16 for Qwen2.5, the backbone's weights stay in
                the files' pages, which the processes of a machine share. Otherwise each process holds a copy.
            **sizes: Arguments of MotionTransformerConfig, without `backbone`.

        Raises:
            FileNotFoundError: `folder` holds no config.json.
            ValueError: The model is not Qwen2, or weights are missing.
        """
        if not (Path(folder) / "config.json").exists():
            raise FileNotFoundError(f"no backbone in {folder}: config.json is missing")
        loaded, info = Qwen2Model.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            folder, config=_qwen_config(folder), output_loading_info=True, dtype=dtype
        )
        if info["missing_keys"]:
            raise ValueError(f"backbone in {folder} lacks weights: {sorted(info['missing_keys'])[:5]}")
        model = cls(MotionTransformerConfig(backbone=loaded.config, **sizes), backbone=loaded)
        # `Module.to` refuses the fake parameters of a dry run, so convert the data. Buffers stay in float32.
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert the model, for example to another device or dtype. The buffers stay in float32.

        In bf16 the frequencies of the rotary embedding would give late frames wrong angles, and latents would be scaled
        by wrong statistics.
        """
        exact = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != exact[name].dtype:
                buffer.data = exact[name].to(buffer.device)
        return self

    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the mean and standard deviation of each dimension in the corpus, float [D] each."""
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(std)

    def standardise(self, z: Tensor) -> Tensor:
        """Return latents [.., D] scaled for the model: each dimension of the corpus gets mean 0 and variance 1."""
        return (z - self.latent_mean) / self.latent_std

    def destandardise(self, z: Tensor) -> Tensor:
        """Return the model's latents [.., D] in the scale in which files store them: the inverse of `standardise`."""
        return z * self.latent_std + self.latent_mean

    def embed_audio(self, audio: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the embeddings [B, T, A] of audio features [B, T, L, F]. `keep` [B] is 0 for dropped audio."""
        return self.audio_fusion(audio.to(self.latent_in.weight.dtype), keep)

    def enable_checkpointing(self) -> None:
        """Enable activation checkpointing. A block is a layer of the backbone and the audio attention that follows it.

        Only the inputs of blocks are kept for the backward pass, which computes the rest again: training needs less
        memory, but about a third more time.
        """
        self._checkpointing = True

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the blocks by torch.compile, for training. All blocks and all shapes share the compiled code.

        Args:
            backend: Backend of torch.compile.
        """
        self._run_block = torch.compile(_run_block, backend=backend, dynamic=True)

    def forward(
        self,
        z_k: Tensor,
        k: Tensor,
        audio: Tensor,
        audio_real: Tensor,
        *,
        frames: Tensor | None = None,
        chunk_frames: Tensor | None = None,
        clean: Tensor | None = None,
        history: HistoryPass | None = None,
    ) -> Tensor:
        """Return the predicted velocity, [B, T, D].

        Args:
            z_k: Noised latents, standardised, [B, T, D].
            k: Noise levels in 0..1000, [B, T].
            audio: Embeddings from `embed_audio`, [B, T + 2w, A], from w frames before the first latent to w past
                the last.
            audio_real: bool [B, T + 2w], False before the clip's start and past its end.
            frames: Lengths without padding, int [B]. None means that nothing is padded.
            chunk_frames: Length of each row's chunks in frames, int [B]. None means the model's chunk_frames.
            clean: Clean latents of the same frames, [B, T, D], for teacher forcing. Each chunk sees the clean latents
                of earlier chunks as its history.
            history: View of the history cache, from `HistoryCache.read` or `HistoryCache.write`. With `read`, the T
                latents continue the cached histories. With `write`, the T latents are the histories, and the pass
                writes their keys and values to the cache.
        """
        assert audio.shape[1] == z_k.shape[1] + 2 * self.config.audio_window
        width = z_k.shape[1]
        position = torch.arange(width, device=z_k.device)  # [T]
        chunks = self.config.chunk_frames if chunk_frames is None else chunk_frames
        rule: dict[str, Any] = {"attention": self.config.attention}
        real = None if frames is None else real_frames(frames, width)  # [B, T]
        predicate, q, kv = functools.partial(visible, **rule), position, position
        if history is not None:
            assert clean is None
            # The latents of each row follow a history of a different length.
            position = q = history.frames[:, None] + position  # [B, T]
            before = torch.arange(-history.width, 0, device=z_k.device) + history.frames[:, None]  # [B, H]
            # Positions below 0 are padding.
            kv = torch.cat([before, position], dim=1)  # [B, H + T]
            real = (kv >= 0) if real is None else torch.cat([before >= 0, real], dim=1)
        elif clean is not None:
            # Teacher forcing runs over the clean and the noised frames in one pass.
            z_k, k = torch.cat([clean, z_k], 1), torch.cat([torch.zeros_like(k), k], 1)  # [B, 2T, ..]
            position = position.repeat(2)
            q = kv = torch.arange(2 * width, device=z_k.device)
            predicate = functools.partial(teacher_visible, frames=width, **rule)
            real = None if real is None else real.repeat(1, 2)
        mask = make_mask(str(self.backbone.config._attn_implementation), predicate, q, kv, chunks, real)

        level = self.level(k)  # [B, T, H]
        z_k = z_k.to(level.dtype)
        x = self.latent_in(z_k) + level  # [B, T, H]
        rotary = self.backbone.rotary_emb(x, position.expand(1, -1) if history is None else position)
        # A history makes every pass another one, which would be compiled again and again.
        run = functools.partial(
            self._run_block if history is None else _run_block,
            mask=mask,
            rotary=rotary,
            history=history,
            audio=audio,
            audio_real=audio_real,
            doubled=clean is not None,
        )
        if self._checkpointing and self.training:
            run = functools.partial(checkpoint, run, use_reentrant=False)
        for layer, audio_attention in zip(self.backbone.layers, self.audio_attention, strict=True):
            x = run(layer, audio_attention, x)  # [B, T, H]
        v = self.latent_out(self.backbone.norm(x)) + self.pass_out(self.pass_gain(level) * z_k)  # [B, T, D]
        return v if clean is None else v[:, width:]

    def _zero_init(self) -> None:
        """Initialise the inserted layers to add nothing, so that training starts from the loaded backbone."""
        for attention in self.audio_attention:
            nn.init.zeros_(attention.o_proj.weight)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
            nn.init.normal_(attention.place, std=0.02)  # pyright: ignore[reportArgumentType]
        nn.init.zeros_(self.pass_out.weight)
        nn.init.zeros_(self.latent_out.weight)


def _run_block(
    layer: nn.Module,
    attention: nn.Module,
    x: Tensor,
    *,
    mask: Any,
    rotary: tuple[Tensor, Tensor],
    history: HistoryPass | None,
    audio: Tensor,
    audio_real: Tensor,
    doubled: bool,
) -> Tensor:
    """Run a layer of the backbone and the audio cross-attention that follows it, in the shape of x.

    x is [B, T, H], or [B, 2T, H] if `doubled`. `doubled` means teacher forcing: the clean and the noised half of x see
    the same audio.
    """
    x = layer(x, attention_mask=mask, position_embeddings=rotary, past_key_values=history)
    if not doubled:
        return x + attention(x, audio, audio_real)
    return x + torch.cat([attention(half, audio, audio_real) for half in x.chunk(2, dim=1)], dim=1)


def _qwen_config(folder: str | Path) -> Qwen2Config:
    """Read the config in a folder. Raises ValueError if it is not that of a Qwen2 model."""
    config, _ = PreTrainedConfig.get_config_dict(folder)
    if config.get("model_type") != "qwen2":
        raise ValueError(
            f"backbone in {folder} must be a qwen2 model, got model_type {config.get('model_type')!r}"
        )
    return Qwen2Config(**config)

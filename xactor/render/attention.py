"""How the renderer's transformer blocks hear the reference: by self-attention over its features (Paper 3.1.1)."""

import inspect
import json
import math
from functools import lru_cache
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

# Features of a reference at every self-attention of the UNet: by the attention's name, [B, tokens, C].
ReferenceFeatures = dict[str, Tensor]


class WriteReference:
    """Self-attention of the reference network: leaves what it attends over in `bank`."""

    def __init__(self, name: str):
        self.name = name

    def __call__(
        self,
        attn: Any,  # diffusers' Attention
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        bank: ReferenceFeatures | None = None,
    ) -> Tensor:
        if bank is not None:
            bank[self.name] = hidden_states
        return _attend(attn, hidden_states, attn.to_k(hidden_states), attn.to_v(hidden_states))


class ReadReference:
    """Self-attention of the UNet: its frame's own tokens and the reference's side by side.

    Where the attention has a `locality` [heads], tokens hear what is near their own place first, in the frame and in
    the reference alike: logits fall by it with the squared distance in tokens.
    """

    def __init__(self, name: str):
        self.name = name

    def __call__(
        self,
        attn: Any,  # diffusers' Attention
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: ReferenceFeatures | None = None,
    ) -> Tensor:
        key, value = attn.to_k(hidden_states), attn.to_v(hidden_states)  # [B F, N, C]
        bias = None
        if (locality := getattr(attn, "locality", None)) is not None:
            side = math.isqrt(hidden_states.shape[1])
            bias = -locality.abs()[:, None, None] * _squared_distances(side).to(key)  # [heads, N, N]
        if reference is not None:
            features = reference[self.name]  # [B, N, C]
            frames = len(hidden_states) // len(features)
            key, value = (
                torch.cat([own, project(features).repeat_interleave(frames, dim=0)], dim=1)  # [B F, 2 N, C]
                for own, project in ((key, attn.to_k), (value, attn.to_v))
            )
            bias = None if bias is None else torch.cat([bias, bias], dim=-1)  # [heads, N, 2 N]
        return _attend(attn, hidden_states, key, value, bias)


class ReadMotion:
    """Cross-attention to a frame's motion tokens."""

    def __call__(
        self,
        attn: Any,  # diffusers' Attention
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        reference: ReferenceFeatures | None = None,
    ) -> Tensor:
        assert encoder_hidden_states is not None
        return _attend(
            attn, hidden_states, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        )


@lru_cache(maxsize=8)
def _squared_distances(side: int) -> Tensor:
    """Between the places of a square plane of tokens, [N, N]."""
    place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).flatten(
        0, 1
    )
    return (place[:, None] - place).square().sum(-1)


def _attend(
    attn: Any, hidden_states: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Tokens [B, N, C] to keys and values [B, M, C], with a bias on the logits [heads, N, M]."""
    query = attn.to_q(hidden_states)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # [B, heads, N, C / heads]
    return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


def spatial_blocks(unet: nn.Module) -> list[tuple[str, Any]]:
    """The transformer blocks over a frame's plane by name, not those over time."""
    return [
        (name, module)
        for name, module in unet.named_modules()
        if ".attentions." in name and type(module).__name__ == "BasicTransformerBlock"
    ]


def own_config(model: ConfigMixin) -> str:
    """config.json of a model that narrows its parent's arguments: only those it takes."""
    taken = inspect.signature(type(model).__init__).parameters
    config = {name: value for name, value in model.config.items() if name in taken}
    config |= {"_class_name": type(model).__name__, "_diffusers_version": diffusers.__version__}
    return json.dumps(config, indent=2, sort_keys=True) + "\n"

"""How the renderer's transformer blocks hear the reference: by self-attention over its features (Paper 3.1.1)."""

import inspect
import json
import math
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


class Locality(nn.Module):
    """Makes attention from one square plane to another fall with the squared distance from where a token looks.

    A token looks at its own place, moved by as much as it learns to: so what moves is fetched from where it was. The
    places are three more columns of queries and keys, as -a |p - k|^2 is 2 a p.k - a |k|^2 and what all keys share.

    Args:
        heads, width: of the attention.
        fall: of the first head, in logits a squared step between keys; an eighth of it of the next, and so on. Learned
            from there.
    """

    def __init__(self, heads: int, width: int, fall: float):
        super().__init__()
        self.fall = nn.Parameter(fall * 8.0 ** -torch.arange(heads))
        self.look = nn.Linear(width, 2 * heads)
        nn.init.zeros_(self.look.weight)
        nn.init.zeros_(self.look.bias)

    def forward(self, hidden_states: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """Columns of the queries of tokens [B, N, C], [B, heads, N, 3], and of a plane of keys, [keys, 3]."""
        own, heard = math.isqrt(hidden_states.shape[1]), math.isqrt(keys)
        place = _places(own, hidden_states) * (heard / own)  # [N, 2], in steps between keys
        moved = self.look(hidden_states).unflatten(-1, (-1, 2)).transpose(1, 2)  # [B, heads, N, 2]
        fall = self.fall.abs()[:, None, None]
        asks = torch.cat([2 * fall * (place + moved), -fall.expand(*moved.shape[:3], 1)], dim=-1)
        key_place = _places(heard, hidden_states)
        return asks, torch.cat([key_place, key_place.square().sum(-1, keepdim=True)], dim=-1)


def _places(side: int, like: Tensor) -> Tensor:
    """Of a plane's tokens from its middle, in steps between them, [side x side, 2]."""
    line = torch.arange(side, device=like.device, dtype=like.dtype) - (side - 1) / 2
    return torch.cartesian_prod(line, line)


class ReadReference:
    """Self-attention of the UNet: its frame's own tokens and the reference's side by side.

    Where the attention has a `Locality`, tokens hear what is near a place first, in the frame and the reference alike.
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
        if reference is not None:
            features = reference[self.name]  # [B, N, C]
            key, value = (
                _beside(own, project(features)) for own, project in ((key, attn.to_k), (value, attn.to_v))
            )
        return _attend(attn, hidden_states, key, value, planes=1 if reference is None else 2)


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


def _beside(own: Tensor, reference: Tensor) -> Tensor:
    """Frames' tokens [B F, N, C] with their references' [B, M, C], not copied for each frame first: [B F, N + M, C]."""
    own = own.unflatten(0, (len(reference), -1))  # [B, F, N, C]
    return torch.cat([own, reference[:, None].expand(-1, own.shape[1], -1, -1)], dim=2).flatten(0, 1)


def _attend(attn: Any, hidden_states: Tensor, key: Tensor, value: Tensor, *, planes: int = 1) -> Tensor:
    """Tokens [B, N, C] to keys and values [B, M, C]; these lie in so many planes where the attention has a locality."""
    query = attn.to_q(hidden_states)
    query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value))
    width = query.shape[-1]
    if (locality := getattr(attn, "locality", None)) is not None:
        asks, gives = locality(hidden_states, key.shape[2] // planes)  # [B, heads, N, 3], [M / planes, 3]
        gives = gives.repeat(planes, 1).expand(*key.shape[:2], -1, -1)
        query = torch.cat([query, asks * math.sqrt(width)], dim=-1)  # against the attention's own scale
        key, value = torch.cat([key, gives], dim=-1), F.pad(value, (0, 3))
    out = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)[
        ..., :width
    ]  # [B, heads, N, C']
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

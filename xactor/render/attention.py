"""Define the attention processors that give the renderer's UNet the reference and the motion (Paper 3.1.1).

The reference is a set of features that the reference network (reference.py) computes from the portrait. Through
self-attention the UNet copies from it.
"""

import inspect
import json
import math
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

ReferenceFeatures = dict[str, Tensor]
"""Features of a reference for every self-attention of the UNet: the attention's name -> [B, tokens, C]."""


class WriteReference:
    """Run a self-attention of the reference network and store its input in `bank`."""

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
    """Weaken the attention of a query to keys that are far from the place at which the query looks.

    Queries and keys lie in square planes. A query looks at its own place plus a learned offset. So when a part of the
    face has moved, a query can look at the place where the part was. With p the place at which the query looks and k
    the key's place, the term -a |p - k|^2 is added to the logits. It equals 2 a p.k - a |k|^2 plus a term that all keys
    share, which the softmax ignores. So three more columns of queries and keys are enough to compute it.

    Args:
        heads: Number of attention heads.
        width: Width of the query tokens.
        fall: Initial value of a for the first head, in logits per squared distance between neighbouring keys. Each
            further head starts at an eighth of the previous head's value. The values are learned.
    """

    def __init__(self, heads: int, width: int, fall: float):
        super().__init__()
        self.fall = nn.Parameter(fall * 8.0 ** -torch.arange(heads))
        self.look = nn.Linear(width, 2 * heads)
        nn.init.zeros_(self.look.weight)
        nn.init.zeros_(self.look.bias)

    def forward(self, hidden_states: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """Return the additional columns of queries and keys.

        Args:
            hidden_states: Query tokens [B, N, C] of a square plane.
            keys: Number of key tokens K in their square plane.

        Returns:
            Columns of the queries, float32 [B, heads, N, 3], and of the keys, float32 [K, 3].
        """
        query_side, key_side = math.isqrt(hidden_states.shape[1]), math.isqrt(keys)
        # Places are in units of the distance between neighbouring keys.
        place = _places(query_side, hidden_states.device) * (key_side / query_side)  # [N, 2]
        offset = self.look(hidden_states).float().unflatten(-1, (-1, 2)).transpose(1, 2)  # [B, heads, N, 2]
        fall = self.fall.float().abs()[:, None, None]  # [heads, 1, 1]
        of_queries = torch.cat(
            [2 * fall * (place + offset), -fall.expand(*offset.shape[:3], 1)], dim=-1
        )  # [B, heads, N, 3]
        key_place = _places(key_side, hidden_states.device)  # [K, 2]
        of_keys = torch.cat([key_place, key_place.square().sum(-1, keepdim=True)], dim=-1)  # [K, 3]
        return of_queries, of_keys


def _places(side: int, device: torch.device) -> Tensor:
    """Return the places of a square plane's tokens relative to the plane's middle: float32 [side x side, 2].

    The unit is the distance between neighbouring tokens.
    """
    line = torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
    return torch.cartesian_prod(line, line)


class ReadReference:
    """Run a self-attention of the UNet over the tokens of a frame and of its reference together.

    Without a reference it is an ordinary self-attention. The keys lie in two planes: that of the frame and that of the
    reference. If the attention has a `Locality`, it applies to both planes in the same way.
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
            key = _append_reference(key, attn.to_k(features))  # [B F, 2 N, C]
            value = _append_reference(value, attn.to_v(features))  # [B F, 2 N, C]
        return _attend(attn, hidden_states, key, value, planes=1 if reference is None else 2)


class ReadMotion:
    """Run the cross-attention of a frame to its motion tokens, which are computed from the motion latent z."""

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
        key, value = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)  # [B F, M, C]
        return _attend(attn, hidden_states, key, value)


def _append_reference(own: Tensor, reference: Tensor) -> Tensor:
    """Append the tokens of references [B, M, C] to the tokens of their frames [B F, N, C]: [B F, N + M, C].

    A reference belongs to F frames. It is expanded over F without a copy, so that only the concatenation copies it.
    """
    own = own.unflatten(0, (len(reference), -1))  # [B, F, N, C]
    reference = reference[:, None].expand(-1, own.shape[1], -1, -1)  # [B, F, M, C]
    return torch.cat([own, reference], dim=2).flatten(0, 1)  # [B F, N + M, C]


def _attend(attn: Any, hidden_states: Tensor, key: Tensor, value: Tensor, *, planes: int = 1) -> Tensor:
    """Attend from tokens [B, N, C] to keys and values [B, M, C]. Return the attention's output, [B, N, C].

    Args:
        planes: Number of square planes in which the keys lie. Only an attention with a `Locality` uses it.
    """
    query = attn.to_q(hidden_states)  # [B, N, C]
    query, key, value = (
        x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (query, key, value)
    )  # [B, heads, N or M, C']
    width = query.shape[-1]
    if (locality := getattr(attn, "locality", None)) is not None:
        of_queries, of_keys = locality(
            hidden_states, key.shape[2] // planes
        )  # [B, heads, N, 3], [M / planes, 3]
        of_keys = of_keys.repeat(planes, 1).expand(*key.shape[:2], -1, -1)  # [B, heads, M, 3]
        # The attention divides logits by sqrt(width). Undo this for the columns of the locality.
        of_queries = of_queries * math.sqrt(width)
        if query.dtype != torch.float32:
            of_queries, of_keys = _split_columns(of_queries, of_keys, query.dtype)  # 9 columns each
        query = torch.cat([query, of_queries], dim=-1)  # [B, heads, N, C' + 3 or 9]
        key, value = torch.cat([key, of_keys], dim=-1), F.pad(value, (0, of_keys.shape[-1]))
    out = F.scaled_dot_product_attention(query, key, value, scale=width**-0.5)
    out = out[..., :width].transpose(1, 2).flatten(2)  # [B, N, C]
    return attn.to_out[1](attn.to_out[0](out))


def _split_columns(queries: Tensor, keys: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return columns of a dtype of low precision whose products sum up to those of float32 columns.

    Each number becomes a rounded number and the rounded rest. Squared places in bf16 alone would be wrong by several
    units, and logits with them.

    Args:
        queries: Columns of the queries, float32 [..., n].
        keys: Columns of the keys, float32 [..., n].
        dtype: The dtype to split into.

    Returns:
        Columns [..., 3 n] of both.
    """
    query, key = queries.to(dtype), keys.to(dtype)
    query_rest, key_rest = (queries - query.float()).to(dtype), (keys - key.float()).to(dtype)
    return torch.cat([query, query, query_rest], dim=-1), torch.cat([key, key_rest, key], dim=-1)


def spatial_blocks(unet: nn.Module) -> list[tuple[str, Any]]:
    """Return the name and module of each transformer block whose attentions stay within a frame.

    Blocks of the temporal layers, which attend over the frames of a window, are left out.
    """
    return [
        (name, module)
        for name, module in unet.named_modules()
        if ".attentions." in name and type(module).__name__ == "BasicTransformerBlock"
    ]


def own_config(model: ConfigMixin) -> str:
    """Return the text of a model's config.json, with only the arguments that the model's own class accepts.

    The config also holds arguments of the parent class in diffusers, which the model's own class does not accept.
    """
    accepted = inspect.signature(type(model).__init__).parameters
    config = {name: value for name, value in model.config.items() if name in accepted}
    config |= {"_class_name": type(model).__name__, "_diffusers_version": diffusers.__version__}
    return json.dumps(config, indent=2, sort_keys=True) + "\n"

"""Who sees whom: attention masks as predicates over positions (q, kv). True where q may look at kv.

Positions are frame numbers, ints or integer tensors that broadcast. One predicate serves the dense mask of SDPA
and FlexAttention's `mask_mod`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from xactor.motion.forcing_config import Attention


def chunk_causal(q, kv, chunk_frames: int):
    """Full inside a chunk, causal across chunks (Paper 3.2)."""
    return kv // chunk_frames <= q // chunk_frames


def visible(q, kv, *, chunk_frames: int, attention: Attention):
    """The model's self-attention: `chunk` is the paper's, `causal` the fully causal ablation (Table 2)."""
    return chunk_causal(q, kv, chunk_frames) if attention == "chunk" else kv <= q


def teacher_visible(q, kv, *, frames: int, chunk_frames: int, attention: Attention):
    """Teacher forcing in one pass over 2 x frames tokens, [clean | noised].

    A clean frame sees clean frames as the model does; a noised frame of chunk c sees the clean frames of the
    chunks before c, and the noised frames of c itself.
    """
    q_noised, kv_noised = q >= frames, kv >= frames
    q_frame, kv_frame = q % frames, kv % frames
    same_chunk = q_frame // chunk_frames == kv_frame // chunk_frames
    before = kv_frame // chunk_frames < q_frame // chunk_frames
    ordinary = visible(q_frame, kv_frame, chunk_frames=chunk_frames, attention=attention)
    clean_to_clean = ~q_noised & ~kv_noised & ordinary
    noised_to_clean = q_noised & ~kv_noised & before
    noised_to_noised = q_noised & kv_noised & same_chunk & ordinary
    return clean_to_clean | noised_to_clean | noised_to_noised


def dense_mask(
    predicate: Callable[[Tensor, Tensor], Tensor], q: Tensor, kv: Tensor, kv_real: Tensor | None = None
) -> Tensor:
    """The predicate as SDPA wants it: bool [B or 1, 1, Q, KV].

    Args:
        q, kv: positions, int [Q] and [KV], or [B, Q] and [B, KV] where rows stand at different places.
        kv_real: which keys are no padding, bool [B, KV].
    """
    mask = predicate(q[..., :, None], kv[..., None, :])  # [.., Q, KV]
    mask = mask[:, None] if mask.dim() == 3 else mask[None, None]
    return mask if kv_real is None else mask & kv_real[:, None, None, :]


def block_mask(
    predicate: Callable[[Tensor, Tensor], Tensor], q: Tensor, kv: Tensor, kv_real: Tensor | None = None
):
    """The same predicate as a FlexAttention BlockMask."""
    from torch.nn.attention.flex_attention import create_block_mask

    def mask_mod(b, h, i, j):
        seen = predicate(q[b, i], kv[b, j]) if q.dim() == 2 else predicate(q[i], kv[j])
        return seen if kv_real is None else seen & kv_real[b, j]

    batch = len(q) if q.dim() == 2 else None if kv_real is None else len(kv_real)
    return create_block_mask(mask_mod, batch, None, q.shape[-1], kv.shape[-1], device=str(q.device))


def make_mask(implementation: str, predicate, q: Tensor, kv: Tensor, kv_real: Tensor | None = None):
    """The mask in the form that an attention implementation of transformers takes."""
    makers = {"sdpa": dense_mask, "flex_attention": block_mask}
    if implementation not in makers:  # "eager" would add the booleans to the scores
        raise ValueError(f"attn_implementation must be one of {', '.join(makers)}, got {implementation!r}")
    return makers[implementation](predicate, q, kv, kv_real)


def real_frames(frames: Tensor, width: int) -> Tensor:
    """Which of `width` padded positions are real: bool [B, width], from lengths int [B]."""
    return torch.arange(width, device=frames.device)[None, :] < frames[:, None]

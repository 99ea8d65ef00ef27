"""Define attention masks as predicates over positions (q, kv). A predicate is True where q may attend to kv.

Positions are frame numbers, except in `teacher_visible`. Positions and chunk lengths are ints, or integer tensors that
broadcast. The same predicate builds the dense mask of SDPA and the `mask_mod` of FlexAttention.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from xactor.motion.forcing_config import Attention

# A function of the positions of queries and keys, and of the length of a chunk.
Predicate = Callable[[Tensor, Tensor, int | Tensor], Tensor]


def chunk_causal(q, kv, chunk_frames):
    """Return whether kv is visible to q: attention is full inside a chunk and causal across chunks (Paper 3.2)."""
    return kv // chunk_frames <= q // chunk_frames


def visible(q, kv, chunk_frames, *, attention: Attention):
    """Return whether kv is visible to q in the model's self-attention.

    `chunk` is the paper's attention, `causal` the fully causal ablation (Table 2).
    """
    return chunk_causal(q, kv, chunk_frames) if attention == "chunk" else kv <= q


def teacher_visible(q, kv, chunk_frames, *, frames: int, attention: Attention):
    """Return whether kv is visible to q in teacher forcing.

    One pass has 2 x `frames` tokens: positions 0..frames-1 are the clean frames, and the following positions are the
    same frames noised. A clean frame sees clean frames by the rule of `visible`. A noised frame of chunk c sees the
    clean frames of the chunks before c. By the rule of `visible`, it also sees the noised frames of c itself.
    """
    q_noised, kv_noised = q >= frames, kv >= frames
    q_frame, kv_frame = q % frames, kv % frames
    same_chunk = q_frame // chunk_frames == kv_frame // chunk_frames
    before = kv_frame // chunk_frames < q_frame // chunk_frames
    ordinary = visible(q_frame, kv_frame, chunk_frames, attention=attention)
    clean_to_clean = ~q_noised & ~kv_noised & ordinary
    noised_to_clean = q_noised & ~kv_noised & before
    noised_to_noised = q_noised & kv_noised & same_chunk & ordinary
    return clean_to_clean | noised_to_clean | noised_to_noised


def dense_mask(
    predicate: Predicate, q: Tensor, kv: Tensor, chunk_frames: int | Tensor, kv_real: Tensor | None = None
) -> Tensor:
    """Return the predicate as a mask for SDPA: bool [B or 1, 1, Q, KV].

    Args:
        predicate: Returns whether a key is visible to a query.
        q: Positions of the queries, int [Q], or [B, Q] if they differ between rows.
        kv: Positions of the keys, int [KV] or [B, KV].
        chunk_frames: Length of a chunk in frames, or the chunk length of each row, int [B].
        kv_real: True for keys that are not padding, bool [B, KV].
    """
    if isinstance(chunk_frames, Tensor):
        chunk_frames = chunk_frames[:, None, None]
    mask = predicate(q[..., :, None], kv[..., None, :], chunk_frames)  # [.., Q, KV]
    mask = mask[:, None] if mask.dim() == 3 else mask[None, None]
    return mask if kv_real is None else mask & kv_real[:, None, None, :]


def block_mask(
    predicate: Predicate, q: Tensor, kv: Tensor, chunk_frames: int | Tensor, kv_real: Tensor | None = None
):
    """Return the predicate as a BlockMask for FlexAttention. The arguments are those of `dense_mask`."""
    from torch.nn.attention.flex_attention import create_block_mask

    def mask_mod(b, h, i, j):
        frames = chunk_frames[b] if isinstance(chunk_frames, Tensor) else chunk_frames
        seen = predicate(q[b, i], kv[b, j], frames) if q.dim() == 2 else predicate(q[i], kv[j], frames)
        return seen if kv_real is None else seen & kv_real[b, j]

    if q.dim() == 2:
        batch = len(q)
    elif kv_real is not None:
        batch = len(kv_real)
    elif isinstance(chunk_frames, Tensor):
        batch = len(chunk_frames)
    else:
        batch = None
    return create_block_mask(mask_mod, batch, None, q.shape[-1], kv.shape[-1], device=str(q.device))


def make_mask(
    implementation: str,
    predicate: Predicate,
    q: Tensor,
    kv: Tensor,
    chunk_frames: int | Tensor,
    kv_real: Tensor | None = None,
):
    """Return the mask in the form that an attention implementation of the library transformers takes.

    Args:
        implementation: `sdpa` or `flex_attention`.
        predicate: Returns whether a key is visible to a query.
        q: Positions of the queries, as in `dense_mask`.
        kv: Positions of the keys, as in `dense_mask`.
        chunk_frames: Length of a chunk, as in `dense_mask`.
        kv_real: True for keys that are not padding, as in `dense_mask`.
    """
    makers = {"sdpa": dense_mask, "flex_attention": block_mask}
    # transformers' implementation "eager" is missing, because it would add a boolean mask to the scores.
    if implementation not in makers:
        raise ValueError(f"attn_implementation must be one of {', '.join(makers)}, got {implementation!r}")
    return makers[implementation](predicate, q, kv, chunk_frames, kv_real)


def real_frames(frames: Tensor, width: int) -> Tensor:
    """Return which of `width` positions are real and not padding: bool [B, width], from lengths int [B]."""
    return torch.arange(width, device=frames.device)[None, :] < frames[:, None]

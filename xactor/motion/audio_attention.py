"""Audio for the motion model: layers fused by an MLP, and windowed cross-attention in O(5T)."""

import torch
from torch import Tensor, nn


class AudioFusion(nn.Module):
    """The chosen layers of the audio encoder fused to one embedding a frame (Paper 3.2: "fused and projected
    through a MLP"): [B, T, L, F] -> [B, T, A]. Dropped audio becomes one learned embedding."""

    def __init__(self, layers: int, width: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(layers * width, out), nn.SiLU(), nn.Linear(out, out))
        self.dropped = nn.Parameter(torch.zeros(out))

    def forward(self, audio: Tensor, keep: Tensor | None = None) -> Tensor:
        """
        Args:
            audio: [B, T, L, F].
            keep: [B], 1 where the audio is heard, 0 where it is dropped whole. By multiplying and not by skipping,
                so that every rank computes the same graph.
        """
        embedded = self.mlp(self.norm(audio).flatten(2))  # [B, T, A]
        if keep is None:
            return embedded
        heard = keep.to(embedded.dtype)[:, None, None]
        return heard * embedded + (1 - heard) * self.dropped


class WindowedAudioAttention(nn.Module):
    """Frame t attends to the audio of frames t-w..t+w and to nothing else (Paper 3.2, w = 2).

    Costs (2w+1) T scores, not T^2: keys and values are made once a frame and looked at through sliding windows.
    Ours: a learned bias on each place in the window, without which the five would have no order; and a zero
    output projection at the start, so that step 0 is the loaded backbone.
    """

    def __init__(self, hidden: int, audio: int, heads: int, window: int, eps: float):
        super().__init__()
        self.heads, self.head_dim, self.window = heads, hidden // heads, window
        self.norm = nn.RMSNorm(hidden, eps=eps)
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(audio, hidden, bias=False)
        self.v_proj = nn.Linear(audio, hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        self.place = nn.Parameter(torch.zeros(2 * window + 1, hidden))  # added to the keys and the values

    def forward(self, x: Tensor, audio: Tensor, audio_real: Tensor) -> Tensor:
        """The residual to add to x: [B, T, H].

        Args:
            x: motion tokens [B, T, H].
            audio: [B, T + 2w, A], from w frames before the first token to w past the last.
            audio_real: bool [B, T + 2w], False past the clip's ends.
        """
        batch, frames, _ = x.shape
        places = 2 * self.window + 1
        q = self.q_proj(self.norm(x)).view(batch, frames, self.heads, self.head_dim)
        k = self._windows(self.k_proj(audio))  # [B, T, 2w+1, heads, head_dim]
        v = self._windows(self.v_proj(audio))  # [B, T, 2w+1, heads, head_dim]
        real = audio_real.unfold(1, places, 1)  # [B, T, 2w+1]
        scores = torch.einsum("bthd,btphd->bthp", q, k) * self.head_dim**-0.5
        scores = scores.masked_fill(~real[:, :, None, :], torch.finfo(scores.dtype).min)
        heard = torch.einsum("bthp,btphd->bthd", scores.softmax(-1), v)
        return self.o_proj(heard.flatten(2))

    def _windows(self, keys: Tensor) -> Tensor:
        """[B, T + 2w, H] -> [B, T, 2w+1, heads, head_dim], each place with its learned bias."""
        windows = keys.unfold(1, 2 * self.window + 1, 1).transpose(2, 3) + self.place  # [B, T, 2w+1, H]
        return windows.unflatten(-1, (self.heads, self.head_dim))

"""Condition the motion model on audio: fuse the audio encoder's layers, and let each frame attend to nearby audio."""

import torch
from torch import Tensor, nn


class AudioFusion(nn.Module):
    """Fuse the L chosen layers of the audio encoder to one embedding per frame: [B, T, L, F] -> [B, T, A].

    Paper 3.2: "fused and projected through a MLP". For classifier-free guidance the audio of a row of the batch may be
    dropped. One learned embedding then replaces the embedding of every frame.
    """

    def __init__(self, layers: int, width: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(layers * width, out), nn.SiLU(), nn.Linear(out, out))
        self.dropped = nn.Parameter(torch.zeros(out))

    def forward(self, audio: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the embeddings [B, T, A].

        Args:
            audio: Features [B, T, L, F].
            keep: 1 for a row that keeps its audio, 0 for a row whose audio is dropped, [B]. None: all rows keep their
                audio.
        """
        embedded = self.mlp(self.norm(audio).flatten(2))  # [B, T, A]
        if keep is None:
            return embedded
        # Multiply instead of skipping rows, so that every training process computes the same graph.
        cond = keep.to(embedded.dtype)[:, None, None]  # [B, 1, 1]
        return cond * embedded + (1 - cond) * self.dropped


class WindowedAudioAttention(nn.Module):
    """Let frame t attend to the audio of frames t-w..t+w and to nothing else (Paper 3.2, w = 2).

    The cost is (2w+1) T scores instead of T^2: keys and values are computed once per frame and read through sliding
    windows.

    Ours: each position in the window has a learned bias, because attention alone does not know the positions' order.
    The model's initialisation sets the output projection to zero. So at first this layer adds nothing, and training
    starts from the pretrained backbone.
    """

    def __init__(self, hidden: int, audio: int, heads: int, window: int, eps: float):
        super().__init__()
        self.heads, self.head_dim, self.window = heads, hidden // heads, window
        self.norm = nn.RMSNorm(hidden, eps=eps)
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(audio, hidden, bias=False)
        self.v_proj = nn.Linear(audio, hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        # Bias of each position in the window, added to the keys and to the values.
        self.place = nn.Parameter(torch.zeros(2 * window + 1, hidden))

    def forward(self, x: Tensor, audio: Tensor, audio_real: Tensor) -> Tensor:
        """Return the residual to add to x: [B, T, H].

        Args:
            x: Motion tokens [B, T, H].
            audio: Embeddings [B, T + 2w, A], from w frames before the first token to w past the last.
            audio_real: bool [B, T + 2w], False before the clip's start and past its end.
        """
        batch, frames, _ = x.shape
        positions = 2 * self.window + 1
        q = self.q_proj(self.norm(x)).view(batch, frames, self.heads, self.head_dim)
        k = self._windows(self.k_proj(audio))  # [B, T, 2w+1, heads, head_dim]
        v = self._windows(self.v_proj(audio))  # [B, T, 2w+1, heads, head_dim]
        real = audio_real.unfold(1, positions, 1)  # [B, T, 2w+1]
        scores = torch.einsum("bthd,btphd->bthp", q, k) * self.head_dim**-0.5
        scores = scores.masked_fill(~real[:, :, None, :], torch.finfo(scores.dtype).min)
        attended = torch.einsum("bthp,btphd->bthd", scores.softmax(-1), v)
        return self.o_proj(attended.flatten(2))

    def _windows(self, keys: Tensor) -> Tensor:
        """Return sliding windows of [B, T + 2w, H] plus the bias of each position: [B, T, 2w+1, heads, head_dim]."""
        windows = keys.unfold(1, 2 * self.window + 1, 1).transpose(2, 3) + self.place  # [B, T, 2w+1, H]
        return windows.unflatten(-1, (self.heads, self.head_dim))

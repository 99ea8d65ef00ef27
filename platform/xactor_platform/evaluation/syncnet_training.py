"""Trains a small SyncNet on video shards, for those who have no published weights.

One process, no cluster: it takes minutes. The recipe is the paper's where it gives one (Chung and Zisserman 2016, 3.1):
the contrastive loss of its Equation 1, false pairs of the same clip's sound at another time, batch normalisation, one
change of crop, mirror and colour to all frames of a clip, and of loudness by 10 %.
"""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import relu

from xactor.media import read_audio, read_frames
from xactor.metrics.sync import cepstra_windows, frames_to_model
from xactor.metrics.sync_crop import face_in_crop, sync_crop
from xactor.metrics.syncnet import WINDOW_FRAMES, SyncNet, SyncNetConfig, small_config
from xactor.randomness import keyed_generator
from xactor.rates import FPS, SAMPLES_PER_FRAME
from xactor_platform.data.index import Index
from xactor_platform.training.train_config import at_least

METRICS = "metrics.jsonl"
_SLACK_PX = 4  # a crop is kept so much larger than the model sees, to be cut at random
_LEAST_FRAMES = WINDOW_FRAMES + 1
_EPSILON = 1e-6  # under the root, whose slope at 0 has no end


@dataclass(frozen=True, kw_only=True)
class SyncNetTraining:
    """
    videos: URI of video shards: face crops with sound. Those of `test-*` and `val-*` are held out.
    output: folder for the model and its metrics.jsonl.
    model: its sizes.
    minutes: of the clips at most; they are kept in memory.
    steps, seed: the same seed and threads give the same model.
    runs, run_windows: a step takes so many runs of so many successive windows. Ours: false pairs are all of a run that
        lie at least `least_shift` frames apart, up to a second; the paper draws one for each true pair, up to 2 s off.
    margin: how far apart a false pair is to lie. Ours: about as far as random weights put it; the paper does not say.
    learning_rate: at the beginning; it falls to a hundredth, as the paper's does. Ours: of Adam, and along a cosine.
    device: auto is a GPU where there is one. threads: of torch on the CPU.
    """

    videos: str = "demo/corpus/videos"
    output: Path = Path("demo/syncnet")
    model: SyncNetConfig = field(default_factory=small_config)
    minutes: float = 30.0
    steps: int = 700
    seed: int = 0
    runs: int = 6
    run_windows: int = 24
    least_shift: int = 2
    margin: float = 4.0
    learning_rate: float = 2e-3
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 2

    def __post_init__(self):
        at_least(self, 1, "steps", "threads", "runs", "least_shift")
        at_least(self, self.least_shift + 1, "run_windows")
        at_least(self, 0, "seed")
        for name in ("minutes", "margin", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    @property
    def crop_px(self) -> int:
        """Of the clips to train on: larger than the model sees, so that a part can be cut at random."""
        return self.model.image_size + _SLACK_PX

    @property
    def clip_frames(self) -> int:
        """The shortest clip that can be trained on."""
        return self.run_windows + WINDOW_FRAMES


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One clip in memory.

    Attributes:
        source: where it is from, by its json; "demo" of the demo corpus.
        crops: uint8 [T, S, S, 3] RGB, as SyncNet sees a face, or a little larger.
        samples: float32 [T x 640], mono, 16 kHz.
        cepstra: float32 [windows, 13, 20], of the sound of each window.
    """

    key: str
    source: str
    crops: np.ndarray
    samples: np.ndarray
    cepstra: np.ndarray

    @property
    def windows(self) -> int:
        """That lie whole in the clip."""
        return len(self.cepstra)


def read_clips(
    index: Index, crop_px: int, *, minutes: float = math.inf, least_frames: int = _LEAST_FRAMES
) -> list[Clip]:
    """The clips of an index of video shards, their faces cut as SyncNet sees them, up to so many minutes.

    Raises:
        ValueError: no videos, a clip that cannot be decoded, or none of so many frames.
    """
    if "mp4" not in index.offset:
        raise ValueError(f"{index.location.uri}: holds latents, not videos")
    clips, frames = [], 0
    for row in np.flatnonzero(index.frames >= least_frames):
        if frames >= minutes * 60 * FPS:
            break
        clips.append(_read_clip(index, int(row), crop_px))
        frames += len(clips[-1].crops)
    if not clips:
        raise ValueError(f"{index.location.uri}: no clip of >= {least_frames} frames")
    return clips


def train_syncnet(
    config: SyncNetTraining, clips: Sequence[Clip], progress: Callable[[str], None] = lambda line: None
) -> SyncNet:
    """Trains on clips and saves the model with its metrics.jsonl: the model, ready to score.

    Args:
        clips: crops of the model's `image_size`, or larger, of which the model then sees a part.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    device = _device(config.device)
    model = SyncNet(config.model, weights=label(clips)).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, config.steps, eta_min=config.learning_rate / 100
    )
    config.output.mkdir(parents=True, exist_ok=True)
    with (config.output / METRICS).open("w") as metrics:
        for step in range(config.steps):
            frames, cepstra = draw_batch(clips, config, step)
            seen = model.see(frames.to(device))  # [R, n, E]
            heard = model.hear(cepstra.flatten(0, 1).to(device)).view_as(seen)
            loss = contrastive_loss(seen, heard, margin=config.margin, least_shift=config.least_shift)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            metrics.write(json.dumps({"step": step, "loss": loss.item()}) + "\n")
            if (step + 1) % 50 == 0 or step + 1 == config.steps:
                progress(f"step {step + 1} of {config.steps}: loss {loss.item():.3f}")
    model = model.cpu().eval()
    model.save_pretrained(config.output)
    (config.output / "training.json").write_text(json.dumps(asdict(config), indent=2, default=str) + "\n")
    return model


def label(clips: Sequence[Clip]) -> str:
    """What every score says of a model that was trained on these clips."""
    if all(clip.source == "demo" for clip in clips):
        return "small, trained on the demo corpus"
    return f"small, trained on {len(clips)} clips of one's own"


def draw_batch(clips: Sequence[Clip], config: SyncNetTraining, step: int) -> tuple[Tensor, Tensor]:
    """A step's runs of n windows, keyed (seed, step): frames [R, 3, n + 4, S, S] and cepstra [R, n, 13, 20].

    A clip is drawn as often as it is long.
    """
    generator = keyed_generator(config.seed, step, "syncnet")
    n, side = config.run_windows, config.model.image_size
    lengths = torch.tensor([clip.windows for clip in clips], dtype=torch.float64)
    frames, cepstra = [], []
    for number in torch.multinomial(lengths, config.runs, replacement=True, generator=generator).tolist():
        clip = clips[number]
        start = int(torch.randint(clip.windows - n + 1, (), generator=generator))
        crops = clip.crops[start : start + n + WINDOW_FRAMES - 1]
        frames.append(_altered(frames_to_model(crops), side, generator))
        heard = torch.from_numpy(clip.cepstra[start : start + n]).clone()
        # Louder or softer by up to 10 %: of all coefficients only the logarithm of the energy hears it.
        heard[:, 0] += 2 * torch.log(0.9 + 0.2 * torch.rand((), generator=generator))
        cepstra.append(heard)
    return torch.stack(frames), torch.stack(cepstra)


def contrastive_loss(seen: Tensor, heard: Tensor, *, margin: float, least_shift: int) -> Tensor:
    """Half of d^2 over true pairs and of relu(margin - d)^2 over false ones, averaged (Equation 1 of the paper).

    Ours: every two windows of a run that are `least_shift` frames apart or more are a false pair; all of these weigh as
    much as all true ones. Those in between are neither.

    Args:
        seen, heard: [R, n, E], of n successive windows.
    """
    place = torch.arange(seen.shape[1], device=seen.device)
    apart = (place[:, None] - place).abs()
    squared = (seen[:, :, None] - heard[:, None]).square().sum(-1)  # [R, n, n]
    true = squared[:, apart == 0]
    false = relu(margin - (squared[:, apart >= least_shift] + _EPSILON).sqrt()).square()
    return (true.mean() + false.mean()) / 4


def _altered(frames: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Frames [3, T, P, P] cut to `side`, mirrored or not, and their colours moved: all alike."""
    slack = frames.shape[-1] - side
    top, left = torch.randint(slack + 1, (2,), generator=generator).tolist()
    frames = frames[..., top : top + side, left : left + side]
    if torch.rand((), generator=generator) < 0.5:
        frames = frames.flip(-1)
    contrast = 0.8 + 0.4 * torch.rand((), generator=generator)
    colour = 20 * torch.randn(3, 1, 1, 1, generator=generator)
    return (frames * contrast + colour).clamp(0, 255)


def _read_clip(index: Index, row: int, crop_px: int) -> Clip:
    key, count = str(index.key[row]), int(index.frames[row])
    try:
        with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
            file.write(index.read(row, "mp4"))
            file.flush()
            pictures = islice(read_frames(file.name, FPS), count)
            crops = [sync_crop(p, face_in_crop(p.shape[0]), crop_px) for p in pictures]
            sound = read_audio(file.name)[: count * SAMPLES_PER_FRAME]
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    samples = np.zeros(len(crops) * SAMPLES_PER_FRAME, np.float32)
    samples[: len(sound)] = sound[: len(samples)]
    # Not of the last window: its cepstra would reach past the sound's end.
    cepstra = cepstra_windows(samples, 0, len(crops) - WINDOW_FRAMES)
    source = str(index.read_meta(row).get("source"))
    return Clip(key=key, source=source, crops=np.stack(crops), samples=samples, cepstra=cepstra)


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: no GPU is available")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

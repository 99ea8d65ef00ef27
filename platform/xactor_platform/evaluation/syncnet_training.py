"""Train a small SyncNet on video shards, for users without the published weights.

Training runs in one process, without a cluster, and takes minutes. The recipe follows SyncNet's paper where it gives
one (Chung and Zisserman 2016, 3.1): the contrastive loss of its Equation 1, false pairs of pictures with the same
clip's sound at another time, batch normalisation, one random crop, mirroring and change of colour for all frames of a
clip, and a random change of loudness by up to 10 %. `Ours` marks our own choices.

SyncNet embeds windows: 5 successive frames, and the sound of the same time.
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
# Crops are larger than the model's input by this many pixels, so that each step can cut them at random.
_SLACK_PX = 4
# Length of the shortest clip with a window. The last window of a clip is left out; see `_read_clip`.
_MIN_FRAMES = WINDOW_FRAMES + 1
# Added to a squared distance before its square root is taken, because the slope of the root is infinite at 0.
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class SyncNetTraining:
    """Configure the training of a small SyncNet. The defaults train on the demo corpus."""

    videos: str = "demo/corpus/videos"
    """Folder or URI of video shards: face crops with sound. The shards test-* and val-* are held out."""
    output: Path = Path("demo/syncnet")
    """Folder for the model and its metrics.jsonl."""
    model: SyncNetConfig = field(default_factory=small_config)
    """Sizes of the model."""
    minutes: float = 30.0
    """Maximum minutes of clips, more than 0. All clips are kept in memory."""
    steps: int = 700
    """Training steps, at least 1."""
    seed: int = 0
    """Seed, at least 0. The same seed and number of threads give the same model."""
    runs: int = 6
    """Number of runs in a training step, at least 1. A run is successive windows of one clip."""
    run_windows: int = 24
    """Number of windows in a run, more than min_shift."""
    min_shift: int = 2
    """Minimum distance in frames between the pictures and the sound of a false pair, at least 1. Ours: all such pairs
    of a run are false pairs, up to a second apart. The paper draws one for each true pair, up to 2 s apart."""
    margin: float = 4.0
    """Distance that a false pair is pushed to, more than 0. Ours: about the distance with random weights."""
    learning_rate: float = 2e-3
    """Learning rate of the first step, more than 0. It falls to a hundredth, as in the paper. Ours: Adam, and a cosine
    decay."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device. auto is a GPU if there is one."""
    threads: int = 2
    """Threads of torch on the CPU, at least 1."""

    def __post_init__(self):
        at_least(self, 1, "steps", "threads", "runs", "min_shift")
        at_least(self, self.min_shift + 1, "run_windows")
        at_least(self, 0, "seed")
        for name in ("minutes", "margin", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    @property
    def crop_px(self) -> int:
        """Return the side of the training crops. The smaller input of the model is cut out of them at random."""
        return self.model.image_size + _SLACK_PX

    @property
    def clip_frames(self) -> int:
        """Return the length of the shortest clip that can be trained on, in frames."""
        return self.run_windows + WINDOW_FRAMES


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Hold one clip in memory."""

    key: str
    """The clip's key in the shards."""
    source: str
    """The clip's source as its json states it, "demo" for the demo corpus."""
    crops: np.ndarray
    """Face crops uint8 [T, S, S, 3] RGB, framed for SyncNet, or a little larger for random crops."""
    samples: np.ndarray
    """Sound float32 [T x 640], mono, 16 kHz: 640 samples for each frame."""
    cepstra: np.ndarray
    """Cepstra of each window's sound, float32 [windows, 13, 20]."""

    @property
    def windows(self) -> int:
        """Return the number of windows that lie completely in the clip."""
        return len(self.cepstra)


def read_clips(
    index: Index, crop_px: int, *, minutes: float = math.inf, min_frames: int = _MIN_FRAMES
) -> list[Clip]:
    """Read clips of video shards, with their faces framed for SyncNet.

    Args:
        index: The shards' index.
        crop_px: Side of the crops.
        minutes: Maximum minutes of clips.
        min_frames: Minimum number of frames of a clip. Shorter clips are left out.

    Raises:
        ValueError: The shards hold no videos, a clip cannot be decoded, or no clip is long enough.
    """
    if "mp4" not in index.offset:
        raise ValueError(f"{index.location.uri}: holds latents, not videos")
    clips, frames = [], 0
    for row in np.flatnonzero(index.frames >= min_frames):
        if frames >= minutes * 60 * FPS:
            break
        clips.append(_read_clip(index, int(row), crop_px))
        frames += len(clips[-1].crops)
    if not clips:
        raise ValueError(f"{index.location.uri}: no clip of >= {min_frames} frames")
    return clips


def train_syncnet(
    config: SyncNetTraining, clips: Sequence[Clip], progress: Callable[[str], None] = lambda line: None
) -> SyncNet:
    """Train on clips, and save the model with its metrics.jsonl. Return the model, ready to score.

    Args:
        config: The training's options.
        clips: Clips whose crops have the model's `image_size` as their side, or a larger side. Larger crops are cut at
            random.
        progress: Called with a line every 50 steps.
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
            loss = contrastive_loss(seen, heard, margin=config.margin, min_shift=config.min_shift)
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
    """Return the name that scores give to a model that was trained on these clips."""
    if all(clip.source == "demo" for clip in clips):
        return "small, trained on the demo corpus"
    return f"small, trained on {len(clips)} clips of another corpus"


def draw_batch(clips: Sequence[Clip], config: SyncNetTraining, step: int) -> tuple[Tensor, Tensor]:
    """Draw the R runs of a step, each with n windows. The draw depends only on the seed and the step.

    A clip is drawn with a probability proportional to its length.

    Returns:
        Frames [R, 3, n + 4, S, S] and cepstra [R, n, 13, 20].
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
        # Change the loudness by up to 10 %. This changes only the first coefficient, the logarithm of the energy. The
        # energy is the square of the amplitude, hence the factor 2.
        heard[:, 0] += 2 * torch.log(0.9 + 0.2 * torch.rand((), generator=generator))
        cepstra.append(heard)
    return torch.stack(frames), torch.stack(cepstra)


def contrastive_loss(seen: Tensor, heard: Tensor, *, margin: float, min_shift: int) -> Tensor:
    """Average half of d^2 over true pairs and of relu(margin - d)^2 over false ones (Equation 1 of the paper).

    Ours: all pictures and sounds of a run that are at least `min_shift` frames apart form false pairs. All false pairs
    together have the same weight as all true pairs. Closer pairs that are not simultaneous are unused.

    Args:
        seen: Embeddings of the pictures [R, n, E], of n successive windows.
        heard: Embeddings of the sound [R, n, E].
        margin: Distance that a false pair is pushed to.
        min_shift: Minimum distance of a false pair, in frames.
    """
    numbers = torch.arange(seen.shape[1], device=seen.device)
    shift = (numbers[:, None] - numbers).abs()  # [n, n]
    squared = (seen[:, :, None] - heard[:, None]).square().sum(-1)  # [R, n, n]
    true = squared[:, shift == 0]
    false = relu(margin - (squared[:, shift >= min_shift] + _EPSILON).sqrt()).square()
    # A half from the equation, and a half for the average over the two kinds of pairs.
    return (true.mean() + false.mean()) / 4


def _altered(frames: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Augment frames [3, T, P, P], all alike: cut them to `side`, mirror them or not, and change their colours."""
    slack = frames.shape[-1] - side
    top, left = torch.randint(slack + 1, (2,), generator=generator).tolist()
    frames = frames[..., top : top + side, left : left + side]
    if torch.rand((), generator=generator) < 0.5:
        frames = frames.flip(-1)
    contrast = 0.8 + 0.4 * torch.rand((), generator=generator)
    colour = 20 * torch.randn(3, 1, 1, 1, generator=generator)
    return (frames * contrast + colour).clamp(0, 255)


def _read_clip(index: Index, row: int, crop_px: int) -> Clip:
    """Read one clip. Sound that is shorter than the pictures is extended with silence."""
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
    # The last window is left out: its cepstra would reach past the sound's end.
    cepstra = cepstra_windows(samples, 0, len(crops) - WINDOW_FRAMES)
    source = str(index.read_meta(row).get("source"))
    return Clip(key=key, source=source, crops=np.stack(crops), samples=samples, cepstra=cepstra)


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: no GPU is available")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")

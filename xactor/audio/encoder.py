"""Audio encoders behind one face: sound in, frame-aligned features [T, L, F] out.

Every encoder defines its features by fixed windows (windows.py); precomputation, animation, serving and bulk
work all call `features` or, piece by piece, `encode`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from xactor.audio.windows import WindowSpec, cut_window, window_count, window_start
from xactor.rates import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, frame_count

CONFIG_FILE = "preprocessor_config.json"


class AudioEncoder(ABC):
    """Sound to features: `layers` (L) vectors of `width` (F) for every video frame of 40 ms."""

    windows: WindowSpec
    layers: int
    width: int

    @abstractmethod
    def encode(self, windows: Tensor) -> Tensor:
        """Features of the `hop_frames` frames of each window.

        Args:
            windows: float32 [W, windows.frames * 640], from `cut_window`.

        Returns:
            float32 [W, hop_frames, L, F].
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `load_audio_encoder` needs."""

    def to(self, device: torch.device | str) -> Self:
        """Where to compute. An encoder without weights stays where it is."""
        return self

    def features(self, samples: np.ndarray, *, batch_windows: int = 16) -> np.ndarray:
        """Features of a whole recording: float32 [T, L, F], T = round(duration x 25). As `stream`, in one piece."""
        return np.concatenate(list(self.stream(samples, batch_windows=batch_windows)))

    def stream(self, samples: np.ndarray, *, batch_windows: int = 16) -> Iterator[np.ndarray]:
        """Features piece by piece, of `batch_windows` windows at a time: float32 [n, L, F].

        Args:
            samples: float32 [N], mono, 16 kHz.

        Raises:
            ValueError: samples that are not finite or not one-dimensional, or no longer than half a frame.
        """
        _check(samples)
        listener = FeatureStream(self, batch_windows=batch_windows)
        size = batch_windows * self.windows.hop_frames * SAMPLES_PER_FRAME
        ahead = self.windows.right_frames * SAMPLES_PER_FRAME
        for piece in np.split(samples, range(size + ahead, len(samples), size)):
            if len(features := listener.hear(piece)):
                yield features
        if len(features := listener.end()):
            yield features

    def features_of(
        self,
        samples: np.ndarray,
        first_frame: int,
        last_frame: int,
        *,
        start: int = 0,
        batch_windows: int = 16,
    ) -> np.ndarray:
        """Features of frames [first_frame, last_frame) of a recording, float32 [n, L, F], as those of the whole.

        Args:
            samples: float32 [N], mono, 16 kHz: all that `sound_needed` says, or up to the recording's end.
            start: where in the recording they begin.
        """
        _check(samples)
        spec = self.windows
        indices = range(first_frame // spec.hop_frames, window_count(last_frame, spec))
        cut = np.stack([cut_window(samples, i, spec, start=start) for i in indices])
        with torch.inference_mode():
            parts = [self.encode(some).cpu() for some in torch.from_numpy(cut).split(batch_windows)]
        features = torch.cat(parts).flatten(0, 1).numpy()
        skip = first_frame - indices.start * spec.hop_frames
        return features[skip : skip + last_frame - first_frame]


class FeatureStream:
    """Features of sound that arrives piece by piece, equal to the whole recording's: a window is computed as soon as
    all its sound is there. Keeps as much sound as one window looks back at.
    """

    def __init__(self, encoder: AudioEncoder, *, batch_windows: int = 16):
        self._encoder, self._batch = encoder, batch_windows
        self._kept = np.zeros(0, dtype=np.float32)
        self._start = 0  # of `_kept` in the recording
        self._made = 0  # windows

    def hear(self, samples: np.ndarray) -> np.ndarray:
        """The features that the next samples make certain: float32 [n, L, F], n may be 0.

        Args:
            samples: float32 [N], mono, 16 kHz, any N.

        Raises:
            ValueError: samples that are not finite or not one-dimensional. What was heard before stays as it was.
        """
        _check(samples)
        self._kept = np.concatenate([self._kept, samples])
        spec = self._encoder.windows
        whole = (
            self._heard // SAMPLES_PER_FRAME - spec.right_frames
        )  # frames with all that their window looks at
        return self._encode(max(whole // spec.hop_frames, self._made))

    def end(self) -> np.ndarray:
        """The features of the rest: float32 [n, L, F]; round(duration x 25) in all.

        Raises:
            ValueError: nothing was heard that is longer than half a frame.
        """
        frames = frame_count(self._heard)
        if frames < 1:
            raise ValueError(
                f"audio must be longer than {SAMPLES_PER_FRAME // 2} samples (half a frame, 20 ms), got {self._heard}"
            )
        made = self._made * self._encoder.windows.hop_frames
        return self._encode(window_count(frames, self._encoder.windows))[: frames - made]

    @property
    def _heard(self) -> int:
        return self._start + len(self._kept)

    def _encode(self, last: int) -> np.ndarray:
        """The windows up to `last`, and forgets what only they looked at."""
        encoder, pieces = (
            self._encoder,
            [np.zeros((0, self._encoder.layers, self._encoder.width), np.float32)],
        )
        while self._made < last:
            batch = range(self._made, min(self._made + self._batch, last))
            cut = [cut_window(self._kept, i, encoder.windows, start=self._start) for i in batch]
            with torch.inference_mode():
                features = encoder.encode(torch.from_numpy(np.stack(cut))).cpu()  # [W, hop, L, F]
            pieces.append(features.flatten(0, 1).numpy())
            self._made = batch.stop
            unheard = max(window_start(self._made, encoder.windows), 0)
            self._kept, self._start = self._kept[unheard - self._start :], unheard
        return np.concatenate(pieces)


class LogMelEncoder(AudioEncoder):
    """Log-mel energies, no weights at all: four 10 ms steps a frame, stacked to one layer of 4 x mels.

    Ours, for `tiny`: the paper's features are Wav2Vec2's.
    """

    STEP = SAMPLES_PER_FRAME // 4
    WIDTH = 400
    FFT = 512

    def __init__(self, *, mels: int = 40, windows: WindowSpec | None = None):
        if not 1 <= mels <= 128:
            raise ValueError(f"mels must be within 1..128, got {mels}")
        self.mels = mels
        self.windows = windows or WindowSpec()
        self.layers, self.width = 1, 4 * mels
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(
            self.FFT // 2 + 1, mels, 60.0, 7600.0, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
        )
        self.bank = torch.from_numpy(bank.astype(np.float32))  # [257, mels]

    def encode(self, windows: Tensor) -> Tensor:
        spec = self.windows
        edge = (self.WIDTH - self.STEP) // 2  # so that each step's analysis window is centred on it
        asked = slice(
            spec.left_frames * SAMPLES_PER_FRAME,
            (spec.left_frames + spec.hop_frames) * SAMPLES_PER_FRAME + 2 * edge,
        )
        sound = torch.nn.functional.pad(windows.float(), (edge, edge))[:, asked]
        cuts = sound.unfold(-1, self.WIDTH, self.STEP) * torch.hann_window(self.WIDTH)  # [W, 4 hop, 400]
        power = torch.fft.rfft(cuts, n=self.FFT).abs().square()  # [W, 4 hop, 257]
        mel = torch.log(power @ self.bank + 1e-4)  # [W, 4 hop, mels]
        mel = (mel + 4.0) / 4.0  # about zero mean and unit variance on speech
        return mel.view(len(windows), spec.hop_frames, 1, 4 * self.mels)

    def save_pretrained(self, folder: str | Path) -> None:
        config = {
            "feature_extractor_type": "LogMelEncoder",
            "mels": self.mels,
            "windows": asdict(self.windows),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


class Wav2Vec2Encoder(AudioEncoder):
    """Chosen hidden layers of a Wav2Vec2 model, linearly interpolated from its 50 Hz to the 25 fps of the video.

    Paper 3.2: "intermediate and output features". Which layers it leaves open. Ours: the quarters of its depth,
    unless `layers` names others (1 is the first transformer layer's output).
    """

    def __init__(self, model, *, layers: tuple[int, ...] | None = None, windows: WindowSpec | None = None):
        depth = model.config.num_hidden_layers
        chosen = layers or tuple(sorted({max(1, depth * q // 4) for q in (1, 2, 3, 4)}))
        for layer in chosen:
            if not 0 <= layer <= depth:
                raise ValueError(f"audio layers must be within 0..{depth}, got {layer}")
        self.model = model.eval().requires_grad_(False)
        self.chosen = chosen
        self.windows = windows or WindowSpec()
        self.layers, self.width = len(chosen), model.config.hidden_size

    def to(self, device: torch.device | str) -> Self:
        self.model.to(device)
        return self

    def encode(self, windows: Tensor) -> Tensor:
        spec = self.windows
        hidden = self.model(windows.to(self.model.device), output_hidden_states=True).hidden_states
        chosen = torch.stack([hidden[i] for i in self.chosen], dim=2).float()  # [W, n, L, F]
        at = self._positions().to(chosen.device).clamp(0, chosen.shape[1] - 1)  # [hop]
        low = at.floor().long()
        high = (low + 1).clamp(max=chosen.shape[1] - 1)
        part = (at - low).view(1, -1, 1, 1)
        assert len(at) == spec.hop_frames
        return chosen[:, low] * (1 - part) + chosen[:, high] * part  # [W, hop, L, F]

    def _positions(self) -> Tensor:
        """Where the centres of the hop's frames fall among the model's own steps: float [hop]."""
        stride, field = 1, 1
        for kernel, step in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            field += (kernel - 1) * stride
            stride *= step
        frame = torch.arange(self.windows.hop_frames) + self.windows.left_frames
        centre = frame * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME / 2
        return (centre - field / 2) / stride

    def save_pretrained(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        config = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "sampling_rate": SAMPLE_RATE_HZ,
            "do_normalize": True,
            "layers": list(self.chosen),
            "windows": asdict(self.windows),
        }
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _check(samples: np.ndarray) -> None:
    if samples.ndim != 1:
        raise ValueError(f"audio must be mono, one-dimensional, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinite samples")


def load_audio_encoder(folder: str | Path, *, layers: tuple[int, ...] | None = None) -> AudioEncoder:
    """The encoder saved in `folder`: ours, or any Wav2Vec2 folder in transformers' layout.

    Args:
        layers: Wav2Vec2 layers to use instead of the saved (or default) ones.

    Raises:
        FileNotFoundError: no such folder, or nothing in it that says what it is.
        ValueError: a model that is not Wav2Vec2.
    """
    folder = Path(folder)
    config_file, model_file = folder / CONFIG_FILE, folder / "config.json"
    if not config_file.exists() and not model_file.exists():
        raise FileNotFoundError(f"no audio encoder in {folder}: neither {CONFIG_FILE} nor config.json")
    config = json.loads(config_file.read_text()) if config_file.exists() else {}
    windows = WindowSpec(**config["windows"]) if "windows" in config else None
    if config.get("feature_extractor_type") == "LogMelEncoder":
        return LogMelEncoder(mels=config["mels"], windows=windows)
    from transformers import Wav2Vec2Model

    kind = json.loads(model_file.read_text()).get("model_type") if model_file.exists() else None
    if kind != "wav2vec2":
        raise ValueError(f"audio encoder in {folder} must be a wav2vec2 model, got model_type {kind!r}")
    model = Wav2Vec2Model.from_pretrained(folder)
    saved = tuple(config["layers"]) if "layers" in config else None
    return Wav2Vec2Encoder(model, layers=layers or saved, windows=windows)

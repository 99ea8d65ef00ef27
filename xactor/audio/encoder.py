"""Define the audio encoders, which convert sound to features [T, L, F]: L vectors of F numbers for each video frame.

All encoders share one interface. An encoder computes its features from feature windows: pieces of the recording that
have a fixed length and start at fixed positions (windows.py). Precomputation, animation, serving and bulk dubbing all
use this interface, so their features agree.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from xactor.audio.origin import log_mel_origin, saved_origin, window_settings
from xactor.audio.windows import WindowSpec, cut_window, window_count, window_start
from xactor.origin import AUDIO, digest_origin
from xactor.rates import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME, frame_count

CONFIG_FILE = "preprocessor_config.json"


class AudioEncoder(ABC):
    """Compute the features of audio: L vectors of F numbers for every video frame of 40 ms."""

    windows: WindowSpec
    """Sizes and scaling of the feature windows."""
    layers: int
    """L, the number of vectors per frame."""
    width: int
    """F, the width of a vector."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Return the origin of the features; see `xactor.origin`."""

    @abstractmethod
    def encode(self, windows: Tensor) -> Tensor:
        """Return the features of W feature windows: float32 [W, hop_frames, L, F].

        A window gives features for `hop_frames` frames. It also holds sound before and after these frames.

        Args:
            windows: The sound of the windows from `cut_window`, float32 [W, self.windows.frames * SAMPLES_PER_FRAME].
        """

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write everything that `load_audio_encoder` needs."""

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device. An encoder without weights stays on the CPU."""
        return self

    def features(self, samples: np.ndarray, *, batch_windows: int = 16) -> np.ndarray:
        """Return the features of a whole recording, float32 [T, L, F] with T = round(duration in s x 25).

        The arguments and errors are those of `stream`.
        """
        return np.concatenate(list(self.stream(samples, batch_windows=batch_windows)))

    def stream(self, samples: np.ndarray, *, batch_windows: int = 16) -> Iterator[np.ndarray]:
        """Yield the features of a recording in pieces of `batch_windows` windows: float32 [n, L, F].

        Args:
            samples: float32 [N], mono, 16 kHz.
            batch_windows: Number of windows that are encoded together.

        Raises:
            ValueError: The samples are not finite or not one-dimensional, or they last no longer than half a frame.
        """
        _check(samples)
        stream = FeatureStream(self, batch_windows=batch_windows)
        size = batch_windows * self.windows.hop_frames * SAMPLES_PER_FRAME
        ahead = self.windows.right_frames * SAMPLES_PER_FRAME
        # Each piece completes `batch_windows` windows. The last of these windows also reads `ahead` samples after its
        # own frames, so the first piece is longer by `ahead` samples.
        for piece in np.split(samples, range(size + ahead, len(samples), size)):
            if len(features := stream.feed(piece)):
                yield features
        if len(features := stream.end()):
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
        """Return the features of n = last_frame - first_frame frames: float32 [n, L, F].

        They equal the features that the whole recording gives for these frames.

        Args:
            samples: A part of the recording: float32 [N], mono, 16 kHz. It must hold the range that `sound_needed`
                returns, but may end where the recording ends.
            first_frame: Number of the first frame to return.
            last_frame: Number of the frame after the last one to return.
            start: Number of the recording's sample with which `samples` begins.
            batch_windows: Number of windows that are encoded together.

        Raises:
            ValueError: The samples are not finite or not one-dimensional.
        """
        _check(samples)
        spec = self.windows
        indices = range(first_frame // spec.hop_frames, window_count(last_frame, spec))
        windows = torch.from_numpy(np.stack([cut_window(samples, i, spec, start=start) for i in indices]))
        with torch.inference_mode():
            pieces = [self.encode(batch).cpu() for batch in windows.split(batch_windows)]
        features = torch.cat(pieces).flatten(0, 1).numpy()
        skip = first_frame - indices.start * spec.hop_frames
        return features[skip : skip + last_frame - first_frame]


class FeatureStream:
    """Compute the features of audio that arrives in pieces. The features equal those of the whole recording.

    A window is encoded as soon as all its audio has arrived. Samples that no later window reads are dropped.
    """

    def __init__(self, encoder: AudioEncoder, *, batch_windows: int = 16):
        """Start at the beginning of a recording. At most `batch_windows` windows are encoded together."""
        self._encoder, self._batch_windows = encoder, batch_windows
        # Samples that later windows read. The first of them is sample `_start` of the recording.
        self._samples = np.zeros(0, dtype=np.float32)
        self._start = 0
        self._windows_done = 0

    def feed(self, samples: np.ndarray) -> np.ndarray:
        """Add the next samples. Return the features of the windows that are now complete: float32 [n, L, F], n >= 0.

        Args:
            samples: float32 [N], mono, 16 kHz, any N.

        Raises:
            ValueError: The samples are not finite or not one-dimensional. The stream is unchanged.
        """
        _check(samples)
        self._samples = np.concatenate([self._samples, samples])
        spec = self._encoder.windows
        # A window also reads `right_frames` frames after the frames that it gives features for.
        frames = self._received // SAMPLES_PER_FRAME - spec.right_frames
        return self._encode(max(frames // spec.hop_frames, self._windows_done))

    def end(self) -> np.ndarray:
        """Return the features of the remaining frames, float32 [n, L, F].

        In total the stream returns the features of round(duration in s x 25) frames.

        Raises:
            ValueError: The audio is no longer than half a frame.
        """
        frames = frame_count(self._received)
        if frames < 1:
            raise ValueError(
                f"audio must be longer than {SAMPLES_PER_FRAME // 2} samples (half a frame, 20 ms), "
                f"got {self._received}"
            )
        frames_done = self._windows_done * self._encoder.windows.hop_frames
        return self._encode(window_count(frames, self._encoder.windows))[: frames - frames_done]

    @property
    def _received(self) -> int:
        """Return the number of samples that have arrived so far."""
        return self._start + len(self._samples)

    def _encode(self, windows_end: int) -> np.ndarray:
        """Encode the windows up to number `windows_end` - 1, and drop samples that no later window reads.

        Returns:
            The features of these windows, float32 [n, L, F].
        """
        encoder = self._encoder
        pieces = [np.zeros((0, encoder.layers, encoder.width), np.float32)]
        while self._windows_done < windows_end:
            batch = range(self._windows_done, min(self._windows_done + self._batch_windows, windows_end))
            windows = [cut_window(self._samples, i, encoder.windows, start=self._start) for i in batch]
            with torch.inference_mode():
                features = encoder.encode(torch.from_numpy(np.stack(windows))).cpu()  # [W, hop, L, F]
            pieces.append(features.flatten(0, 1).numpy())
            self._windows_done = batch.stop
            needed = max(window_start(self._windows_done, encoder.windows), 0)
            self._samples, self._start = self._samples[needed - self._start :], needed
        return np.concatenate(pieces)


class LogMelEncoder(AudioEncoder):
    """Compute log-mel energies, which need no trained weights.

    Ours, for the `tiny` preset: the paper's features come from Wav2Vec2. The energies are computed every 10 ms, each
    from an analysis window of 25 ms. The four results in a video frame are joined to one vector (L = 1) of
    F = 4 x mels numbers.
    """

    STEP = SAMPLES_PER_FRAME // 4
    """Samples from the start of one analysis window to the start of the next: 10 ms."""
    WIDTH = 400
    """Samples of an analysis window: 25 ms."""
    FFT = 512
    """Length of the Fourier transform of an analysis window, in samples."""
    POWER_FLOOR = 1e-3
    """Power that is added to each mel band before the logarithm. It is about 35 dB below speech, so that quieter sound
    counts as silence."""

    def __init__(self, *, mels: int = 40, windows: WindowSpec | None = None):
        """Build the encoder with `mels` mel bands, 1..128."""
        if not 1 <= mels <= 128:
            raise ValueError(f"mels must be within 1..128, got {mels}")
        self.mels = mels
        self.windows = windows or WindowSpec()
        self.layers, self.width = 1, 4 * mels
        from transformers.audio_utils import mel_filter_bank

        # The bands lie between 60 Hz and 7600 Hz.
        bank = mel_filter_bank(
            self.FFT // 2 + 1, mels, 60.0, 7600.0, SAMPLE_RATE_HZ, norm="slaney", mel_scale="slaney"
        )
        self.bank = torch.from_numpy(bank.astype(np.float32))  # [257, mels]

    @property
    def origin(self) -> str:
        return log_mel_origin(self.mels, self.windows)

    def encode(self, windows: Tensor) -> Tensor:
        spec = self.windows
        # An analysis window is longer than a step. It is centred on its step, so it begins `edge` samples before the
        # step and ends `edge` samples after the step.
        edge = (self.WIDTH - self.STEP) // 2
        # The samples of the `hop_frames` frames and `edge` samples on either side, as positions in the padded sound.
        needed = slice(
            spec.left_frames * SAMPLES_PER_FRAME,
            (spec.left_frames + spec.hop_frames) * SAMPLES_PER_FRAME + 2 * edge,
        )
        sound = torch.nn.functional.pad(windows.float(), (edge, edge))[:, needed]
        cuts = sound.unfold(-1, self.WIDTH, self.STEP) * torch.hann_window(self.WIDTH)  # [W, 4 hop, 400]
        power = torch.fft.rfft(cuts, n=self.FFT).abs().square()  # [W, 4 hop, 257]
        mel = torch.log(power @ self.bank + self.POWER_FLOOR)  # [W, 4 hop, mels]
        # Scale to about zero mean and unit variance on speech.
        mel = (mel + 4.0) / 4.0
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
    """Compute features from L chosen hidden layers of a Wav2Vec2 model.

    The model gives 50 outputs per second. They are interpolated linearly at the centres of the video frames, 25 per
    second.

    Paper 3.2: "intermediate and output features". The paper leaves open which layers. Ours: the layers at one, two,
    three and four quarters of the depth.
    """

    def __init__(
        self,
        model,
        *,
        layers: tuple[int, ...] | None = None,
        windows: WindowSpec | None = None,
        origin: str | None = None,
    ):
        """Wrap a Wav2Vec2Model.

        Args:
            model: The Wav2Vec2Model of the library transformers.
            layers: Numbers of the hidden layers to use instead of the default ones. 0 is the input of the transformer,
                1 the output of its first layer.
            windows: Sizes and scaling of the feature windows. None: the defaults of WindowSpec.
            origin: Origin of the features, as it was saved with the model. None: it is computed from the weights.

        Raises:
            ValueError: The model has no layer of such a number.
        """
        depth = model.config.num_hidden_layers
        chosen = layers or tuple(sorted({max(1, depth * q // 4) for q in (1, 2, 3, 4)}))
        for layer in chosen:
            if not 0 <= layer <= depth:
                raise ValueError(f"audio layers must be within 0..{depth}, got {layer}")
        self.model = model.eval().requires_grad_(False)
        self.chosen = chosen
        self.windows = windows or WindowSpec()
        self.layers, self.width = len(chosen), model.config.hidden_size
        self._saved_origin = origin

    @cached_property
    def origin(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._saved_origin is not None:
            return self._saved_origin
        settings = {"layers": list(self.chosen), "windows": window_settings(self.windows)}
        # Only training uses the embedding of masked features. Some published models lack it, and then it is random.
        weights = {n: w for n, w in self.model.state_dict().items() if n != "masked_spec_embed"}
        return digest_origin("wav2vec2", settings, weights)

    def to(self, device: torch.device | str) -> Self:
        self.model.to(device)
        return self

    def encode(self, windows: Tensor) -> Tensor:
        spec = self.windows
        hidden = self.model(windows.to(self.model.device), output_hidden_states=True).hidden_states
        # The n outputs of the model for each window.
        outputs = torch.stack([hidden[i] for i in self.chosen], dim=2).float()  # [W, n, L, F]
        position = self._positions().to(outputs.device).clamp(0, outputs.shape[1] - 1)  # [hop]
        low = position.floor().long()
        high = (low + 1).clamp(max=outputs.shape[1] - 1)
        fraction = (position - low).view(1, -1, 1, 1)
        assert len(position) == spec.hop_frames
        return outputs[:, low] * (1 - fraction) + outputs[:, high] * fraction  # [W, hop, L, F]

    def _positions(self) -> Tensor:
        """Return the position of each frame's centre in the sequence of the model's outputs: float [hop].

        Position 0 is the centre of the first output, and 0.5 is midway between the first and the second.
        """
        # Samples from one output to the next, and samples that one output depends on.
        step_samples, seen_samples = 1, 1
        for kernel, stride in zip(self.model.config.conv_kernel, self.model.config.conv_stride, strict=True):
            seen_samples += (kernel - 1) * step_samples
            step_samples *= stride
        frame = torch.arange(self.windows.hop_frames) + self.windows.left_frames
        centre = frame * SAMPLES_PER_FRAME + SAMPLES_PER_FRAME / 2
        return (centre - seen_samples / 2) / step_samples

    def save_pretrained(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        config = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "sampling_rate": SAMPLE_RATE_HZ,
            "do_normalize": True,
            "layers": list(self.chosen),
            "windows": asdict(self.windows),
            AUDIO: self.origin,
        }
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _check(samples: np.ndarray) -> None:
    """Raise ValueError if the samples are not one-dimensional or not finite."""
    if samples.ndim != 1:
        raise ValueError(f"audio must be mono, one-dimensional, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("audio holds NaN or infinite samples")


def load_audio_encoder(folder: str | Path, *, layers: tuple[int, ...] | None = None) -> AudioEncoder:
    """Load an audio encoder that `save_pretrained` wrote, or any Wav2Vec2 model in the format of transformers.

    Args:
        folder: Holds preprocessor_config.json, config.json, or both.
        layers: Wav2Vec2 layers to use instead of the saved or default ones. A LogMelEncoder ignores them.

    Raises:
        FileNotFoundError: There is no such folder, or it holds neither file.
        ValueError: The model is not Wav2Vec2, or has no layer of such a number.
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
    # Without dtype, transformers would keep the dtype of the saved weights. The sound and the features are float32.
    model = Wav2Vec2Model.from_pretrained(folder, dtype=torch.float32)
    saved = tuple(config["layers"]) if "layers" in config else None
    # The saved origin is that of the saved layers.
    origin = saved_origin(config) if layers in (None, saved) else None
    return Wav2Vec2Encoder(model, layers=layers or saved, windows=windows, origin=origin)

"""Score one video by every metric that needs no network or whose network's weights are given.

Only a few frames are in memory at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from xactor.faces import CropBox, Face, FaceFollower, FaceLandmarker
from xactor.media import read_audio, read_frames
from xactor.metrics.emotion import EmoNetVectors, emotion_difference, emotion_vectors, load_emonet
from xactor.metrics.expressiveness import expressiveness
from xactor.metrics.fvd import VideoStatistics
from xactor.metrics.i3d import load_i3d
from xactor.metrics.identity import ArcFaceModel, identity_similarity
from xactor.metrics.length import length_difference_s
from xactor.metrics.sync import sync
from xactor.metrics.sync_crop import steady_boxes, sync_crop
from xactor.metrics.syncnet import SyncNet, load_published
from xactor.portrait import Portrait

# Smaller pictures are enlarged, because landmarks and metrics need this many pixels.
MIN_SIDE_PX = 256


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Name the files of the metrics' networks. A metric whose network is not given is left out."""

    syncnet: Path | None = None
    """The published syncnet_v2.model, or a folder of a small SyncNet, for SynC and SynD (lip sync)."""
    i3d: Path | None = None
    """The published I3D file, for FVD (Fréchet Video Distance)."""
    emonet: Path | None = None
    """The published EmoNet file, for DEmo (difference of the emotions from those of the true video)."""
    identity: Path | None = None
    """A TorchScript face embedder in ArcFace's convention, for identity (likeness to the portrait)."""


class Judge:
    """Score videos with the metrics' networks, which are loaded once.

    Args:
        weights: The networks' files.

    Raises:
        ValueError: A file does not hold weights of its network.
    """

    def __init__(self, weights: Weights):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._landmarker = FaceLandmarker(max_faces=1)
        self._follower = FaceFollower()
        self._syncnet = _load_syncnet(weights.syncnet).to(device) if weights.syncnet else None
        self._i3d = load_i3d(weights.i3d, device=device) if weights.i3d else None
        emonet = load_emonet(weights.emonet, device=device) if weights.emonet else None
        self._emotion = EmoNetVectors(emonet) if emonet else None
        self._identity = ArcFaceModel(weights.identity, device=device) if weights.identity else None
        networks = {
            "SynC, SynD": self._syncnet,
            "FVD": self._i3d,
            "DEmo": self._emotion,
            "identity": self._identity,
        }
        self.weights = {name: network.weights for name, network in networks.items() if network}

    def score(
        self, video: Path, portrait: Portrait, truth: tuple[Path, CropBox] | None
    ) -> tuple[dict[str, float], dict[str, VideoStatistics]]:
        """Score a generated video.

        Args:
            video: The generated video.
            portrait: The portrait that it was made from.
            truth: The true video, and the square of its frames that the generated video shows. None if there is no true
                video.

        Returns:
            The scores by column of the evaluation's table, and statistics for FVD: of the generated frames as `made`,
            and of the true frames as `true`.

        Raises:
            ValueError: A video cannot be read or has no face.
        """
        faces = self._faces(video, None)
        expressive = expressiveness(faces)
        scores: dict[str, float] = {"Glo": expressive.glo, "Exp": expressive.exp}
        scores["length_s"] = length_difference_s(video)
        if self._syncnet:
            found = self._sync(video, faces)
            scores |= {"SynC": found.confidence, "SynD": found.distance, "offset_frames": found.offset_frames}
        if self._identity:
            face = portrait.box.cut(portrait.picture, MIN_SIDE_PX)
            if seen := self._landmarker.detect(face):
                frames = zip(_frames(video, None), faces, strict=True)
                scores["identity"] = identity_similarity(self._identity, (face, seen[0]), frames).value
        statistics = {"made": self._video_statistics(video, None)} if self._i3d else {}
        if truth:
            path, box = truth
            true_faces = self._faces(path, box)
            true_expressive = expressiveness(true_faces)
            scores["DGlo"] = abs(expressive.glo - true_expressive.glo)
            scores["DExp"] = abs(expressive.exp - true_expressive.exp)
            if self._emotion:
                scores["DEmo"] = self._emotion_difference((video, None, faces), (path, box, true_faces))
            if self._i3d:
                statistics["true"] = self._video_statistics(path, box)
        return scores, statistics

    def _faces(self, video: Path, box: CropBox | None) -> list[Face | None]:
        return list(self._follower.follow(_frames(video, box)))

    def _sync(self, video: Path, faces: list[Face | None]):
        """Return SyncNet's score of a video as a `SyncScore`.

        The face's box in frames without a face is interpolated from the other frames.
        """
        assert self._syncnet
        boxes = np.array([[np.nan] * 4 if face is None else face.box for face in faces])  # [T, 4]
        known = np.flatnonzero(np.isfinite(boxes[:, 0]))
        numbers = np.arange(len(boxes))
        boxes = np.stack([np.interp(numbers, known, boxes[known, edge]) for edge in range(4)], axis=1)
        size = self._syncnet.config.image_size
        steady = steady_boxes(boxes)
        crops = (sync_crop(f, b, size) for f, b in zip(_frames(video, None), steady, strict=True))
        return sync(self._syncnet, crops, read_audio(video))

    def _video_statistics(self, video: Path, box: CropBox | None) -> VideoStatistics:
        """Return FVD's statistics of a video's frames, or of a square of each frame."""
        assert self._i3d
        statistics = VideoStatistics.of(self._i3d)
        statistics.watch(self._i3d, _frames(video, box))
        return statistics

    def _emotion_difference(self, made: tuple[Any, ...], true: tuple[Any, ...]) -> float:
        """Return DEmo, the difference of emotions between two videos.

        Each video is given as its path, the square of its frames or None for whole frames, and its faces.
        """
        assert self._emotion
        made_vectors, true_vectors = (
            emotion_vectors(self._emotion, zip(_frames(video, box), faces, strict=True))
            for video, box, faces in (made, true)
        )
        # Compare only the frames that both videos have, because their lengths may differ by a frame.
        shared = min(len(made_vectors), len(true_vectors))
        return emotion_difference(
            made_vectors[:shared], true_vectors[:shared], weights=self._emotion.weights
        ).value


def _frames(video: Path, box: CropBox | None) -> Iterator[np.ndarray]:
    """Yield a video's frames uint8 [H, W, 3], or a square of each.

    A frame is enlarged if a side is shorter than MIN_SIDE_PX. A square is resized to at least MIN_SIDE_PX and at most
    512 pixels.
    """
    for frame in read_frames(video):
        if box is not None:
            yield box.cut(frame, max(MIN_SIDE_PX, min(box.side, 512)))
        elif (short := min(frame.shape[:2])) < MIN_SIDE_PX:
            height, width = (round(side * MIN_SIDE_PX / short) for side in frame.shape[:2])
            yield np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
        else:
            yield frame


def _load_syncnet(path: Path) -> SyncNet:
    return SyncNet.from_pretrained(path) if path.is_dir() else load_published(path)

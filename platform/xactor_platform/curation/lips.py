"""Judge with SyncNet whether a clip's sound belongs to its lips, and find the offset between them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xactor_platform.curation.curation_stage import CurationStage
from xactor_platform.curation.cut import as_file, sound_of_clip
from xactor_platform.curation.messages import Clip, Piece, SyncVerdict

NO_SYNCNET = "none"
# Smallest confidence for the published weights. Ours: by SyncNet's own report, sound and lips seldom belong together
# below this confidence.
_PUBLISHED_CONFIDENCE = 3.0
# Length of the shortest clip after trimming: one second.
_MIN_FRAMES = 25


class Sync(CurationStage):
    """Judge the clips of a piece, a part of a video. Without a model, pass all clips on."""

    name = "sync"
    # This stage decodes only mp4s that the stage before it encoded, so they are trusted.
    sandboxed = False

    @staticmethod
    def make(*, syncnet: str, min_confidence: float, device: str) -> Callable[[Piece], list[Piece]]:
        if syncnet == NO_SYNCNET:
            return lambda piece: [piece]
        import torch

        torch.set_num_threads(1)
        model = load_syncnet(syncnet).to("cuda" if device == "gpu" else "cpu")

        def judge(piece: Piece) -> list[Piece]:
            clips = tuple(
                clip if clip.status != "kept" else _judge_clip(piece, clip, model, min_confidence)
                for clip in piece.clips
            )
            return [replace(piece, clips=clips)]

        return judge


def _judge_clip(piece: Piece, clip: Clip, model: Any, min_confidence: float) -> Clip:
    """Return a clip with SyncNet's verdict.

    The clip is dropped if sound and lips do not belong together. Otherwise it is trimmed to the frames that have sound
    after the correction of the offset.
    """
    score = _score(piece, clip, model)
    verdict = SyncVerdict(
        offset_frames=score.offset_frames,
        confidence=round(score.confidence, 4),
        distance=round(score.distance, 4),
        weights=score.weights,
    )
    clip = replace(clip, sync=verdict)
    if score.confidence < min_confidence:
        low = f"SyncNet's confidence is {score.confidence:.2f}, at least {min_confidence:.2f} is needed"
        return clip.dropped("out_of_sync", low)
    # The `write` stage will delay the sound by the offset. Leave out frames for which the recording then has no sound.
    first = max(clip.first, piece.heard[0] + score.offset_frames)
    end = min(clip.end, piece.heard[1] + score.offset_frames)
    if end - first < _MIN_FRAMES:
        return clip.dropped("too_short", f"{max(end - first, 0)} frames have sound after the delay")
    trimmed = (first - clip.first, end - clip.first) if (first, end) != (clip.first, clip.end) else None
    return replace(clip, first=first, end=end, trimmed=trimmed)


def _score(piece: Piece, clip: Clip, model: Any) -> Any:
    """Return SyncNet's score of a clip as a `SyncScore`."""
    from xactor.media import read_frames
    from xactor.metrics.sync import sync
    from xactor.metrics.sync_crop import steady_boxes, sync_crop

    assert clip.box is not None
    assert clip.faces is not None
    size = model.config.image_size
    with as_file(clip.mp4) as file:
        pictures = read_frames(file)
        first = next(pictures)
        # Convert the face's boxes from pixels of the video to pixels of the mp4.
        corner = np.tile((clip.box.left, clip.box.top), 2)
        boxes = steady_boxes((clip.faces - corner) * (first.shape[0] / clip.box.side))

        def crops():
            yield sync_crop(first, boxes[0], size)
            for picture, box in zip(pictures, boxes[1:], strict=False):
                yield sync_crop(picture, box, size)

        return sync(model, crops(), sound_of_clip(piece, clip))


def load_syncnet(path: str) -> Any:
    """Load SyncNet from a small model's folder or from the published file. `SyncNet` states the errors."""
    from xactor.metrics.syncnet import SyncNet, load_published

    return SyncNet.from_pretrained(path) if Path(path).is_dir() else load_published(path)


def syncnet_facts(path: str, min_confidence: float | None) -> dict[str, Any]:
    """Return the properties of SyncNet on which a run's clips depend.

    Args:
        path: path of the model, or `none`.
        min_confidence: smallest confidence with which a clip is kept. None is the model's default, see `Gates`.

    Returns:
        The name (`weights`) and the `digest` of the weights, and `min_confidence`. Without a model, `weights` is None
        and there is no digest.

    Raises:
        ValueError: the model does not exist, or has no report of its confidences.
    """
    if path == NO_SYNCNET:
        return {"weights": None, "min_confidence": 0.0}
    try:
        model = load_syncnet(path)
    except FileNotFoundError as error:
        raise ValueError(f"{error}: --syncnet must be a SyncNet's folder or file, or none") from error
    if min_confidence is None:
        min_confidence = _default_confidence(path)
    return {"weights": model.weights, "digest": _digest(model), "min_confidence": round(min_confidence, 4)}


def _default_confidence(path: str) -> float:
    """Return the model's default for the smallest confidence with which a clip is kept. See `Gates`."""
    if not Path(path).is_dir():
        return _PUBLISHED_CONFIDENCE
    report = Path(path) / "sync.json"
    if not report.is_file():
        raise ValueError(f"{path}: has no sync.json with its confidences: set --gates.min-confidence")
    found = json.loads(report.read_text())
    return (found["confidence_true"] + found["confidence_swapped"]) / 2


def _digest(model: Any) -> str:
    """Return a digest of the model's weights, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]

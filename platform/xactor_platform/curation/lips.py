"""Whether a clip's sound is its own, and in time: SyncNet's offset and confidence."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xactor_platform.curation.cut import as_file, sound_of_clip
from xactor_platform.curation.stage import Stage
from xactor_platform.curation.work import Clip, Lips, Piece

NO_SYNCNET = "none"
_PUBLISHED_CONFIDENCE = 3.0  # Ours: below it, in SyncNet's own report, sound and lips seldom belong together
_SHORTEST = 25  # frames


class Sync(Stage):
    """Without a model it passes all clips on as they are."""

    name = "sync"
    guarded = False  # it reads what the stage before it wrote

    @staticmethod
    def make(*, syncnet: str, least_confidence: float, device: str) -> Callable[[Piece], list[Piece]]:
        if syncnet == NO_SYNCNET:
            return lambda piece: [piece]
        import torch

        torch.set_num_threads(1)
        model = load_syncnet(syncnet).to("cuda" if device == "gpu" else "cpu")

        def judge(piece: Piece) -> list[Piece]:
            clips = tuple(
                clip if clip.status != "kept" else _judged(piece, clip, model, least_confidence)
                for clip in piece.clips
            )
            return [replace(piece, clips=clips)]

        return judge


def _judged(piece: Piece, clip: Clip, model: Any, least_confidence: float) -> Clip:
    """With SyncNet's word; dropped where lips and sound are not one."""
    from xactor.media import read_frames
    from xactor.metrics.sync import sync
    from xactor.metrics.sync_crop import steady_boxes, sync_crop

    assert clip.box is not None
    assert clip.faces is not None
    size = model.config.image_size
    with as_file(clip.mp4) as file:
        pictures = read_frames(file)
        first = next(pictures)
        corner = np.tile((clip.box.left, clip.box.top), 2)
        boxes = steady_boxes((clip.faces - corner) * (first.shape[0] / clip.box.side))

        def crops():
            yield sync_crop(first, boxes[0], size)
            for picture, box in zip(pictures, boxes[1:], strict=False):
                yield sync_crop(picture, box, size)

        score = sync(model, crops(), sound_of_clip(piece, clip))
    lips = Lips(
        offset_frames=score.offset_frames,
        confidence=round(score.confidence, 4),
        distance=round(score.distance, 4),
        weights=score.weights,
    )
    clip = replace(clip, lips=lips)
    if score.confidence < least_confidence:
        low = f"SyncNet's confidence is {score.confidence:.2f}, at least {least_confidence:.2f} is needed"
        return clip.dropped("out_of_sync", low)
    # Where the sound begins later than the pictures, or ends sooner, there is none to go with them.
    a = max(clip.first, piece.heard[0] + score.offset_frames)
    b = min(clip.end, piece.heard[1] + score.offset_frames)
    if b - a < _SHORTEST:
        return clip.dropped("too_short", f"{max(b - a, 0)} frames have sound once it is put in time")
    trimmed = (a - clip.first, b - clip.first) if (a, b) != (clip.first, clip.end) else None
    return replace(clip, first=a, end=b, trimmed=trimmed)


def load_syncnet(path: str) -> Any:
    """A small model's folder, or the published file. ValueError, FileNotFoundError: see `SyncNet`."""
    from xactor.metrics.syncnet import SyncNet, load_published

    return SyncNet.from_pretrained(path) if Path(path).is_dir() else load_published(path)


def syncnet_facts(path: str, least_confidence: float | None) -> dict[str, Any]:
    """Which weights judge, and the least confidence that is taken: a run's clips depend on both.

    Raises:
        ValueError: no model, or one of which no report says what confidence is enough.
    """
    if path == NO_SYNCNET:
        return {"weights": None, "least_confidence": 0.0}
    try:
        model = load_syncnet(path)
    except FileNotFoundError as error:
        raise ValueError(f"{error}: --syncnet must be a SyncNet's folder or file, or none") from error
    enough = _enough(path) if least_confidence is None else least_confidence
    return {"weights": model.weights, "digest": _digest(model), "least_confidence": round(enough, 4)}


def _enough(path: str) -> float:
    """The confidence from which on lips and sound are taken to belong together."""
    if not Path(path).is_dir():
        return _PUBLISHED_CONFIDENCE
    report = Path(path) / "sync.json"
    if not report.is_file():
        raise ValueError(f"{path}: has no sync.json that says what is enough: give --gates.least-confidence")
    found = json.loads(report.read_text())
    return (found["confidence_true"] + found["confidence_swapped"]) / 2


def _digest(model: Any) -> str:
    """Of the weights themselves."""
    import hashlib

    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()[:16]

"""Add the sound to a piece's clips, and save each clip with its fate."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from xactor.faces.landmarks import landmark_frames
from xactor.media import join_videos, read_frames
from xactor.rates import FPS, SAMPLE_RATE_HZ
from xactor_platform.curation.curation_stage import CurationStage, clip_fate, clip_key
from xactor_platform.curation.cut import as_file, sound_of_clip
from xactor_platform.curation.messages import Clip, Ended, Fate, Piece
from xactor_platform.curation.video_progress import VideoProgress
from xactor_platform.data.face_video import face_video
from xactor_platform.data.index import CONTROLS, LANDMARKS


class Write(CurationStage):
    """Save the clips of a piece, a part of a video."""

    name = "write"
    # This stage decodes only mp4s that an earlier stage encoded, so they are trusted.
    sandboxed = False

    @staticmethod
    def make(*, folder: str) -> Callable[[Piece], list[Ended]]:
        def write(piece: Piece) -> list[Ended]:
            fates, samples, prints = [], {}, {}
            for number, clip in enumerate(piece.clips):
                fates.append(clip_fate(piece, number))
                if clip.status == "kept":
                    key = clip_key(piece, number)
                    if clip.prints:
                        prints[key] = clip.prints
                    samples[key] = sample_of(piece, clip, fates[-1])
            ended = Ended(
                key=piece.video.key,
                number=piece.number,
                of=piece.of,
                fates=tuple(fates),
                prints=prints,
                looked_s=(piece.end - piece.first) / FPS,
            )
            VideoProgress(folder, piece.video.key).finish(ended, samples)
            return [ended]

        return write

    def refused(self, message: Any, reason: str, detail: str) -> Ended | Piece:
        """Save a piece with its kept clips marked as failed, and return the message that reports it."""
        (ended,) = self._function(super().refused(message, reason, detail))
        return ended


def sample_of(piece: Piece, clip: Clip, fate: Fate) -> dict[str, Any]:
    """Return the members of a kept clip in the shards: its video, control track, landmarks and metadata."""
    assert clip.controls is not None
    assert clip.landmarks is not None
    kept_frames = slice(*clip.trimmed) if clip.trimmed else slice(None)
    controls, landmarks = clip.controls[kept_frames], clip.landmarks[kept_frames]
    # Shards hold the landmarks of only a few frames of each clip.
    tracks = {CONTROLS: controls, LANDMARKS: landmarks[landmark_frames(len(landmarks))]}
    return {"mp4": with_sound(piece, clip), **tracks, "json": meta_of(piece, clip, fate)}


def with_sound(piece: Piece, clip: Clip) -> bytes:
    """Return a clip's mp4 with sound in sync. The pictures are encoded again only if the clip was trimmed."""
    offset = clip.sync.offset_frames if clip.sync else 0
    samples = sound_of_clip(piece, clip, offset)
    with as_file(clip.mp4) as file, tempfile.TemporaryDirectory(prefix="xactor-curate-") as folder:
        if clip.trimmed is not None:
            first, end = clip.trimmed
            pictures: Iterable[np.ndarray] = islice(read_frames(file), first, end)
            return face_video(pictures, samples)
        target = Path(folder, "clip.mp4")
        join_videos([file], target, fps=FPS, samples=samples, sample_rate_hz=SAMPLE_RATE_HZ)
        return target.read_bytes()


def meta_of(piece: Piece, clip: Clip, fate: Fate) -> dict[str, Any]:
    """Return the metadata of a clip, which its shard holds as json."""
    assert clip.box is not None
    measures = asdict(clip.measures) if clip.measures else {}
    return {
        "frames": clip.end - clip.first,
        "fps": FPS,
        "source": piece.video.name,
        "corpus": piece.video.corpus,
        "speaker": piece.video.speaker,
        "start_s": fate.start_s,
        "end_s": fate.end_s,
        "crop": asdict(clip.box),
        "sync_confidence": fate.sync_confidence,
        "sync_distance": fate.sync_distance,
        "sync_offset": fate.sync_offset,
        "syncnet": fate.syncnet,
        **measures,
    }

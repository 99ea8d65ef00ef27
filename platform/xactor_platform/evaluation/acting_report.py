"""Report how well portraits act speech: read lip openings from generated videos and compare them with the true clips.

Of each clip's first second, the frame with the most closed lips is animated by the clip's sound, and once more by the
sound shifted by half a clip. A landmark model, the same as in curation, reads the lip opening from these videos and
from the true clip. All are compared with the truth, the lip opening in the clip's control track. The correlation of the
true clip's reading with the truth is the upper bound of what generated lips can reach.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xactor.controls import lip_opening
from xactor.faces import FaceLandmarker, control_track
from xactor.media import read_audio, read_frames
from xactor.options import AnimateOptions
from xactor.pipeline import XActorPipeline
from xactor.rates import FPS, SAMPLES_PER_FRAME
from xactor_platform.evaluation.render_report import sheet

# Number of pictures in each row of acting.png.
_COLUMNS = 16


@dataclass(frozen=True, kw_only=True)
class ClipActing:
    """Hold correlations of lip openings over a clip. The truth is the lip opening in the clip's control track."""

    frames: int
    """Number of frames of the clip that were compared."""
    true_read: float
    """Correlation of the truth with the lips that are read from the true clip: the upper bound."""
    generated: float
    """Correlation of the truth with the lips that are read from the generated video."""
    shuffled: float
    """Correlation of the truth with the lips that are read from the video generated from the shifted sound. This is
    near 0 if the lips follow the sound."""
    opening: float
    """Standard deviation of the lip opening read from the generated video, divided by that read from the true clip."""


@dataclass(frozen=True, kw_only=True)
class ActingReport:
    """Hold the figures of all clips."""

    clips: dict[str, ClipActing]
    """The figures by key of the clip."""

    def table(self) -> str:
        """Return a table for the terminal."""
        lines = [
            "Lip opening read off videos, correlation with the truth:  true clip  generated  shuffled  opening"
        ]
        lines += [
            f"  {key:<48} {clip.frames:>5} {clip.true_read:>10.2f} {clip.generated:>10.2f} {clip.shuffled:>9.2f} "
            f"{clip.opening:>8.2f}"
            for key, clip in self.clips.items()
        ]
        return "\n".join(lines)


def report_acting(
    model: str, clips: Path, output: Path, *, options: AnimateOptions | None = None, max_seconds: float = 20.0
) -> ActingReport:
    """Animate a frame of each clip by the clip's sound, and compare the lips with the truth.

    Write report.json and acting.png to `output`, and return the report.

    Each clip has three rows in acting.png: the true clip, the generated video, and the video from the shifted sound.

    Args:
        model: Model folder, or `box`.
        clips: Folder of clips (`<key>.mp4`) with their control tracks (`<key>.controls.npy`), as
            `jobs/make_demo_corpus.py` writes them.
        output: Folder for the report.
        options: Options of the videos. By default those that the model recommends.
        max_seconds: Maximum number of seconds that are compared of each clip.

    Raises:
        ValueError: The folder holds no such clips, or the model cannot be loaded.
    """
    tracks = sorted(clips.glob("*.controls.npy"))
    if not tracks:
        raise ValueError(f"{clips}: no clips with control tracks (<key>.controls.npy)")
    pipeline = XActorPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    options = (options or AnimateOptions()).with_recommended(pipeline.recommended)
    settings: dict[str, Any] = {
        "seed": options.seed,
        "motion": options.sampling(),
        "render": options.rendering(),
    }
    landmarker = FaceLandmarker(max_faces=1)
    results, rows = {}, []
    for track in tracks:
        key = track.name.removesuffix(".controls.npy")
        clip = clips / f"{key}.mp4"
        count = min(round(max_seconds * FPS), len(np.load(track)))
        truth = lip_opening(np.load(track)[:count])
        samples = read_audio(clip)[: count * SAMPLES_PER_FRAME]
        true = [frame for frame, _ in zip(read_frames(clip), range(count), strict=False)]
        # The motion begins in silence, so the portrait should have its mouth closed.
        portrait = true[int(truth[:FPS].argmin())]
        videos = [true]
        for sound in (samples, np.roll(samples, len(samples) // 2)):
            videos.append(list(pipeline(portrait, sound, paste_back=True, **settings).frames))
        true_lips, lips, shuffled_lips = (read_lips(landmarker, video) for video in videos)
        results[key] = ClipActing(
            frames=count,
            true_read=_correlation(truth, true_lips),
            generated=_correlation(truth, lips),
            shuffled=_correlation(truth, shuffled_lips),
            opening=float(lips.std() / true_lips.std()),
        )
        shown = np.linspace(0, count - 1, _COLUMNS).astype(int)
        rows += [[video[n] for n in shown] for video in videos]
    report = ActingReport(clips=results)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.json").write_text(json.dumps(asdict(report), indent=2) + "\n")
    sheet(rows).save(output / "acting.png")
    return report


def read_lips(landmarker: FaceLandmarker, frames: Iterable[np.ndarray]) -> np.ndarray:
    """Return the lip opening of successive frames uint8 [H, W, 3], float32 [T].

    Raises:
        ValueError: More than five successive frames show no face.
    """
    return lip_opening(control_track(list(landmarker.follow(frames))))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two series [T], 0 if one of them is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0

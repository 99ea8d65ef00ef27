"""Make and score the videos of an evaluation on Ray actors. Existing videos and scores are kept."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.util import ActorPool

from xactor.atomic_path import atomic_path
from xactor.faces import CropBox, FaceLandmarker, crop_box
from xactor.media import read_frames
from xactor.metrics.fvd import VideoStatistics
from xactor.options import AnimateOptions
from xactor.portrait import Portrait, find_portrait, read_image, search_faces
from xactor_platform.evaluation.judge import Judge, Weights
from xactor_platform.evaluation.pairs import Pair


@dataclass(frozen=True, kw_only=True)
class Source:
    """Name a model that makes the videos, or a folder of existing videos. Exactly one of the two is given."""

    model: Path | None = None
    """Folder of the model."""
    videos: Path | None = None
    """Folder of existing videos, named <id>.mp4."""
    options: AnimateOptions = field(default_factory=AnimateOptions)
    """Options of the videos that the model makes."""

    def __post_init__(self):
        if (self.model is None) == (self.videos is None):
            raise ValueError(
                "either a model or a folder of videos must be given: --source.model or --source.videos, not both"
            )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Hold one pair's result."""

    id: str
    """The pair's id."""
    scores: dict[str, float]
    """Scores by column; empty after an error."""
    error: str | None = None
    """Reason why there are no scores. None if there are scores."""


def evaluate(
    pairs: list[Pair],
    source: Source,
    weights: Weights,
    output: Path,
    *,
    actors: int,
    gpus_per_actor: float,
    progress: Callable[[str], None],
) -> tuple[list[Judged], dict[str, str], dict[str, VideoStatistics]]:
    """Make and score every pair's video.

    Write videos/<id>.mp4, scores/<id>.json and scores/<id>.npz (statistics for FVD) to `output`. Existing scores and
    videos are kept. The next run retries pairs that failed.

    Args:
        pairs: The videos to make.
        source: The model, or existing videos.
        weights: The metrics' networks.
        output: A folder that every worker can read and write.
        actors: Number of pairs that are processed concurrently.
        gpus_per_actor: GPUs that each actor reserves.
        progress: Called with a line at the start and after each pair.

    Returns:
        The pairs' results, the names of the weights by metric, and statistics for FVD of all videos together: of the
        generated frames as `made`, and of the true frames as `true`.

    Raises:
        ValueError: `actors` is below 1.
    """
    if actors < 1:
        raise ValueError(f"actors must be >= 1, got {actors}")
    for name in ("videos", "scores"):
        (output / name).mkdir(parents=True, exist_ok=True)
    missing = [pair for pair in pairs if not _is_scored(output, pair)]
    progress(f"{len(pairs)} pairs, {len(pairs) - len(missing)} are already scored")
    failed: dict[str, Judged] = {}
    if missing:
        worker = ray.remote(num_cpus=1, num_gpus=gpus_per_actor, max_restarts=2, max_task_retries=2)(_Worker)
        pool = ActorPool([worker.remote(source, weights, output) for _ in range(min(actors, len(missing)))])
        done: Any = pool.map_unordered(lambda actor, pair: actor.judge.remote(pair), missing)
        for number, judged in enumerate(done):
            if judged.error:
                failed[judged.id] = judged
            result = judged.error or ", ".join(f"{name} {value:.3g}" for name, value in judged.scores.items())
            progress(f"{number + 1} of {len(missing)}  {judged.id}: {result}")
    results, totals, used = [], {}, {}
    for pair in pairs:
        if pair.id in failed:
            results.append(failed[pair.id])
            continue
        row = json.loads(_scores_file(output, pair).read_text())
        used |= row["weights"]
        results.append(Judged(id=pair.id, scores=row["scores"]))
        for name, statistics in _read_statistics(_statistics_file(output, pair)).items():
            if name in totals:
                totals[name].merge(statistics)
            else:
                totals[name] = statistics
    return results, used, totals


class _Worker:
    """Make and score videos in an actor, with one model and one judge."""

    def __init__(self, source: Source, weights: Weights, output: Path):
        self._source, self._output = source, output
        self._judge = Judge(weights)
        self._pipeline = None
        if source.model:
            from xactor.pipeline import XActorPipeline

            self._pipeline = XActorPipeline.from_pretrained(source.model)
            self._pipeline.set_progress_bar_config(disable=True)
            import torch

            if torch.cuda.is_available():
                self._pipeline.to("cuda", torch.bfloat16)

    def judge(self, pair: Pair) -> Judged:
        """Make and score the video of a pair, and save the scores.

        If the video cannot be made or scored, the result holds the reason instead of scores.
        """
        try:
            portrait = find_portrait(_picture(pair))
            video = self._video(pair, portrait)
            truth = (pair.truth, _square(pair.truth)) if pair.truth else None
            scores, statistics = self._judge.score(video, portrait, truth)
        except (ValueError, OSError) as error:
            return Judged(id=pair.id, scores={}, error=" ".join(str(error).split()))
        file = _scores_file(self._output, pair)
        with atomic_path(_statistics_file(self._output, pair)) as part, part.open("wb") as stream:
            arrays = {f"{n}.{key}": a for n, s in statistics.items() for key, a in s.arrays().items()}
            np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType]
        # Write this file last, because it marks the pair as finished.
        with atomic_path(file) as part:
            part.write_text(json.dumps({"scores": scores, "weights": self._judge.weights}, indent=2) + "\n")
        return Judged(id=pair.id, scores=scores)

    def _video(self, pair: Pair, portrait: Portrait) -> Path:
        """Return the path of a pair's video. Make the video if it does not exist."""
        if self._source.videos:
            return self._source.videos / f"{pair.id}.mp4"
        path = self._output / "videos" / f"{pair.id}.mp4"
        if not path.exists():
            assert self._pipeline is not None
            options = self._source.options.with_recommended(self._pipeline.recommended)
            animation = self._pipeline(
                Image.fromarray(portrait.picture),
                pair.audio,
                seed=options.seed,
                motion=options.sampling(),
                render=options.rendering(),
                max_seconds=options.max_seconds,
            )
            animation.save(path)
        return path


def _picture(pair: Pair) -> np.ndarray:
    """Read a pair's portrait uint8 [H, W, 3], from a picture or as the frame at `pair.position` of a video."""
    if pair.position is None:
        return read_image(pair.portrait)
    count = sum(1 for _ in read_frames(pair.portrait))
    return next(islice(read_frames(pair.portrait), int(pair.position * count), None))


def _square(video: Path) -> CropBox:
    """Return the square around the face in a true video's first frame. A generated video shows such a square."""
    faces = search_faces(next(read_frames(video)), FaceLandmarker(max_faces=5))
    if not faces:
        raise ValueError(f"{video}: no face is found in the first frame")
    return crop_box(faces[0])


def _scores_file(output: Path, pair: Pair) -> Path:
    return output / "scores" / f"{pair.id}.json"


def _statistics_file(output: Path, pair: Pair) -> Path:
    return output / "scores" / f"{pair.id}.npz"


def _is_scored(output: Path, pair: Pair) -> bool:
    """Return whether the scores of a pair are complete. An earlier version wrote the statistics in another file."""
    return _scores_file(output, pair).exists() and _statistics_file(output, pair).exists()


def _read_statistics(path: Path) -> dict[str, VideoStatistics]:
    """Return the statistics of a pair's video by name, as `_Worker.judge` saved them. Raises ValueError."""
    found: dict[str, dict[str, np.ndarray]] = {}
    try:
        # Arrays alone are read. A pickle could run any code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            for name in arrays.files:
                kind, _, key = name.partition(".")
                found.setdefault(kind, {})[key] = arrays[name]
        return {kind: VideoStatistics.from_arrays(own) for kind, own in found.items()}
    except (ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: no statistics of a video ({error}): delete the file to score again"
        ) from error

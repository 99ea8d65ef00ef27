"""Make the paper's user study: a static page of videos under blinded names, and the key to the names.

A blinded name does not tell which method made the video. Method and example of each video are in the key.

Paper 4.2: 21 participants saw 10 examples of the cross-driven setting, in which
portrait and sound come from different sources. Each example was a randomised set with one video
of each method. The participants chose the best video by lip sync, motion diversity, emotion alignment and video
quality. In Table 1 a method's figure is its share of all choices, so each of these four columns sums to 1.

The paper does not say how it worded the questions, how it chose the ten examples, or whether all raters saw the same
order. Ours: the questions below, ten examples drawn by the seed, and a different order for every rater.

The paper also does not say whether a rater could skip a question. Its shares fit 201, 205, 200 and 201 choices,
while 21 raters with 10 examples would give 210. Ours: nobody can skip, so that all raters have the same weight.
"""

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

QUESTIONS = {
    "Syn": "In which video do the lips fit the speech best?",
    "Div": "In which video do the head and the face move in the most varied way?",
    "Emo": "In which video do the face's emotions fit the voice best?",
    "VQ": "Which video has the best picture quality?",
}
# The page calls the videos of an example Video A to Video Z.
MAX_METHODS = 26
# Template of the page, and the place in it that receives the study's data.
_PAGE, _PLACE = Path(__file__).with_name("study.html"), "@STUDY@"


@dataclass(frozen=True, kw_only=True)
class Key:
    """Hold what the page hides from the raters."""

    study: str
    """Id of the study. All of its vote files contain it."""
    seed: int
    """Seed of the drawn examples, of the blinded names and of the orders."""
    raters: int
    """Number of raters that the page has orders for."""
    methods: tuple[str, ...]
    """Names of the methods."""
    examples: tuple[str, ...]
    """Ids of the examples."""
    videos: dict[str, tuple[str, str]]
    """Method and example by blinded name."""

    def save(self, path: Path) -> None:
        """Write the key to a file that `load` reads."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a saved key.

        Raises:
            ValueError: The file is not a study's key.
        """
        try:
            saved = json.loads(path.read_text())
            methods, examples = tuple(saved.pop("methods")), tuple(saved.pop("examples"))
            videos = {name: (method, example) for name, (method, example) in saved.pop("videos").items()}
            return cls(**saved, methods=methods, examples=examples, videos=videos)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: not the key of a study ({error})") from None


def make_study(
    methods: Mapping[str, Path],
    page: Path,
    key: Path,
    *,
    examples: int = 10,
    raters: int = 21,
    seed: int | None = None,
) -> Key:
    """Write the page's folder, which any static host can serve, and the key outside of that folder. Return the key.

    Args:
        methods: Each method's folder of existing videos `<id>.mp4`. An id can be an example if all methods have its
            video.
        page: The page's folder, new or empty.
        key: The key's file.
        examples: Number of examples that each rater sees.
        raters: Number of raters that the page has orders for.
        seed: Seed of examples, names and orders. It reveals the videos' methods, so keep it secret. By default it is
            random.

    Raises:
        ValueError: An argument is out of its bounds, or the page's folder is not empty.
    """
    if not 2 <= len(methods) <= MAX_METHODS:
        raise ValueError(f"methods must be within 2..{MAX_METHODS}, got {len(methods)}")
    for name in methods:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"a method's name must be letters, digits, '_', '-' and '.', got {name!r}")
    if raters < 1:
        raise ValueError(f"raters must be >= 1, got {raters}")
    seed = secrets.randbits(63) if seed is None else seed
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if key.resolve().is_relative_to(page.resolve()):
        raise ValueError(f"the key must be outside of the page's folder {page}, got {key}")
    if page.exists() and any(page.iterdir()):
        raise ValueError(f"{page} must be empty or new, it holds {len(list(page.iterdir()))} files")
    chosen = _draw(methods, examples, seed)
    videos = {_blinded(seed, method, example): (method, example) for example in chosen for method in methods}
    made = Key(
        study=_digest("".join(sorted(videos))),
        seed=seed,
        raters=raters,
        methods=tuple(methods),
        examples=tuple(chosen),
        videos=videos,
    )
    made.save(key)
    (page / "videos").mkdir(parents=True, exist_ok=True)
    for name, (method, example) in videos.items():
        # copyfile gives the copy a new date but keeps the metadata in the file, which say that it is AI-generated.
        shutil.copyfile(methods[method] / f"{example}.mp4", page / "videos" / f"{name}.mp4")
    data = {"study": made.study, "questions": QUESTIONS, "orders": orders(made)}
    (page / "index.html").write_text(_PAGE.read_text().replace(_PLACE, json.dumps(data)))
    return made


def orders(key: Key) -> list[list[list[str]]]:
    """Return each rater's examples in the rater's own order. An example is a list of blinded names in random order."""
    sets = [[name for name, (_, of) in key.videos.items() if of == example] for example in key.examples]
    orders_of_raters = []
    for rater in range(key.raters):
        rng = np.random.default_rng([key.seed, 2, rater])
        orders_of_raters.append([rng.permutation(sets[at]).tolist() for at in rng.permutation(len(sets))])
    return orders_of_raters


def common_examples(methods: Mapping[str, Path]) -> list[str]:
    """Return the ids for which every method has a video.

    Raises:
        ValueError: A folder does not exist.
    """
    for name, folder in methods.items():
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder, of the method {name}")
    return sorted(set.intersection(*({p.stem for p in folder.glob("*.mp4")} for folder in methods.values())))


def _draw(methods: Mapping[str, Path], examples: int, seed: int) -> list[str]:
    """Draw the ids of the examples. Raise ValueError if `examples` is below 1 or too few ids have all videos."""
    common = common_examples(methods)
    if not 1 <= examples <= len(common):
        raise ValueError(
            f"examples must be within 1..{len(common)}, the number of ids for which every method has a video, "
            f"got {examples}"
        )
    return np.random.default_rng([seed, 1]).permutation(common)[:examples].tolist()


def _blinded(seed: int, method: str, example: str) -> str:
    """Return the blinded name of a video."""
    return _digest(f"{seed}/{method}/{example}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""The paper's user study as a static page: videos under blinded names, and the key that tells whose they are.

Paper 4.2: 21 participants were shown 10 examples of the cross-driven setting, each a randomised set of all methods'
videos, and chose the best one by lip sync, motion diversity, emotion alignment and video quality. Table 1's columns
sum to 1: a method's figure is its share of all choices.

The paper leaves open how it asked, how the ten were found, and whether all saw one order. Ours: the questions below,
ten drawn by the seed, an order for every rater. Nor does it say who could pass: its shares are those of 201, 205, 200
and 201 choices, where 21 people with 10 examples make 210. Ours: nobody can, so that all raters weigh alike.
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
MOST_METHODS = 26  # the page calls them Video A to Video Z
_PAGE, _PLACE = Path(__file__).with_name("study.html"), "@STUDY@"


@dataclass(frozen=True, kw_only=True)
class Key:
    """What the page hides, and the raters must not see.

    study: what all its vote files bear. seed: of names and orders. videos: by blinded name, the method and example.
    """

    study: str
    seed: int
    raters: int
    methods: tuple[str, ...]
    examples: tuple[str, ...]
    videos: dict[str, tuple[str, str]]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Raises:
            ValueError: another kind of file.
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
    """Writes the page's folder, for any static host, and the key outside of it.

    Args:
        methods: by name, a folder of ready videos `<id>.mp4`; an example is an id that all of them have.
        seed: who knows it can name the videos. Drawn if it is not given, and kept in the key.

    Raises:
        ValueError: what no study can be made of, or a page's folder that holds something.
    """
    if not 2 <= len(methods) <= MOST_METHODS:
        raise ValueError(f"methods must be within 2..{MOST_METHODS}, got {len(methods)}")
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
        raise ValueError(f"{page} must be empty or not there, it holds {len(list(page.iterdir()))} things")
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
        # Not its date either. What is written in the file stays: it says that the video is AI-generated.
        shutil.copyfile(methods[method] / f"{example}.mp4", page / "videos" / f"{name}.mp4")
    data = {"study": made.study, "questions": QUESTIONS, "orders": orders(made)}
    (page / "index.html").write_text(_PAGE.read_text().replace(_PLACE, json.dumps(data)))
    return made


def orders(key: Key) -> list[list[list[str]]]:
    """What each rater sees, by number: the examples in an order of their own, each a list of blinded names."""
    sets = [[name for name, (_, of) in key.videos.items() if of == example] for example in key.examples]
    found = []
    for rater in range(key.raters):
        rng = np.random.default_rng([key.seed, 2, rater])
        found.append([rng.permutation(sets[at]).tolist() for at in rng.permutation(len(sets))])
    return found


def common_examples(methods: Mapping[str, Path]) -> list[str]:
    """The ids of which every method has a video.

    Raises:
        ValueError: no such folder.
    """
    for name, folder in methods.items():
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder, of the method {name}")
    return sorted(set.intersection(*({p.stem for p in folder.glob("*.mp4")} for folder in methods.values())))


def _draw(methods: Mapping[str, Path], examples: int, seed: int) -> list[str]:
    there = common_examples(methods)
    if not 1 <= examples <= len(there):
        raise ValueError(
            f"examples must be within 1..{len(there)}, of which every method has a video, got {examples}"
        )
    return np.random.default_rng([seed, 1]).permutation(there)[:examples].tolist()


def _blinded(seed: int, method: str, example: str) -> str:
    return _digest(f"{seed}/{method}/{example}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

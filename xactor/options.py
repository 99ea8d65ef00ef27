"""Define the options of an animation, and read the values that a model recommends for them.

The options have the same names on the command line, in the manifests of bulk jobs and in HTTP requests.

A model folder has its recommendation in `recommended.json` next to `model_index.json`: one object of options for each
quality, and the name of the default quality.

    {"default": "good", "draft": {"motion_steps": 5, ...}, "good": {...}, "best": {...}}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from xactor.model_folder import located

# For type checking only, since importing torch takes seconds and `--help` must not wait for it.
if TYPE_CHECKING:
    from xactor.motion import SamplingConfig
    from xactor.render import RenderConfig


RECOMMENDED_FILE = "recommended.json"
Quality = Literal["draft", "good", "best"]
QUALITIES: tuple[Quality, ...] = ("draft", "good", "best")
PAPER: dict[str, Any] = {
    "motion_steps": 50,
    "audio_cfg": 3.0,
    "history": "linear",
    "render_steps": 25,
    "render_cfg": 2.5,
    "relative_motion": True,
}
"""The paper's options (Paper 4.1), for models that recommend none. Ours: relative motion."""


# A seed is an integer from 0 to this number.
MAX_SEED = 2**63 - 1
_MAX_SECONDS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """Hold the options that a model recommends for each quality, or the paper's options if it recommends none."""

    default: Quality = "good"
    """The quality for callers that choose none."""
    options: Mapping[str, dict[str, Any]] = field(
        default_factory=lambda: dict.fromkeys(QUALITIES, PAPER)  # pyright: ignore[reportArgumentType]
    )
    """Values of all options in PAPER, by quality."""
    from_model: bool = False
    """True if the model recommends the options. False for the paper's options, because the model recommends none."""

    @classmethod
    def of(cls, folder: str | Path) -> "Recommended":
        """Return the recommendation of a local model folder, or the paper's options if the folder has none.

        Raises:
            ValueError: recommended.json does not have the form that this module's docstring shows. The message names
                the file.
        """
        path = Path(folder, RECOMMENDED_FILE)
        return read_recommended(path) if path.is_file() else cls()

    @classmethod
    def parse(cls, values: Any) -> "Recommended":
        """Check the parsed JSON of a recommendation and return it. Raises ValueError that names what is wrong."""
        wanted = {"default", *QUALITIES}
        if not isinstance(values, dict) or set(values) != wanted:
            raise ValueError(f"must be an object with {', '.join(sorted(wanted))}")
        if values["default"] not in QUALITIES:
            raise ValueError(f"default must be one of {', '.join(QUALITIES)}, got {values['default']!r}")
        for quality in QUALITIES:
            if not isinstance(values[quality], dict) or set(values[quality]) != set(PAPER):
                raise ValueError(f"{quality} must be an object with {', '.join(PAPER)}")
            try:
                options = AnimateOptions().with_row(values[quality])
                options.sampling()
                options.rendering()
            except ValueError as error:
                raise ValueError(f"{quality}: {error}") from error
        return cls(
            default=values["default"], options={name: values[name] for name in QUALITIES}, from_model=True
        )

    def save(self, folder: str | Path) -> None:
        """Write recommended.json to a model folder, but only if the model recommends the options."""
        if self.from_model:
            text = json.dumps({"default": self.default, **self.options}, indent=2)
            Path(folder, RECOMMENDED_FILE).write_text(text + "\n", encoding="utf-8")


def read_recommended(path: Path) -> Recommended:
    """Read a file of recommended options. Raises ValueError that names the file."""
    try:
        return Recommended.parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class AnimateOptions:
    """Choose how one animation is made. An option that is None has the value that the model recommends."""

    seed: int = 0
    """Random seed, 0..2^63-1. The same seed, image and audio give the same video."""
    quality: Quality | None = None
    """The values that the model recommends for this quality replace the options that are None: `draft` is the fastest,
    `good` is a good balance, `best` looks best. None means the model's default quality."""
    motion_steps: int | None = None
    """DDIM steps per chunk of motion, 1..1000. Fewer are faster."""
    audio_cfg: float | None = None
    """Guidance on the audio, 1..20: how strongly the motion follows it. 1 turns guidance off and halves the work."""
    history: Literal["linear", "vanilla", "fractional"] | None = None
    """Noise on the past frames that the motion model sees: `linear` adds more noise to more distant frames, `vanilla`
    adds none, `fractional` raises the noise in four steps of distance."""
    render_steps: int | None = None
    """DDIM steps per window of 16 frames, 0..1000. Fewer are faster. 0 is for models with a guess network only: it
    shows the portrait as this network moves it, without the UNet's correction."""
    render_cfg: float | None = None
    """Guidance on the motion, 1..20: how strongly the frames follow it. 1 turns guidance off and halves the work."""
    relative_motion: bool | None = None
    """Move the portrait by the change of motion since a short silence before the sound. False,
    as in the paper, shows the motion itself."""
    paste_back: bool = False
    """Put the face back into the whole picture, which is shrunk so that no side is longer than 1920 px."""
    max_seconds: float = 3600
    """Refuse audio that is longer than this many seconds, above 0 and at most 1,000,000."""

    def __post_init__(self):
        if self.quality is not None and self.quality not in QUALITIES:
            raise ValueError(f"quality must be one of {', '.join(QUALITIES)}, got {self.quality!r}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be within 0..{MAX_SEED}, got {self.seed}")
        # The comparison is false for NaN.
        if not 0 < self.max_seconds <= _MAX_SECONDS:
            raise ValueError(
                f"max_seconds must be above 0 and at most {_MAX_SECONDS}, got {str(self.max_seconds)[:40]}"
            )

    def with_row(self, row: dict[str, Any]) -> "AnimateOptions":
        """Return a copy of these options in which the values of a row replace the present values.

        Args:
            row: Values by option name.

        Raises:
            ValueError: The row names an unknown option, or holds a value of the wrong type.
        """
        row = dict(row)
        for name, value in row.items():
            if name not in _TYPES:
                raise ValueError(f"no option {name!r}; there are {', '.join(_TYPES)}")
            kind = _TYPES[name]
            # Tables often hold whole numbers as floating-point numbers, for example in columns with empty cells.
            if kind is int and isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_EXACT:
                row[name] = value = int(value)
            accepted = (int, float) if kind is float else (kind,)
            # For isinstance, a bool is also an int.
            if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
                raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
        return replace(self, **row)

    def with_recommended(self, recommended: Recommended) -> "AnimateOptions":
        """Return a copy in which a model's recommendation replaces each None."""
        chosen = recommended.options[self.quality or recommended.default]
        return replace(self, **{name: value for name, value in chosen.items() if getattr(self, name) is None})

    def sampling(self) -> "SamplingConfig":
        """Return the motion model's options, with the paper's value for each None.

        Raises:
            ValueError: An option is out of range.
        """
        from xactor.motion import SamplingConfig

        values = self.with_recommended(Recommended())
        return SamplingConfig(
            steps=values.motion_steps,  # pyright: ignore
            audio_cfg=values.audio_cfg,  # pyright: ignore
            history=values.history,  # pyright: ignore
        )

    def rendering(self) -> "RenderConfig":
        """Return the renderer's options, with the paper's value for each None.

        Raises:
            ValueError: An option is out of range.
        """
        from xactor.render import RenderConfig

        values = self.with_recommended(Recommended())
        return RenderConfig(
            steps=values.render_steps,  # pyright: ignore
            cfg=values.render_cfg,  # pyright: ignore
            relative_motion=values.relative_motion,  # pyright: ignore
        )


def recommended(model: str | Path) -> Recommended:
    """Return the options that a model recommends, or the paper's options if it recommends none.

    Args:
        model: The model's folder or URI, or the name BOX.

    Raises:
        ValueError: The recommendation is not well-formed, or the object store cannot be read.
    """
    model = located(model)
    if "://" not in model:
        return Recommended.of(model)
    from pyarrow import fs

    try:
        source, path = fs.FileSystem.from_uri(model)
        with source.open_input_file(f"{path}/{RECOMMENDED_FILE}") as file:
            return Recommended.parse(json.loads(file.read()))
    except FileNotFoundError:
        return Recommended()
    except (OSError, ValueError) as error:
        raise ValueError(f"{model}/{RECOMMENDED_FILE}: {error}") from error


def _type(hint: Any) -> type:
    """Return the type of an option's values other than None, given its annotation. For `Literal[...]` it is str."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    return str if get_origin(kinds[0]) is Literal else kinds[0]


# Up to this number, every integer is a float.
_MAX_EXACT = 2**53
# Type of each option's values.
_TYPES = {name: _type(hint) for name, hint in get_type_hints(AnimateOptions).items()}


@dataclass(frozen=True, kw_only=True)
class DubOptions:
    """Choose how footage is dubbed."""

    acting: float = 0.0
    """How much of the face the speech acts, 0..1. 0: lips and jaw alone, and brows, cheeks, eyes, smile and frown stay
    the footage's. 1: the speech acts all of them. The head always moves as in the footage."""
    crf: int = 18
    """Quality of x264, 0..51: 0 is lossless, larger is worse."""
    when_longer: Literal["hold", "cut", "refuse"] = "hold"
    """If the speech is longer than the picture: `hold` the last frame, whose face speaks on, `cut` the speech, or
    `refuse` to dub."""
    when_shorter: Literal["rest", "pass", "cut", "refuse"] = "rest"
    """If the speech is shorter than the picture: the lips `rest` after it, the remaining frames `pass` unchanged, `cut`
    the picture, or `refuse` to dub. The sound after the speech is silence."""
    seed: int = 0
    """Random seed. The same seed, video and audio give the same video."""
    quality: Quality | None = None
    """Quality of the motion, as for `xactor animate`. None means the model's default quality."""

    def __post_init__(self):
        if not 0 <= self.acting <= 1:
            raise ValueError(f"acting must be within 0..1, got {self.acting:g}")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf must be within 0..51, got {self.crf}")

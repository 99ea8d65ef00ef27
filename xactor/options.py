"""The options of an animation, with the same names on the command line and in the rows of a file."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

# For type checking only, since importing torch takes seconds and `--help` must not wait for it.
if TYPE_CHECKING:
    from xactor.motion import SamplingConfig
    from xactor.render import RenderConfig


@dataclass(frozen=True, kw_only=True)
class AnimateOptions:
    """Choose how one animation is made."""

    seed: int = 0
    """Random seed. The same seed, image and audio give the same video."""
    motion_steps: int = 50
    """DDIM steps per chunk of motion, 1..1000. Fewer are faster."""
    audio_cfg: float = 3.0
    """Guidance on the audio, 1..20: how strongly the motion follows it. 1 turns guidance off and halves the work."""
    history: Literal["linear", "vanilla", "fractional"] = "linear"
    """Noise on the past frames that the motion model sees: rising with their distance, none, or in four steps."""
    render_steps: int = 25
    """DDIM steps per window of 16 frames, 1..1000. Fewer are faster."""
    render_cfg: float = 2.5
    """Guidance on the motion, 1..20: how strongly the frames follow it. 1 turns guidance off and halves the work."""
    paste_back: bool = False
    """Put the face back into the whole picture, which is shrunk so that no side is longer than 1920 px."""
    max_seconds: float = 3600
    """Refuse audio that is longer than this many seconds."""

    def with_row(self, row: dict[str, Any]) -> "AnimateOptions":
        """Return a copy of these options in which the values of a row replace their own.

        Raises:
            ValueError: The row names an unknown option, or holds a value of the wrong type.
        """
        types = {field.name: type(field.default) for field in fields(self)}
        for name, value in row.items():
            if name not in types:
                raise ValueError(f"no option {name!r}; there are {', '.join(types)}")
            accepted = (int, float) if types[name] is float else (types[name],)
            # isinstance also takes a bool for an int.
            if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
                raise ValueError(f"{name} must be of type {types[name].__name__}, got {value!r}")
        return replace(self, **row)

    def sampling(self) -> "SamplingConfig":
        """Return the motion model's options. Raises ValueError if one is out of range."""
        from xactor.motion import SamplingConfig

        return SamplingConfig(steps=self.motion_steps, audio_cfg=self.audio_cfg, history=self.history)

    def rendering(self) -> "RenderConfig":
        """Return the renderer's options. Raises ValueError if one is out of range."""
        from xactor.render import RenderConfig

        return RenderConfig(steps=self.render_steps, cfg=self.render_cfg)

"""The options of an animation, with the same names on the command line and in the rows of a file."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

# The help of a command must not wait for torch.
if TYPE_CHECKING:
    from xactor.motion import SamplingConfig
    from xactor.render import RenderConfig


@dataclass(frozen=True, kw_only=True)
class AnimateOptions:
    """Choose how one animation is made."""

    seed: int = 0
    """Random seed. The same seed, image and audio give the same video."""
    motion_steps: int = 50
    """DDIM steps a chunk of motion, 1..1000. Fewer are faster."""
    audio_cfg: float = 3.0
    """Guidance on the audio, 1..20: how strongly the motion follows it. 1 is without guidance, at half the work."""
    history: Literal["linear", "vanilla", "fractional"] = "linear"
    """Noise with which the motion model sees its own past: rising with the distance, none, or in four stairs."""
    render_steps: int = 25
    """DDIM steps a window of 16 frames, 1..1000. Fewer are faster."""
    render_cfg: float = 2.5
    """Guidance on the motion, 1..20: how strongly the frames follow it. 1 is without guidance, at half the work."""
    paste_back: bool = False
    """Put the face back into the whole picture, which is shrunk to at most 1920 px a side."""
    max_seconds: float = 3600
    """Refuse audio that is longer than this many seconds."""

    def with_row(self, row: dict[str, Any]) -> "AnimateOptions":
        """Return these options with the values of a row in place of their own.

        Raises:
            ValueError: The row names an unknown option, or holds a value of another type.
        """
        types = {field.name: type(field.default) for field in fields(self)}
        for name, value in row.items():
            if name not in types:
                raise ValueError(f"no option {name!r}; there are {', '.join(types)}")
            takes = (int, float) if types[name] is float else (types[name],)
            if not isinstance(value, takes) or (isinstance(value, bool) and bool not in takes):
                raise ValueError(f"{name} must be of type {types[name].__name__}, got {value!r}")
        return replace(self, **row)

    def sampling(self) -> "SamplingConfig":
        """Return the motion model's options. ValueError: one is out of range."""
        from xactor.motion import SamplingConfig

        return SamplingConfig(steps=self.motion_steps, audio_cfg=self.audio_cfg, history=self.history)

    def rendering(self) -> "RenderConfig":
        """Return the renderer's options. ValueError: one is out of range."""
        from xactor.render import RenderConfig

        return RenderConfig(steps=self.render_steps, cfg=self.render_cfg)

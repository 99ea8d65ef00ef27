"""What a user can choose of an animation: the same names on the command line and in the rows of a file."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # a command's help need not wait for torch
    from xactor.motion import SamplingConfig
    from xactor.render import RenderConfig


@dataclass(frozen=True, kw_only=True)
class AnimateOptions:
    """Choices for one animation.

    Args:
        seed: the same seed, image and audio give the same video.
        motion_steps: DDIM steps a chunk of motion.
        audio_cfg: how strongly the motion follows the audio; 1 is without guidance.
        history: how noisy the motion model sees its own past.
        render_steps: DDIM steps a window of frames.
        render_cfg: how strongly the frames follow the motion; 1 is without guidance.
        paste_back: put the face back into the whole picture.
        max_seconds: refuse longer audio.
    """

    seed: int = 0
    motion_steps: int = 50
    audio_cfg: float = 3.0
    history: Literal["linear", "vanilla", "fractional"] = "linear"
    render_steps: int = 25
    render_cfg: float = 2.5
    paste_back: bool = False
    max_seconds: float = 3600

    def with_row(self, row: dict[str, Any]) -> "AnimateOptions":
        """These, but for what a row says otherwise. ValueError: no such option, or a value of another type."""
        types = {field.name: type(field.default) for field in fields(self)}
        for name, value in row.items():
            if name not in types:
                raise ValueError(f"no option {name!r}; there are {', '.join(types)}")
            takes = (int, float) if types[name] is float else (types[name],)
            if not isinstance(value, takes) or (isinstance(value, bool) and bool not in takes):
                raise ValueError(f"{name} must be of type {types[name].__name__}, got {value!r}")
        return replace(self, **row)

    def sampling(self) -> "SamplingConfig":
        """ValueError: out of range."""
        from xactor.motion import SamplingConfig

        return SamplingConfig(steps=self.motion_steps, audio_cfg=self.audio_cfg, history=self.history)

    def rendering(self) -> "RenderConfig":
        """ValueError: out of range."""
        from xactor.render import RenderConfig

        return RenderConfig(steps=self.render_steps, cfg=self.render_cfg)

"""The options of a video over HTTP: those of `xactor animate`, as form fields and as JSON."""

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from xactor.motion import SamplingConfig
from xactor.options import AnimateOptions
from xactor.render import RenderConfig
from xactor_serving.errors import bad_option

_DEFAULT = AnimateOptions()
MOST_SEED = 2**63 - 1


class VideoOptions(BaseModel):
    """Choices for one video."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    seed: Annotated[
        int, Field(ge=0, le=MOST_SEED, description="The same gives the same video.", examples=[7])
    ] = _DEFAULT.seed
    motion_steps: Annotated[
        int, Field(ge=1, le=1000, description="DDIM steps a chunk of motion.", examples=[20])
    ] = _DEFAULT.motion_steps
    audio_cfg: Annotated[
        float, Field(ge=1, le=20, description="How strongly the motion follows the audio.", examples=[3])
    ] = _DEFAULT.audio_cfg
    history: Annotated[
        Literal["linear", "vanilla", "fractional"],
        Field(description="How noisy the past is seen.", examples=["linear"]),
    ] = _DEFAULT.history
    render_steps: Annotated[
        int, Field(ge=1, le=1000, description="DDIM steps a window of frames.", examples=[25])
    ] = _DEFAULT.render_steps
    render_cfg: Annotated[
        float, Field(ge=1, le=20, description="How strongly frames follow the motion.", examples=[2.5])
    ] = _DEFAULT.render_cfg
    paste_back: Annotated[bool, Field(description="Put the face back into the whole picture.")] = (
        _DEFAULT.paste_back
    )

    def configs(self) -> tuple[SamplingConfig, RenderConfig]:
        """ServiceError: out of range."""
        try:
            options = AnimateOptions(**{name: getattr(self, name) for name in VideoOptions.model_fields})
            return options.sampling(), options.rendering()
        except ValueError as error:
            raise bad_option(str(error)) from error


class VideoForm(VideoOptions):
    """The fields of `POST /v1/videos`."""

    image: Annotated[UploadFile, Field(description="The portrait: any picture that Pillow reads.")]
    audio: Annotated[UploadFile, Field(description="The speech: any sound or video that PyAV reads.")]
    stream: Annotated[
        bool, Field(description="True: a fragmented mp4 while it is made. False: a plain one.")
    ] = True


class StreamStart(VideoOptions):
    """The first message on `/v1/stream`."""

    image: Annotated[str, Field(description="The portrait, base64.", max_length=64 * 2**20)]
    sample_rate_hz: Annotated[Literal[16_000], Field(description="Of the sound that follows.")] = 16_000
    key: Annotated[str, Field(description="The API key, where one is needed.")] = ""


def validation_line(errors) -> str:
    """Validation errors: which field, and what is wrong with it."""
    lines = []
    for error in errors:
        where = ".".join(str(part) for part in error["loc"] if part != "body")
        lines.append(f"{where}: {error['msg']}" if where else str(error["msg"]))
    return "; ".join(lines[:5])

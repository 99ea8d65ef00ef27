"""Define the options of a video as form fields (HTTP) and as JSON (WebSocket), equal to those of `xactor animate`."""

from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

from xactor.motion import SamplingConfig
from xactor.options import MAX_SEED, AnimateOptions, Quality, Recommended
from xactor.render import RenderConfig
from xactor_serving.errors import bad_option

_DEFAULT = AnimateOptions()


class VideoOptions(BaseModel):
    """Hold the options of one video."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    seed: Annotated[
        int, Field(ge=0, le=MAX_SEED, description="The same seed gives the same video.", examples=[7])
    ] = _DEFAULT.seed
    quality: Annotated[
        Quality | None,
        Field(
            description="Use the options that the model recommends for this quality. By default the model "
            "chooses the quality. Options that are given override the recommended ones.",
            examples=["good"],
        ),
    ] = _DEFAULT.quality
    motion_steps: Annotated[
        int | None, Field(ge=1, le=1000, description="DDIM steps of each chunk of motion.", examples=[20])
    ] = _DEFAULT.motion_steps
    audio_cfg: Annotated[
        float | None,
        Field(ge=1, le=20, description="Guidance of the motion by the audio; 1 is none.", examples=[3]),
    ] = _DEFAULT.audio_cfg
    history: Annotated[
        Literal["linear", "vanilla", "fractional"] | None,
        Field(description="Noise of the past frames that the motion model sees.", examples=["linear"]),
    ] = _DEFAULT.history
    render_steps: Annotated[
        int | None, Field(ge=0, le=1000, description="DDIM steps of each window of frames.", examples=[25])
    ] = _DEFAULT.render_steps
    render_cfg: Annotated[
        float | None,
        Field(ge=1, le=20, description="Guidance of the frames by the motion; 1 is none.", examples=[2.5]),
    ] = _DEFAULT.render_cfg
    relative_motion: Annotated[
        bool | None,
        Field(
            description="Move the portrait by the change of motion since a short silence before the sound."
        ),
    ] = _DEFAULT.relative_motion
    paste_back: Annotated[bool, Field(description="Return the whole picture instead of the face crop.")] = (
        _DEFAULT.paste_back
    )

    def configs(self, recommended: Recommended | None = None) -> tuple[SamplingConfig, RenderConfig]:
        """Return the options of the motion model and those of the renderer.

        Args:
            recommended: The model's recommendation, for the options that are None. By default the paper's options.

        Raises:
            ServiceError: An option is out of range.
        """
        try:
            options = AnimateOptions(**{name: getattr(self, name) for name in VideoOptions.model_fields})
            options = options.with_recommended(recommended or Recommended())
            return options.sampling(), options.rendering()
        except ValueError as error:
            raise bad_option(str(error)) from error


class VideoForm(VideoOptions):
    """Hold the form fields of `POST /v1/videos`."""

    image: Annotated[
        UploadFile,
        Field(description="The portrait: a picture with a face, such as a JPEG, PNG, WebP, AVIF or TIFF."),
    ]
    audio: Annotated[UploadFile, Field(description="The speech: any audio or video file that PyAV reads.")]
    stream: Annotated[
        bool,
        Field(description="True: a fragmented mp4, sent while it is made. False: a plain mp4 at the end."),
    ] = True


class StreamStart(VideoOptions):
    """Hold the fields of the first message on `/v1/stream`."""

    image: Annotated[str, Field(description="The portrait, base64.", max_length=64 * 2**20)]
    sample_rate_hz: Annotated[Literal[16_000], Field(description="Sample rate of the audio.")] = 16_000
    key: Annotated[str, Field(description="The API key, where the service needs one.")] = ""

"""Define the command `xactor dub`, which dubs footage."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from xactor.command_line import check_video_paths
from xactor.model_folder import BOX, located
from xactor.options import DubOptions

if TYPE_CHECKING:
    from xactor.pipeline import XActorPipeline


@dataclass(frozen=True, kw_only=True)
class Dub:
    """Let the main face of a video speak other words: every frame stays, and only lips and jaw, or the face, change."""

    video: Path
    """The footage: a video in any format that PyAV reads. HDR and interlaced video is refused."""
    audio: Path
    """The new speech: audio or video in any format that PyAV reads. It replaces the footage's sound."""
    output: Path
    """The .mp4 to write, with the size, frames and times of the footage. An existing file is replaced."""
    model: str = BOX
    """Model folder, with model_index.json. `box` is the model that comes with this package."""
    options: Annotated[DubOptions, tyro.conf.arg(name="")] = field(default_factory=DubOptions)
    """How the video is dubbed."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models compute. `auto` uses a GPU if there is one."""


def dub(command: Dub, load: Callable[[Path, str], "XActorPipeline"]) -> int:
    """Dub the video of the command. Return the exit status, 0.

    Args:
        command: The command.
        load: Loads the model, given its folder and the device.
    """
    check_video_paths((command.video, command.audio), command.output)
    pipeline = load(Path(located(command.model)), command.device)
    # Imported here, because these modules import torch.
    from xactor.footage import dub_footage

    started = time.monotonic()
    dubbing = dub_footage(pipeline, command.video, command.audio, command.output, command.options)
    for note in dubbing.notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{command.output}: {dubbing.changed} of {dubbing.frames} frames changed, in "
        f"{time.monotonic() - started:.1f} s"
    )
    return 0

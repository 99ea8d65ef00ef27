"""Define the arguments of the service, for `xactor-serve` and for Serve config files.

This module imports neither Ray nor torch, so that the command's help does not wait for them.
"""

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from xactor.model_folder import BOX, COMPONENTS, check_origins, located

# Maximum number of replicas of a model if their number follows the load.
MAX_AUTOSCALED_REPLICAS = 4

_MAX_PORT = 65_535
# Maximum number of replicas of a model that a user may ask for.
_MAX_REPLICAS = 64


class Limits(BaseModel):
    """Limits of one ingress replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_videos: int = Field(default=16, ge=1)
    """Maximum number of videos in progress, at least 1. More are refused with 503."""
    max_videos_per_key: int = Field(default=8, ge=1)
    """Maximum number of videos in progress for one API key, at least 1, including those whose upload has not ended.
    More are refused with 429. Clients without a key are told apart by their network addresses."""
    max_half_open: int = Field(default=64, ge=1)
    """Maximum number of requests that are arriving, at least 1: uploads in progress, and WebSockets before their first
    message. More are refused with 503. Clients that have not shown a needed key are counted apart."""
    max_upload_bytes: int = Field(default=256 * 2**20, ge=1)
    """Maximum size of one request's body, in bytes."""
    upload_timeout_s: float = Field(default=120, gt=0)
    """Seconds within which the whole body of a request must arrive."""
    first_message_timeout_s: float = Field(default=10, gt=0)
    """Seconds within which the first message of a WebSocket must arrive."""
    max_seconds: float = Field(default=3600, gt=0)
    """Maximum length of the audio of one video, in seconds."""
    decode_timeout_s: float = Field(default=60, gt=0)
    """Maximum time to decode one uploaded file, in seconds. A process that takes longer is killed."""
    decode_processes: int = Field(default=2, ge=1)
    """Number of processes that decode uploaded files."""
    video_timeout_s: float = Field(default=4 * 3600, gt=0)
    """Maximum time to make one whole video, in seconds."""
    idle_timeout_s: float = Field(default=30, gt=0)
    """Maximum time that a client may stay silent during an upload, or before the end of its sound on a WebSocket, in
    seconds."""


class Arguments(BaseModel):
    """Arguments of the application, `xactor_serving.app:build`."""

    model_config = ConfigDict(extra="forbid")

    model: str = BOX
    """Model folder, or its URI such as s3://bucket/model. Each node fetches a URI once. `box` is the model that comes
    with the package."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of both models. auto uses a GPU if the replica has one."""
    motion_replicas: int = Field(default=1, ge=0, le=_MAX_REPLICAS)
    """Number of replicas of the motion model, 0..64. With 0, their number follows the load, from 1 to 4."""
    render_replicas: int = Field(default=1, ge=0, le=_MAX_REPLICAS)
    """Number of replicas of the renderer, 0..64. With 0, their number follows the load, from 1 to 4."""
    cpus: float = Field(default=1, ge=0)
    """CPU cores that each replica of either model reserves."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that each replica of either model reserves. Below 1, replicas share a GPU."""
    motion_max_streams: int = Field(default=16, ge=1)
    """Maximum number of streams that a motion replica works on concurrently, at least 1. A stream is the motion of one
    video."""
    motion_max_batch: int = Field(default=8, ge=1)
    """Maximum number of streams in one forward pass of the motion model, at least 1."""
    render_max_windows: int = Field(default=8, ge=1)
    """Maximum number of windows that wait or are in progress at a render replica, at least 1. A window is a group of
    neighbouring frames that are rendered together."""
    render_max_batch: int = Field(default=4, ge=1)
    """Maximum number of windows in one forward pass of the renderer, at least 1. A CPU renders one at a time."""
    call_timeout_s: float = Field(default=600, gt=0)
    """Maximum time for one chunk of motion or one window of frames, in seconds, including the time that it waits at a
    replica."""
    retry_s: float = Field(default=60, gt=0)
    """Time during which a chunk or window is retried if its replica failed or was full, in seconds."""
    stuck_s: float = Field(default=60, gt=0)
    """Maximum time without progress, in seconds: for one step of denoising or one portrait. Ray Serve replaces a
    replica that takes longer."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the API from a browser, such as https://example.com. `*` means all. By default
    only the service's own page may."""
    limits: Limits = Limits()
    """Limits of one ingress replica."""


class ServeCommand(Arguments):
    """Hold the command line of `xactor-serve`."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 accepts connections from other machines."""
    port: int = Field(default=8000, ge=1, le=_MAX_PORT)
    """TCP port to listen on, 1..65535."""
    cpus: float = Field(default=0, ge=0)
    """CPU cores that each replica of either model reserves. 0 shares this machine's cores equally."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that each replica of either model reserves. 0 shares the GPUs equally, unless --device is cpu."""

    def check_model(self) -> None:
        """Check that a local model folder holds a model. A model at a URI is not checked.

        Raises:
            ValueError: The folder holds no model, or its components do not fit together.
        """
        model = located(self.model)
        if "://" not in model and not (Path(model) / "model_index.json").is_file():
            raise ValueError(f"{model}: not a model folder, model_index.json is missing")
        if "://" not in model:
            for note in check_origins(dict.fromkeys(COMPONENTS, model)):
                print(f"note: {note}", file=sys.stderr)

    def max_replicas(self) -> int:
        """Return the maximum number of replicas of both models together."""
        return sum(count or MAX_AUTOSCALED_REPLICAS for count in (self.motion_replicas, self.render_replicas))

    def arguments(self, *, cpus: float, gpus: float) -> Arguments:
        """Return the application's arguments.

        Args:
            cpus: CPU cores of each replica, used if the command sets none.
            gpus: GPUs of each replica, used if the command sets none.
        """
        values = self.model_dump(include=set(Arguments.model_fields))
        values |= {"cpus": self.cpus or cpus, "gpus": self.gpus or gpus}
        if "://" not in self.model and self.model != BOX:
            values["model"] = str(Path(self.model).resolve())
        return Arguments(**values)


def gpu_share(gpus: float, replicas: int) -> float:
    """Return the part of a GPU that each replica reserves so that all replicas fit; 0 without GPUs.

    Args:
        gpus: Number of GPUs of the cluster.
        replicas: Number of replicas of both models together.
    """
    count = int(gpus)
    if not count:
        return 0.0
    max_replicas_on_one_gpu = -(-replicas // count)  # ceiling division
    return 1 / max_replicas_on_one_gpu

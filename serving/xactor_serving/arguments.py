"""Arguments of the service: one definition for `xactor-serve` and for Serve config files.

This module imports pydantic alone, so that a command's help does not wait for Ray or torch.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DEMO_MODEL = Path("demo/model")
MAX_AUTOSCALED_REPLICAS = 4

_MAX_PORT = 65_535
_MAX_REPLICAS = 64


class Limits(BaseModel):
    """Limits of one ingress replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_videos: int = Field(default=16, ge=1)
    """Videos in progress at a time, at least 1. More are refused with 503."""
    max_videos_per_key: int = Field(default=8, ge=1)
    """Videos in progress at a time for one API key, at least 1. More are refused with 429. Clients without
    a key count as one."""
    max_upload_bytes: int = Field(default=256 * 2**20, ge=1)
    """Bytes of one request's body."""
    upload_timeout_s: float = Field(default=120, gt=0)
    """Seconds until the request's body must have arrived."""
    max_seconds: float = Field(default=3600, gt=0)
    """Seconds of audio of one video."""
    decode_timeout_s: float = Field(default=60, gt=0)
    """Seconds to decode one uploaded file. The process that takes longer is killed."""
    decode_processes: int = Field(default=2, ge=1)
    """Processes that decode uploaded files."""
    video_timeout_s: float = Field(default=4 * 3600, gt=0)
    """Seconds to make one whole video."""
    idle_timeout_s: float = Field(default=30, gt=0)
    """Seconds that a WebSocket client may stay silent."""


class Arguments(BaseModel):
    """Arguments of the application, `xactor_serving.app:build`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """Model folder, or its URI such as s3://bucket/model. Each node fetches a URI once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of both models. auto is a GPU where a replica has one."""
    motion_replicas: int = Field(default=1, ge=0, le=_MAX_REPLICAS)
    """Replicas of the motion model, 0..64. 0 scales with the load, from 1 to 4."""
    render_replicas: int = Field(default=1, ge=0, le=_MAX_REPLICAS)
    """Replicas of the renderer, 0..64. 0 scales with the load, from 1 to 4."""
    cpus: float = Field(default=1, ge=0)
    """CPU cores that each replica of either model reserves."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that each replica of either model reserves. Below 1, replicas share a GPU."""
    motion_max_streams: int = Field(default=16, ge=1)
    """Streams that a motion replica works on at a time, at least 1."""
    motion_max_batch: int = Field(default=8, ge=1)
    """Streams in one forward pass of the motion model, at least 1."""
    render_max_windows: int = Field(default=8, ge=1)
    """Windows that a render replica accepts at a time, waiting ones included, at least 1."""
    render_max_batch: int = Field(default=4, ge=1)
    """Windows in one forward pass of the renderer on a GPU, at least 1. A CPU renders one at a time."""
    call_timeout_s: float = Field(default=600, gt=0)
    """Seconds for one chunk or window, waiting included."""
    retry_s: float = Field(default=60, gt=0)
    """Seconds to retry a chunk or window whose replica failed or was full."""
    stuck_s: float = Field(default=60, gt=0)
    """Seconds of one forward pass after which Ray Serve replaces the replica."""
    limits: Limits = Limits()
    """Limits of one ingress replica."""


class ServeCommand(Arguments):
    """Hold the command line of `xactor-serve`."""

    model: str = str(DEMO_MODEL)
    """Model folder, or its URI such as s3://bucket/model. By default the model that `make demo` makes."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 accepts connections from other machines."""
    port: int = Field(default=8000, ge=1, le=_MAX_PORT)
    """TCP port to listen on, 1..65535."""
    cpus: float = Field(default=0, ge=0)
    """CPU cores that each replica of either model reserves. 0 shares this machine's cores equally."""
    gpus: float = Field(default=0, ge=0)
    """GPUs that each replica of either model reserves. 0 shares the GPUs equally, unless --device is cpu."""

    def check_model(self) -> None:
        """Check that the model's folder exists.

        Raises:
            ValueError: The folder holds no model.
        """
        if "://" in self.model or (Path(self.model) / "model_index.json").is_file():
            return
        hint = "; `make demo` makes one there" if self.model == str(DEMO_MODEL) else ""
        raise ValueError(f"{self.model}: not a model folder, model_index.json is missing{hint}")

    def max_replicas(self) -> int:
        """Return how many replicas of both models there may be."""
        return sum(count or MAX_AUTOSCALED_REPLICAS for count in (self.motion_replicas, self.render_replicas))

    def arguments(self, *, cpus: float, gpus: float) -> Arguments:
        """Return the application's arguments.

        Args:
            cpus: Cores of each replica, where the command does not say.
            gpus: GPUs of each replica, where the command does not say.
        """
        values = self.model_dump(include=set(Arguments.model_fields))
        values |= {"cpus": self.cpus or cpus, "gpus": self.gpus or gpus}
        if "://" not in self.model:
            values["model"] = str(Path(self.model).resolve())
        return Arguments(**values)


def gpu_share(gpus: float, replicas: int) -> float:
    """Return the part of a GPU that each replica reserves so that all of them fit.

    Args:
        gpus: GPUs of the cluster.
        replicas: Replicas of both models.
    """
    count = int(gpus)
    return 1 / -(-replicas // count) if count else 0.0

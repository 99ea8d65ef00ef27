"""Configure a bulk dubbing run. The fields are also the options of its command line."""

from dataclasses import dataclass, field
from typing import Literal

from xactor.model_folder import BOX
from xactor.options import AnimateOptions
from xactor_platform.bulk.pool import Pool


@dataclass(frozen=True, kw_only=True)
class DubPools:
    """Set the pool of actors of each stage. See `Pool`."""

    decode: Pool = field(default_factory=Pool)
    """Actors that decode a row's files. The stage `look`, which first checks all rows, has a pool of the same sizes."""
    motion: Pool = field(default_factory=Pool)
    """Actors that hold the motion model."""
    render: Pool = field(default_factory=lambda: Pool(max=16))
    """Actors that hold the renderer."""
    encode: Pool = field(default_factory=Pool)
    """Actors that encode rendered segments."""
    groups: bool = False
    """Whether decode and motion run only on nodes with the label ray.io/node-group=motion, and render and encode only
    on nodes with ray.io/node-group=render."""

    @property
    def min_cpus(self) -> float:
        """Return the number of CPUs of all pools together at their smallest sizes."""
        return sum(pool.min_cpus for pool in (self.decode, self.motion, self.render, self.encode))


@dataclass(frozen=True, kw_only=True)
class DubConfig:
    """Configure a bulk dubbing run.

    Raises:
        ValueError: a value is out of its bounds.
    """

    manifest: str
    """Path or URI of the file of rows: .jsonl, .csv or .parquet."""
    output: str
    """Folder or URI of the videos."""
    model: str = BOX
    """Folder or URI of a pipeline, which every node can read. `box` is the model that comes with the package."""
    options: AnimateOptions = field(default_factory=AnimateOptions)
    """Options of rows that do not set their own."""
    pools: DubPools = field(default_factory=DubPools)
    """Pools of actors."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device of the motion model and of the renderer. With gpu, each actor that holds one of the two has one GPU,
    unless its pool sets another number."""
    streams: int = 8
    """Number of videos whose motion one actor samples together, at least 1."""
    windows: int = 2
    """Number of windows that a render actor denoises together, at least 1. A window is a group of successive frames."""
    segment_windows: int = 16
    """Number of windows in a segment, at least 1. A longer video is cut into several segments, which several actors can
    render."""
    attempts: int = 3
    """Maximum number of attempts at a row whose workers die, at least 1."""
    decode_s: float = 120
    """Maximum seconds to decode one of a row's files, at least 1."""
    max_input_bytes: int = 2 << 30
    """Maximum size of each of a row's files, in bytes."""
    start_timeout_s: int = 900
    """Seconds to wait until the cluster has nodes with room for the smallest pools, at least 1."""

    def __post_init__(self):
        for name in ("streams", "windows", "segment_windows", "attempts", "decode_s", "start_timeout_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name):g}")
        # Both raise ValueError for options out of bounds.
        self.options.sampling()
        self.options.rendering()

    def gpus(self, pool: Pool) -> float:
        """Return the number of GPUs of each actor in the pool of a stage that holds a model."""
        return 0 if self.device == "cpu" else pool.gpus or 1

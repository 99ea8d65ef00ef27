"""What a dubbing run is made of."""

from dataclasses import dataclass, field
from typing import Literal

from xactor.options import AnimateOptions
from xactor.render import RenderConfig
from xactor_platform.bulk.pool import Pool


@dataclass(frozen=True, kw_only=True)
class Pools:
    """
    groups: decode and motion go to the nodes with the label ray.io/node-group=motion, render and encode to those of
        render.
    """

    decode: Pool = field(default_factory=Pool)
    motion: Pool = field(default_factory=Pool)
    render: Pool = field(default_factory=lambda: Pool(max=16))
    encode: Pool = field(default_factory=Pool)
    groups: bool = False

    @property
    def least_cpus(self) -> float:
        """What the smallest pools take."""
        return sum(p.min * p.cpus for p in (self.decode, self.motion, self.render, self.encode))


@dataclass(frozen=True, kw_only=True)
class DubConfig:
    """
    manifest: path or URI of rows: .jsonl, .csv or .parquet.
    output: folder or URI of the videos.
    model: a pipeline's folder or URI, which every node can read.
    options: of rows that say nothing else.
    device: cpu or gpu for both models; with gpu, each actor has one unless its pool says otherwise.
    streams: performances that a motion actor steps together. windows: that a render actor denoises together.
    segment_windows: a longer video is rendered in pieces of so many windows, by several actors.
    attempts: how often a row is tried whose workers die.
    decode_s: for one of a row's files. max_input_bytes: of one.
    start_timeout_s: how long to wait for nodes.
    """

    manifest: str
    output: str
    model: str = "demo/model"
    options: AnimateOptions = field(default_factory=AnimateOptions)
    pools: Pools = field(default_factory=Pools)
    device: Literal["cpu", "gpu"] = "cpu"
    streams: int = 8
    windows: int = 2
    segment_windows: int = 16
    attempts: int = 3
    decode_s: float = 120
    max_input_bytes: int = 2 << 30
    start_timeout_s: int = 900

    def __post_init__(self):
        bounds = ("streams", "windows", "segment_windows", "attempts", "decode_s", "start_timeout_s")
        for name in bounds:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name):g}")
        self.options.sampling()
        self.options.rendering()

    def gpus(self, pool: Pool) -> float:
        """Of an actor of one of the models' pools."""
        return 0 if self.device == "cpu" else pool.gpus or 1

    def segment_frames(self, rendering: RenderConfig) -> int:
        return self.segment_windows * rendering.stride

"""What a curation run is made of."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from xactor_platform.bulk.pool import Pool

SHORTEST_S, SHORT_S, LONGEST_S = (
    1.0,
    10.0,
    60.0,
)  # Paper 4.1: short clips of 1 to 10 s, long ones of 10 to 60 s


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What a clip must be. Ours, as the paper names only lip-sync.

    least_crop_px: the side of the face's square in the video: 256 is enlarged twofold.
    most_blur, most_occluded: see `Measures`; 1 lets all pass. What covers a face is seen by what it changes: a dark
        thing well, a hand of the face's own colour seldom.
    least_speech_db: music and noise under speech leave less of its coming and going; 0 lets all pass.
    least_confidence: SyncNet's. If not given, 3 for published weights, and for a small model half way between what its
        own report says of true and of another's sound.
    """

    least_crop_px: int = 256
    most_blur: float = 0.7
    most_occluded: float = 0.15
    least_speech_db: float = 6.0
    least_confidence: float | None = None

    def __post_init__(self):
        if self.least_crop_px < 32:
            raise ValueError(f"least_crop_px must be >= 32, got {self.least_crop_px}")
        for name in ("most_blur", "most_occluded"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be within 0..1, got {getattr(self, name):g}")
        if self.least_speech_db < 0:
            raise ValueError(f"least_speech_db must be >= 0, got {self.least_speech_db:g}")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a file may take of a machine; what takes more is named in the report.

    most_bytes: of a file. most_s: of its length. most_pixels: of a frame.
    memory_gib: of the process that decodes it.
    patience: seconds for each second of video that a stage works on, and 60 more.
    """

    most_bytes: int = 64 << 30
    most_s: float = 2 * 3600
    most_pixels: int = 8192 * 4320
    memory_gib: float = 4
    patience: float = 4

    def __post_init__(self):
        for name, least in (
            ("most_bytes", 1),
            ("most_s", 1),
            ("most_pixels", 1),
            ("memory_gib", 1),
            ("patience", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name):g}")


@dataclass(frozen=True, kw_only=True)
class CuratePools:
    """Actors of each stage."""

    probe: Pool = field(default_factory=lambda: Pool(max=2, cpus=0.1))
    scan: Pool = field(default_factory=lambda: Pool(max=16, cpus=0.2))
    track: Pool = field(default_factory=lambda: Pool(max=64, cpus=0.5))
    cut: Pool = field(default_factory=lambda: Pool(max=32, cpus=0.4))
    sync: Pool = field(default_factory=lambda: Pool(max=16, cpus=0.4))
    write: Pool = field(default_factory=lambda: Pool(max=8, cpus=0.1))

    @property
    def least_cpus(self) -> float:
        """What the smallest pools take."""
        return sum(pool.min * pool.cpus for pool in vars(self).values())


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """
    videos: folder or URI of videos, and of those below it.
    output: folder or URI of the shards, their index and the report.
    dataset, metadata: with another dataset than `folder`, which videos and parts of them are looked at is read from its
        published file or folder; nothing is downloaded. ravdess needs none.
    syncnet: a folder of jobs/train_syncnet.py, or the published syncnet_v2.model; `none` leaves the sound unjudged.
    device: of SyncNet; with gpu each of its actors has one.
    size_px: the side of the crops.
    held_out, seed: the part of the speakers whose clips go to the split `test`, and which.
    videos_per_shard, bytes_per_shard: what a shard is made of at most.
    max_failed: the part of the videos that may be unreadable before the run stops.
    attempts: how often what dies with its worker is tried.
    start_timeout_s: how long to wait for nodes.
    """

    videos: str = "demo/corpus/clips"
    output: str = "demo/curated"
    dataset: Literal["folder", "hdtf", "celebv-hq", "ravdess"] = "folder"
    metadata: str | None = None
    syncnet: str = "demo/syncnet"
    device: Literal["cpu", "gpu"] = "cpu"
    size_px: int = 512
    held_out: float = 0.0
    seed: int = 0
    videos_per_shard: int = 64
    bytes_per_shard: int = 1 << 30
    max_failed: float = 0.5
    attempts: int = 3
    start_timeout_s: int = 900
    gates: Gates = field(default_factory=Gates)
    bounds: Bounds = field(default_factory=Bounds)
    pools: CuratePools = field(default_factory=CuratePools)

    def __post_init__(self):
        for name in ("videos_per_shard", "bytes_per_shard", "attempts", "start_timeout_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.size_px < 32 or self.size_px % 2:
            raise ValueError(f"size_px must be even and >= 32, got {self.size_px}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be within 0..1, got {self.held_out:g}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed must be within 0..1, got {self.max_failed:g}")

    def decisive(self, syncnet: dict[str, Any]) -> dict[str, Any]:
        """What the clips depend on, beside the videos: the same gives the same shards."""
        names = ("dataset", "size_px", "held_out", "seed", "videos_per_shard", "bytes_per_shard")
        bounds = {"most_s": self.bounds.most_s, "most_pixels": self.bounds.most_pixels}
        chosen = {name: getattr(self, name) for name in names}
        return {**chosen, "gates": asdict(self.gates), "bounds": bounds, "syncnet": syncnet}

"""Configure a curation run. The fields are also the options of its command line."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from xactor_platform.bulk.pool import Pool
from xactor_platform.data.index import CONTROLS, LANDMARKS

# Paper 4.1: short clips of 1 to 10 s, long ones of 10 to 60 s.
SHORTEST_S, SHORT_S, LONGEST_S = 1.0, 10.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Set the gates that a clip must pass. Ours, because the paper names only lip-sync.

    Raises:
        ValueError: a value is out of its bounds.
    """

    min_crop_px: int = 256
    """Smallest side of the face's square in the video, at least 32. A square of 256 px is enlarged twofold."""
    max_blur: float = 0.7
    """Maximum blur, 0 to 1. 1 lets every clip pass."""
    max_occluded: float = 0.15
    """Largest fraction of frames in which something covers the face, 0 to 1. 1 lets every clip pass. A cover shows
    as a change of the picture: a dark object is nearly always found, a hand in the color of the face seldom."""
    min_speech_db: float = 6.0
    """Smallest range of the sound's level, in dB. Music and noise under speech lower it. 0 lets every clip pass."""
    min_confidence: float | None = None
    """Smallest confidence of SyncNet. The default for published weights is 3. The default for a small model is the mean
    of two confidences in its own report: with the clip's sound, and with another clip's sound."""

    def __post_init__(self):
        if self.min_crop_px < 32:
            raise ValueError(f"min_crop_px must be >= 32, got {self.min_crop_px}")
        for name in ("max_blur", "max_occluded"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be within 0..1, got {getattr(self, name):g}")
        if self.min_speech_db < 0:
            raise ValueError(f"min_speech_db must be >= 0, got {self.min_speech_db:g}")


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Limit the resources that one video may use. The report names the videos that exceed a limit.

    Raises:
        ValueError: a value is out of its bounds.
    """

    max_s: float = 2 * 3600
    """Maximum length of a video in seconds, at least 1."""
    max_pixels: int = 8192 * 4320
    """Maximum number of pixels in a frame, at least 1."""
    memory_gib: float = 4
    """Maximum memory of a process that decodes, in GiB, at least 1."""
    timeout_factor: float = 4
    """Maximum seconds that a stage may take for each second of video, in addition to 60 s. At least 0."""

    def __post_init__(self):
        for name, bound in (("max_s", 1), ("max_pixels", 1), ("memory_gib", 1), ("timeout_factor", 0)):
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be >= {bound}, got {getattr(self, name):g}")


@dataclass(frozen=True, kw_only=True)
class CurationPools:
    """Set the pools of actors. See `Pool`."""

    probe: Pool = field(default_factory=lambda: Pool(max=2, cpus=0.1))
    """Actors that check whether a video can be decoded."""
    scan: Pool = field(default_factory=lambda: Pool(max=16, cpus=0.2))
    """Actors that cut videos into pieces."""
    track: Pool = field(default_factory=lambda: Pool(max=64, cpus=0.5))
    """Actors that follow faces."""
    cut: Pool = field(default_factory=lambda: Pool(max=32, cpus=0.4))
    """Actors that cut out face squares and apply the gates."""
    sync: Pool = field(default_factory=lambda: Pool(max=16, cpus=0.4))
    """Actors that hold SyncNet."""
    write: Pool = field(default_factory=lambda: Pool(max=8, cpus=0.1))
    """Actors that save clips."""

    @property
    def min_cpus(self) -> float:
        """CPUs of all pools at their smallest sizes."""
        return sum(pool.min_cpus for pool in vars(self).values())


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """Configure a curation run.

    Raises:
        ValueError: a value is out of its bounds.
    """

    videos: str = "demo/corpus/clips"
    """Folder or URI of videos. Its subfolders are searched too."""
    output: str = "demo/curated"
    """Folder or URI of the shards, their index and the report."""
    dataset: Literal["folder", "hdtf", "celebv-hq", "ravdess"] = "folder"
    """Dataset that the videos belong to. `folder` takes all files; the others take the videos and parts of videos that
    the dataset names. Nothing is downloaded."""
    metadata: str | None = None
    """Published file or folder of the dataset. hdtf and celebv-hq need it."""
    syncnet: str = "demo/syncnet"
    """SyncNet: a folder that jobs/train_syncnet.py wrote, or the published syncnet_v2.model. `none` skips lip-sync."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device of SyncNet. With gpu, each of its actors has one GPU unless `pools.sync.gpus` sets another number."""
    size_px: int = 512
    """Side of the clips, even and at least 32."""
    held_out: float = 0.0
    """Fraction of the speakers whose clips go to the split `test`, at least 0 and below 1."""
    seed: int = 0
    """Seed of the choice of speakers."""
    videos_per_shard: int = 64
    """Maximum number of videos in a group, at least 1. Each group becomes shards of its own."""
    bytes_per_shard: int = 1 << 30
    """Bytes after which a shard is complete, at least 1."""
    max_input_bytes: int = 64 << 30
    """Maximum size of a video file in bytes, at least 1."""
    max_failed: float = 0.5
    """Largest fraction of unreadable videos, 0 to 1. The run stops if more are unreadable."""
    attempts: int = 3
    """Maximum number of attempts at work whose workers die, at least 1."""
    start_timeout_s: int = 900
    """Seconds to wait for nodes, at least 1."""
    gates: Gates = field(default_factory=Gates)
    """Gates of the clips."""
    bounds: Bounds = field(default_factory=Bounds)
    """Bounds of the videos."""
    pools: CurationPools = field(default_factory=CurationPools)
    """Pools of actors."""

    def __post_init__(self):
        for name in ("videos_per_shard", "bytes_per_shard", "max_input_bytes", "attempts", "start_timeout_s"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.size_px < 32 or self.size_px % 2:
            raise ValueError(f"size_px must be even and >= 32, got {self.size_px}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be >= 0 and < 1, got {self.held_out:g}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed must be within 0..1, got {self.max_failed:g}")

    def decisive(self, syncnet: dict[str, Any]) -> dict[str, Any]:
        """Return the settings that, together with the videos, determine the content of the shards.

        Args:
            syncnet: see `syncnet_facts`.
        """
        names = ("dataset", "size_px", "held_out", "seed", "videos_per_shard", "bytes_per_shard")
        bounds = {"max_s": self.bounds.max_s, "max_pixels": self.bounds.max_pixels}
        chosen = {name: getattr(self, name) for name in names}
        # Outputs of versions that wrote other members cannot be continued.
        chosen["members"] = [CONTROLS, LANDMARKS]
        return {**chosen, "gates": asdict(self.gates), "bounds": bounds, "syncnet": syncnet}

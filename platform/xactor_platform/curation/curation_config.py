"""Configure a curation run. The fields are also the options of its command line."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from xactor_platform.bulk.pool import Pool
from xactor_platform.data.index import CONTROLS, LANDMARKS

# Bounds of a clip's length in seconds. Paper 4.1: short clips of 1 to 10 s, long ones of 10 to 60 s.
SHORTEST_S, SHORT_S, LONGEST_S = 1.0, 10.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Set the gates: the bounds of the quality measures that a clip must meet to be kept.

    The gates are ours, because the paper names only lip-sync.

    Raises:
        ValueError: a value is out of its bounds.
    """

    min_crop_px: int = 256
    """Smallest side, in pixels of the video, of the square around the face, at least 32. If clips have the default
    side of 512 px (`size_px`), a square of 256 px is enlarged twofold."""
    max_blur: float = 0.7
    """Maximum blur, 0 (sharp) to 1. 1 lets every clip pass."""
    max_occluded: float = 0.15
    """Largest fraction of frames in which something covers the face, 0 to 1. 1 lets every clip pass. A cover is found
    by its color or brightness, which differ from those of the skin. A hand in the color of the face is seldom found."""
    max_outside: float = 0.3
    """Largest fraction of the square around the face that may lie outside the picture, 0 to 1. The square is moved into
    the picture, so no clip shows invented pixels, but the face is then off the middle of the clip."""
    max_yaw: float = 60.0
    """Largest median angle by which the head is turned to the left or right, 0 to 90 degrees."""
    max_roll: float = 45.0
    """Largest median angle by which the head is tilted in the picture's plane, 0 to 180 degrees. A video that lies on
    its side is dropped."""
    min_lips: float = 0.003
    """Smallest movement of the lips: the standard deviation of their opening. The opening is about 0 for closed lips
    and 1 for a wide-open mouth. A still picture under speech moves less. 0 lets every clip pass."""
    min_speech_db: float = 6.0
    """Smallest difference between the loud and the quiet parts of a clip's sound, in dB. Music and noise under speech
    reduce the difference. 0 lets every clip pass."""
    max_copied: float = 0.5
    """Largest fraction of a clip that other kept clips may hold already, 0 to 1: a copy that was encoded again, resized
    or trimmed. 1 lets every clip pass. Of identical files, only one is examined in any case."""
    min_confidence: float | None = None
    """Smallest confidence of SyncNet, which judges lip-sync. The default for published weights is 3. The default for a
    small model is the mean of two confidences in the model's own report: with the clip's sound, and with another
    clip's sound."""

    def __post_init__(self):
        if self.min_crop_px < 32:
            raise ValueError(f"min_crop_px must be >= 32, got {self.min_crop_px}")
        bounds = {
            "max_blur": 1,
            "max_occluded": 1,
            "max_copied": 1,
            "max_outside": 1,
            "max_yaw": 90,
            "max_roll": 180,
        }
        for name, bound in bounds.items():
            if not 0 <= getattr(self, name) <= bound:
                raise ValueError(f"{name} must be within 0..{bound}, got {getattr(self, name):g}")
        for name in ("min_speech_db", "min_lips"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name):g}")


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
    """Maximum memory of each process that decodes videos, in GiB, at least 1."""
    timeout_factor: float = 4
    """A stage may take 60 s, plus this number of seconds for each second of video. At least 0."""

    def __post_init__(self):
        for name, bound in (("max_s", 1), ("max_pixels", 1), ("memory_gib", 1), ("timeout_factor", 0)):
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be >= {bound}, got {getattr(self, name):g}")


@dataclass(frozen=True, kw_only=True)
class CurationPools:
    """Set the size of each stage's pool of actors, and the resources of each actor. See `Pool`."""

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
    recognise: Pool = field(default_factory=lambda: Pool(max=32, cpus=0.2))
    """Actors that recognise copies and faces."""
    write: Pool = field(default_factory=lambda: Pool(max=8, cpus=0.1))
    """Actors that save clips."""

    @property
    def min_cpus(self) -> float:
        """Return the CPUs of all pools at their smallest sizes."""
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
    """File or folder that the dataset's authors published and that lists its videos. hdtf and celebv-hq need it. For
    `folder`: a CSV file with the columns `file`, the path below the folder of videos, and `speaker`. Without it, the
    speaker of a video is the first folder below the one that holds all videos, or the file's name if it lies there."""
    syncnet: str = "demo/syncnet"
    """SyncNet: a folder that jobs/train_syncnet.py wrote, or the published syncnet_v2.model. `none` skips lip-sync."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Device of SyncNet. With gpu, each of its actors has one GPU unless `pools.sync.gpus` sets another number."""
    identity: str = "auto"
    """Model that recognises people by their faces: a TorchScript file that follows ArcFace's convention; `none`: people
    are their speakers; `auto`: dlib's network, or none if it is not installed (pip install '.[identity]')."""
    min_similarity: float | None = None
    """Smallest mean cosine between the faces of one person's clips, -1 to 1. The default is 0.95 for dlib's
    network and 0.4 for others."""
    size_px: int = 512
    """Side of the clips' frames in pixels, even and at least 32."""
    held_out: float = 0.0
    """Fraction of the people whose clips go to the split `test`, at least 0 and below 1."""
    seed: int = 0
    """Seed of the choice of held-out people."""
    videos_per_shard: int = 64
    """Maximum number of videos in a group, at least 1. Each group becomes shards of its own."""
    bytes_per_shard: int = 1 << 30
    """Bytes after which a shard is complete, at least 1."""
    max_input_bytes: int = 64 << 30
    """Maximum size of a video file in bytes, at least 1."""
    max_failed: float = 0.5
    """Largest fraction of videos that may fail, as a whole or in part, 0 to 1. A video fails if it cannot be examined,
    for example because it is unreadable. The run stops if more videos fail."""
    attempts: int = 3
    """Maximum number of times that a video is tried if the workers that process it die, at least 1."""
    start_timeout_s: int = 900
    """Seconds to wait for nodes with room for the first actor of every pool, at least 1."""
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
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(f"min_similarity must be within -1..1, got {self.min_similarity:g}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"max_failed must be within 0..1, got {self.max_failed:g}")

    @property
    def speakers_are_listed(self) -> bool:
        """Return whether a list or the dataset states the speakers. Otherwise they are guessed from folders."""
        return self.dataset != "folder" or self.metadata is not None

    def decisive(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the settings that, together with the videos, determine the content of the shards, by name.

        Args:
            facts: properties of the models and the videos on which the shards depend, by name.
        """
        names = ("dataset", "size_px", "held_out", "seed", "videos_per_shard", "bytes_per_shard")
        bounds = {"max_s": self.bounds.max_s, "max_pixels": self.bounds.max_pixels}
        chosen = {name: getattr(self, name) for name in names}
        # Members (files) of a clip in the shards. An output of a version that wrote other members cannot be continued.
        chosen["members"] = [CONTROLS, LANDMARKS]
        return {**chosen, "gates": asdict(self.gates), "bounds": bounds, **facts}

"""What tests share: one Ray cluster of their own, started by the first test that asks for it, and small videos."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

# Of this throwaway cluster only: no token to hand to every process. Read when Ray is first imported.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Nothing leaves the machine, and no thread outlives a test session to report usage.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's own announcement about accelerators it will stop hiding, a FutureWarning otherwise.
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

RAY_CPUS = 4


# Rooms whose tests share clusters, services or trained models, the longest first. Tests of one room run in one worker.
ROOMS = (
    "tests/xactor_platform/training",
    "tests/xactor_serving",
    "tests/xactor_platform/dubbing",
    "tests/xactor_platform/curation",
    "tests/jobs",
    "tests/xactor_platform/precompute",
    "tests/infra",
    "tests/xactor_platform/evaluation",
)
CLUSTER_FIXTURES = {"ray_cluster", "bare_cluster"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests for parallel workers, and mark those that start or join a Ray cluster."""
    rank = {}
    for item in items:
        path = item.path.relative_to(config.rootpath).as_posix()
        room = next((n for n, room in enumerate(ROOMS) if path.startswith(f"{room}/")), len(ROOMS))
        rank[item] = room
        item.add_marker(pytest.mark.xdist_group(ROOMS[room] if room < len(ROOMS) else path))
        if CLUSTER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)
    items.sort(key=rank.__getitem__)


def pytest_configure(config: pytest.Config) -> None:
    # Ray Serve's own configuration classes, on a pydantic that is newer than they are.
    config.addinivalue_line(
        "filterwarnings", "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
    )
    # Ray Data's own DataContext sets options that Ray Data has deprecated.
    config.addinivalue_line("filterwarnings", r"ignore::DeprecationWarning:ray\.data\.context")
    # It also leaves each execution's log file to the garbage collector.
    log = "Exception ignored in. <_io.FileIO name=.*/logs/ray-data/"  # a filter's fields end at colons
    config.addinivalue_line("filterwarnings", f"ignore:{log}:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a cluster with four CPUs, which may be more than the machine has."""
    import ray

    from xactor_platform.cluster.local import free_port

    # Ray Train asks the dashboard about its own end, and where it finds none waits 12 s, after every training. Its
    # processes are told where it is, and not left to find the file of some cluster that is gone.
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{port}")
        context = ray.init(
            address="local",
            num_cpus=RAY_CPUS,
            dashboard_port=port,
            object_store_memory=512 << 20,
            logging_level=logging.WARNING,
        )
    yield context.address_info["gcs_address"]
    ray.shutdown()


def make_pictures(frames: int, seed: int = 0, side: int = 32) -> np.ndarray:
    """A disc that moves over a background of its own: uint8 [frames, side, side, 3]."""
    generator = np.random.default_rng(seed)
    back, front = generator.integers(40, 216, (2, 3))
    speed, phase = generator.uniform(0.1, 0.4), generator.uniform(0, 6)
    y, x = np.mgrid[:side, :side]
    middle = side / 2 + side / 4 * np.sin(speed * np.arange(frames)[:, None, None] + phase)
    inside = (x - middle) ** 2 + (y - middle) ** 2 < (side / 5) ** 2  # [frames, side, side]
    return np.where(inside[..., None], front, back).astype(np.uint8)


@pytest.fixture
def bucket() -> Iterator[str]:
    """A new bucket of an S3 server here: a URI with `{}` for the folder's name."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    # Its name is new: all of moto's servers in a process have the same buckets.
    yield f"s3://test:test@bucket-{uuid.uuid4().hex}/{{}}?{query}"
    server.stop()


@pytest.fixture(scope="session")
def video_corpus(tmp_path_factory) -> Callable[..., tuple[str, list[Path]]]:
    """Writes videos of the given lengths into shards. Returns the shards' folder and the videos, `<split>-<number>`."""

    def write(
        lengths: Sequence[int], split: str = "train", samples_per_shard: int = 8, folder: str | None = None
    ) -> tuple[str, list[Path]]:
        from xactor.media import write_video
        from xactor_platform.data.shards import ShardWriter

        clips = tmp_path_factory.mktemp("clips")
        folder = folder or str(tmp_path_factory.mktemp("corpus") / "videos")
        with ShardWriter(folder, split, samples_per_shard=samples_per_shard) as writer:
            for i, frames in enumerate(lengths):
                clip = clips / f"{split}-{i:04d}.mp4"
                sound = np.zeros(frames * 640, np.float32)
                write_video(
                    clip, make_pictures(frames, seed=i if split == "train" else 1000 + i), samples=sound
                )
                meta = {"frames": frames, "fps": 25, "speaker": f"s{i % 3}"}
                writer.write(clip.stem, {"mp4": clip.read_bytes(), "json": meta})
        return folder, sorted(clips.iterdir())

    return write

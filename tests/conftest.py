"""Provide what all tests share: one Ray cluster, started by the first test that needs it, and small videos."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pytest

# The cluster is thrown away, so its processes need no token. Ray reads this when it is first imported.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Nothing leaves the machine, and no thread outlives a test session to report usage.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray announces that it will stop hiding accelerators, otherwise with a FutureWarning.
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# Ray's workers are as urgent as the tests that run next to them. Ray gives them the lowest priority otherwise.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
if "PYTEST_XDIST_WORKER" in os.environ:
    # A worker has one processor. More threads would wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"

# Hypothesis would fail an example that takes over 200 ms, which depends on what else the machine does.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

RAY_CPUS = 4


# Rooms whose tests share services or trained models. Their tests run together. Those of infra are first, because
# Prometheus must see the metrics of processes that live for seconds: a cluster that ran for half an hour is too slow.
ROOMS = (
    "tests/infra",
    "tests/xactor_platform/training",
    "tests/xactor_serving",
    "tests/xactor_platform/dubbing",
    "tests/xactor_platform/curation",
    "tests/jobs",
    "tests/xactor_platform/precompute",
    "tests/xactor_platform/evaluation",
)
CLUSTER_FIXTURES = {"ray_cluster", "bare_cluster"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that start or join a Ray cluster, and group the tests for parallel workers.

    One worker runs all tests that share a cluster, first and one after another. Tests that start clusters of their own
    come last, one after another too, so that at most two clusters run at the same time. This hook runs first:
    pytest-xdist reads the groups in its own hook.
    """
    order = {}
    for item in items:
        path = item.path.relative_to(config.rootpath).as_posix()
        room = next((n for n, room in enumerate(ROOMS) if path.startswith(f"{room}/")), len(ROOMS))
        if CLUSTER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.cluster)
        fixtures = set(getattr(item, "fixturenames", ()))
        if "ray_cluster" in fixtures:
            turn, group = 0, "cluster"
        elif item.get_closest_marker("cluster"):
            turn, group = 2, "own clusters"
        else:
            turn, group = 1, ROOMS[room] if room < len(ROOMS) else path
        item.add_marker(pytest.mark.xdist_group(group))
        order[item] = (turn, room)
    items.sort(key=order.__getitem__)


def pytest_configure(config: pytest.Config) -> None:
    # Ray Serve's configuration classes are older than the installed pydantic.
    config.addinivalue_line(
        "filterwarnings", "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
    )
    # Ray Data's DataContext sets options that Ray Data has deprecated.
    config.addinivalue_line("filterwarnings", r"ignore::DeprecationWarning:ray\.data\.context")
    # It also leaves each execution's log file to the garbage collector. A filter's fields end at colons.
    log = "Exception ignored in. <_io.FileIO name=.*/logs/ray-data/"
    config.addinivalue_line("filterwarnings", f"ignore:{log}:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Start a cluster that declares four CPUs, which may be more than the machine has, and return its address."""
    import ray

    from xactor_platform.cluster.local import free_port

    # Ray Train asks the dashboard when a training ends, and waits 12 s if it finds none. Without the address its
    # processes would read it from a file that a cluster that has ended may have left.
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
    """Draw a disc that moves over a background of another colour, uint8 [frames, side, side, 3]."""
    generator = np.random.default_rng(seed)
    back, front = generator.integers(40, 216, (2, 3))
    speed, phase = generator.uniform(0.1, 0.4), generator.uniform(0, 6)
    y, x = np.mgrid[:side, :side]
    middle = side / 2 + side / 4 * np.sin(speed * np.arange(frames)[:, None, None] + phase)
    inside = (x - middle) ** 2 + (y - middle) ** 2 < (side / 5) ** 2  # [frames, side, side]
    return np.where(inside[..., None], front, back).astype(np.uint8)


@pytest.fixture
def bucket() -> Iterator[str]:
    """Start an S3 server, and return the URI of a new bucket with `{}` in place of the folder's name."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    query = f"scheme=http&endpoint_override={host}:{port}&region=us-east-1&allow_bucket_creation=true"
    # The name is unique, because all of moto's servers in a process share their buckets.
    yield f"s3://test:test@bucket-{uuid.uuid4().hex}/{{}}?{query}"
    server.stop()


@pytest.fixture(scope="session")
def video_corpus(tmp_path_factory) -> Callable[..., tuple[str, list[Path]]]:
    """Return a function that writes videos of given lengths into shards.

    It returns the shards' folder and the videos, `<split>-<number>.mp4`.
    """

    def write(
        lengths: Sequence[int],
        split: str = "train",
        samples_per_shard: int = 8,
        folder: str | None = None,
        tracks: bool = False,
    ) -> tuple[str, list[Path]]:
        from xactor.faces.landmarks import LANDMARK_FRAMES, MEAN_LANDMARKS, landmark_frames
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
                # Number 0 of a frame's controls is the frame's number, which the place of landmark 5 also contains.
                track = np.zeros((frames, 57), np.float32)
                track[:, 0] = np.arange(frames)
                landmarks = np.tile(MEAN_LANDMARKS, (LANDMARK_FRAMES, 1, 1))
                landmarks[:, 5, 0] = landmark_frames(frames) / 1000
                more = {"controls.npy": track, "landmarks.npy": landmarks} if tracks else {}
                writer.write(clip.stem, {"mp4": clip.read_bytes(), **more, "json": meta})
        return folder, sorted(clips.iterdir())

    return write

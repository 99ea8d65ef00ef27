"""What tests share: one Ray cluster of their own, started by the first test that asks for it."""

import logging
import os
from collections.abc import Iterator

import pytest

# Of this throwaway cluster only: no token to hand to every process. Read when Ray is first imported.
os.environ["RAY_AUTH_MODE"] = "disabled"
# Nothing leaves the machine, and no thread outlives a test session to report usage.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's own announcement about accelerators it will stop hiding, a FutureWarning otherwise.
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

RAY_CPUS = 4


def pytest_configure(config: pytest.Config) -> None:
    # Ray Data's own DataContext sets options that Ray Data has deprecated.
    config.addinivalue_line("filterwarnings", r"ignore::DeprecationWarning:ray\.data\.context")
    # It also leaves each execution's log file to the garbage collector.
    log = "Exception ignored in. <_io.FileIO name=.*/logs/ray-data/"  # a filter's fields end at colons
    config.addinivalue_line("filterwarnings", f"ignore:{log}:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of a cluster with four CPUs, which may be more than the machine has."""
    import ray

    context = ray.init(
        address="local",
        num_cpus=RAY_CPUS,
        include_dashboard=False,
        object_store_memory=512 << 20,
        logging_level=logging.WARNING,
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()

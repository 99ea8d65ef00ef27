"""Provide the service as users reach it: Ray Serve, a small random model, a drawn portrait and noise."""

from collections.abc import Iterator

import numpy as np
import pytest
from client import Service, delete, png, run

from xactor.controls import CONTROL_COUNT


@pytest.fixture(scope="session")
def face() -> bytes:
    from xactor_platform.demo_corpus.identity import held_out_identities, render_frame

    return png(render_frame(held_out_identities()[0], np.zeros(CONTROL_COUNT, np.float32), 256))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    from pipelines import small_pipeline

    folder = tmp_path_factory.mktemp("model")
    small_pipeline().save_pretrained(folder)
    return str(folder)


# The scope is the package and not the session, because other tests need the cluster's CPUs.
@pytest.fixture(scope="package")
def serving(ray_cluster) -> Iterator[str]:
    """Start Ray Serve on a free port."""
    from ray import serve

    from xactor_platform.cluster.local import free_port

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="package")
def service(serving, model) -> Iterator[Service]:
    limits = {"max_seconds": 20, "upload_timeout_s": 5, "idle_timeout_s": 5, "max_videos": 8}
    yield run(serving, model, "plain", render_replicas=2, limits=limits)
    delete("plain")


@pytest.fixture(scope="package")
def locked(serving, model) -> Iterator[Service]:
    """Start a service that needs a key, and makes one video at a time for each key."""
    limits = {"max_videos_per_key": 1, "idle_timeout_s": 5, "first_message_timeout_s": 2, "max_half_open": 8}
    yield run(
        serving, model, "locked", keys="sesame, open", limits=limits, cors_origins=("https://app.example",)
    )
    delete("locked")

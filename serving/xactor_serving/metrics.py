"""Define the metrics of the service.

Ray's agent on each node collects the metrics of the node's processes. `GET /metrics`, sent to any ingress replica,
shows the metrics of all nodes.
"""

import asyncio
from collections import Counter as Count
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import aiohttp
import ray
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from ray.serve.metrics import Counter, Gauge, Histogram

from xactor_serving.errors import ServiceError

PREFIX = "xactor_serve_"
# Bounds of the histograms' buckets.
_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
_FPS = [1, 5, 12.5, 25, 50, 100, 250, 1000]
_BATCH_SIZES: list[float] = [1, 2, 4, 8, 16, 32]
_AGENT_TIMEOUT_S = 5
# Labels that `GET /metrics` shows: the metrics' own ones, and those that tell replicas apart.
_LABELS = frozenset(["of", "code", "le", "deployment", "replica"])


class _Metrics:
    """Hold the metrics of one process.

    Create an instance only inside a replica, because Ray labels the metrics with the name of the replica.
    """

    def __init__(self):
        # Chunks or windows that are waiting or in progress, by deployment.
        self._queued: Count[str] = Count()

        def histogram(
            name: str, help_text: str, bounds: list[float], tags: tuple[str, ...] = ()
        ) -> Histogram:
            return Histogram(PREFIX + name, help_text, bounds, tags)  # pyright: ignore[reportArgumentType]

        self.first_fragment_s = histogram(
            "first_fragment_seconds", "Seconds from a request to its first bytes of video", _SECONDS
        )
        self.chunk_s = histogram(
            "chunk_seconds", "Seconds of a chunk of motion, from job to last latents", _SECONDS
        )
        self.window_s = histogram("window_seconds", "Seconds of a window, from job to frames", _SECONDS)
        self.video_fps = histogram("video_frames_per_second", "Frames a second of a finished video", _FPS)
        # The label `of` is the name of a deployment, `motion` or `render`.
        self.batch_size = histogram(
            "batch_size", "Streams or windows in one forward pass", _BATCH_SIZES, ("of",)
        )
        self.queue = Gauge(
            PREFIX + "queue_depth", "Chunks or windows in a replica, waiting or in progress", ("of",)
        )
        self.references = Counter(
            PREFIX + "references_computed_total", "References of portraits that were not cached"
        )
        self.windows = Counter(PREFIX + "windows_total", "Windows rendered")
        self.errors = Counter(PREFIX + "errors_total", "Error answers", ("code",))
        self.retries = Counter(
            PREFIX + "retries_total", "Retries after a replica failed or was full", ("of",)
        )
        self.open_videos = Gauge(PREFIX + "videos_open", "Videos in progress")

    @contextmanager
    def queued(self, deployment: str) -> Iterator[None]:
        """Count one chunk or window in a deployment's queue depth while the `with` block runs."""
        self._queued[deployment] += 1
        self.queue.set(self._queued[deployment], {"of": deployment})
        try:
            yield
        finally:
            self._queued[deployment] -= 1
            self.queue.set(self._queued[deployment], {"of": deployment})


def count_error(error: ServiceError) -> ServiceError:
    """Count an error in the metrics and return it."""
    metrics().errors.inc(tags={"code": error.code})
    return error


@cache
def metrics() -> _Metrics:
    """Return the metrics of this process."""
    return _Metrics()


async def scrape() -> bytes:
    """Return the application's metrics of all nodes, in Prometheus' text format."""
    nodes = await asyncio.to_thread(ray.nodes)
    urls = [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"] and node["MetricsExportPort"]
    ]
    timeout = aiohttp.ClientTimeout(total=_AGENT_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        texts = await asyncio.gather(*(_fetch(session, url) for url in sorted(urls)))
    registry = CollectorRegistry()
    registry.register(_Merged([text for text in texts if text is not None]))
    return generate_latest(registry)


async def _fetch(session: aiohttp.ClientSession, url: str) -> str | None:
    """Return one node's metrics; None if the node does not answer, for example because it is shutting down."""
    try:
        async with session.get(url) as answer:
            answer.raise_for_status()
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError):
        return None


class _Merged(Collector):
    """Merge the application's metric families of several nodes.

    Ray's prefix `ray_` is removed from their names, and Ray's own labels, such as a worker's id, from their samples.

    Args:
        texts: Metrics of each node, in Prometheus' text format.
    """

    def __init__(self, texts: list[str]):
        self._texts = texts

    def collect(self):
        families: dict[str, Metric] = {}
        for text in self._texts:
            for family in text_string_to_metric_families(text):
                name = family.name.removeprefix("ray_")
                if not name.startswith(PREFIX):
                    continue
                merged = families.setdefault(name, Metric(name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {name: value for name, value in sample.labels.items() if name in _LABELS}
                    merged.samples.append(
                        sample._replace(name=sample.name.removeprefix("ray_"), labels=labels)
                    )
        yield from families.values()

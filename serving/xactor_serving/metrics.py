"""What the replicas measure. Ray's agents collect it, and `GET /metrics` of any ingress shows all of it."""

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

PREFIX = "xactor_serve_"
_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
_AGENT_TIMEOUT_S = 5


class _Metrics:
    """Made inside a replica, whose name they carry then."""

    def __init__(self):
        self._queued: Count[str] = Count()

        def histogram(name: str, what: str, bounds: list[float], tags: tuple[str, ...] = ()) -> Histogram:
            return Histogram(PREFIX + name, what, bounds, tags)  # pyright: ignore[reportArgumentType]

        self.first_s = histogram(
            "first_fragment_seconds", "From a request to its first video bytes", _SECONDS
        )
        self.chunk_s = histogram("chunk_seconds", "A chunk of motion, from job to last latents", _SECONDS)
        self.window_s = histogram("window_seconds", "A window of frames, from job to pictures", _SECONDS)
        self.rate = histogram(
            "video_frames_per_second",
            "Frames a second of a finished video",
            [1, 5, 12.5, 25, 50, 100, 250, 1000],
        )
        self.batch = histogram(
            "batch_size", "Streams or windows in one forward pass", [1, 2, 4, 8, 16, 32], ("of",)
        )
        self.queue = Gauge(
            PREFIX + "queue_depth", "Chunks or windows that a replica has, waiting or in the making", ("of",)
        )
        self.references = Counter(
            PREFIX + "references_computed_total", "Portraits that were not in the cache"
        )
        self.windows = Counter(PREFIX + "windows_total", "Windows of frames rendered")
        self.errors = Counter(PREFIX + "errors_total", "Answers that are errors", ("code",))
        self.again = Counter(PREFIX + "retries_total", "Work done again after a replica failed", ("of",))
        self.open = Gauge(PREFIX + "videos_open", "Videos in the making")

    @contextmanager
    def queued(self, of: str) -> Iterator[None]:
        """What is inside is one more of the replica's chunks or windows."""
        self._queued[of] += 1
        self.queue.set(self._queued[of], {"of": of})
        try:
            yield
        finally:
            self._queued[of] -= 1
            self.queue.set(self._queued[of], {"of": of})


@cache
def metrics() -> _Metrics:
    """This process's."""
    return _Metrics()


async def scrape() -> bytes:
    """Every node's metrics that are the application's, in Prometheus' text format."""
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
    try:
        async with session.get(url) as answer:
            answer.raise_for_status()
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError):
        return None  # a node that is going; its series end


class _Merged(Collector):
    """The application's families of several nodes, one each, without Ray's prefix."""

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
                    merged.samples.append(sample._replace(name=sample.name.removeprefix("ray_")))
        yield from families.values()

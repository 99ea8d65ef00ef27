"""Test that bulk dubbing needs no more memory for more rows. Only the models are fakes, which take no time."""

import json

import numpy as np
import psutil
import pytest

from xactor.options import AnimateOptions, Recommended
from xactor.rates import FPS, SAMPLE_RATE_HZ
from xactor_platform.bulk.pool import Pool
from xactor_platform.bulk.stage import Stage
from xactor_platform.dubbing import dub
from xactor_platform.dubbing.dub import DubRun
from xactor_platform.dubbing.dub_config import DubConfig, DubPools
from xactor_platform.dubbing.dub_results import DubResults
from xactor_platform.dubbing.manifest import read_manifest
from xactor_platform.dubbing.messages import RenderedSegment
from xactor_platform.dubbing.model_facts import read_model_facts
from xactor_platform.dubbing.motion import Perform
from xactor_platform.dubbing.render import Render
from xactor_platform.storage.location import Location

MIB = 1 << 20


class InstantMotion(Perform, Stage):
    """Make latents of zeros."""

    def __init__(self, *, output: str, segment_windows: int, **_):
        self._output, self._segment_windows = Location.parse(output), segment_windows

    run_batch = Stage.run_batch

    def work(self, message):
        z = np.zeros((len(message.samples) * FPS // SAMPLE_RATE_HZ, 8), np.float32)
        yield from self._segments(message, z)


class InstantRender(Render):
    """Render frames of 512 px, as large as real ones: 19 MiB a row."""

    def __init__(self, **_):
        pass

    def work(self, message):
        frames = np.full((message.end - message.first, 512, 512, 3), 90, np.uint8)
        yield RenderedSegment(segment=message, frames=frames)


class MemoryLog:
    """Log the memory of this process and of the object store, in MiB, each time that a row ends."""

    def __init__(self, monkeypatch):
        self.driver: list[float] = []
        self.store: list[float] = []
        finish = DubResults.finish

        def logged(results, *arguments):
            finish(results, *arguments)
            self._note()

        monkeypatch.setattr(DubResults, "finish", logged)

    def _note(self) -> None:
        import ray
        from ray._private.internal_api import node_stats

        self.driver.append(psutil.Process().memory_info().rss / MIB)
        [node] = ray.nodes()
        stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"])
        self.store.append(stats.store_stats.object_store_bytes_used / MIB)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("rows", "settled"),
    [
        pytest.param(90, 30, id="90 rows", marks=pytest.mark.soak),
        pytest.param(5000, 200, id="5000 rows", marks=pytest.mark.soak),
    ],
)
def test_memory_does_not_grow_with_the_number_of_rows(
    ray_cluster, model, media, tmp_path, monkeypatch, rows, settled
):
    monkeypatch.setattr(dub, "Perform", InstantMotion)
    monkeypatch.setattr(dub, "Render", InstantRender)
    manifest = media / f"flat-{rows}.jsonl"
    manifest.write_text(
        "".join(
            json.dumps({"id": f"f{n}", "image": "face.png", "audio": "1.wav"}) + "\n" for n in range(rows)
        )
    )
    small = Pool(max=1, cpus=0.5)
    config = DubConfig(
        manifest=str(manifest),
        output=str(tmp_path / "out"),
        model=model,
        options=AnimateOptions(),
        pools=DubPools(decode=small, motion=small, render=small, encode=Pool(max=2, cpus=0.5)),
    )
    asked, refused = read_manifest(config.manifest, config.options, Recommended())
    log = MemoryLog(monkeypatch)
    result = DubRun(config, read_model_facts(model), lambda line: None).make(asked, refused)
    print("\n".join(result.summary()))
    assert not result.failed
    assert len(list((tmp_path / "out").glob("*.mp4"))) == rows
    for name, seen in (("driver", log.driver), ("object store", log.store)):
        before, after = max(seen[:settled]), max(seen[settled:])
        print(f"{name}: {before:.0f} MiB up to row {settled}, {after:.0f} MiB up to row {rows}")
        # If frames were kept in memory, every later row would add 19 MiB.
        assert after < 1.3 * before + 40, f"{name}: {before:.0f} MiB up to row {settled}, {after:.0f} after"

"""Bulk dubbing takes no more memory for more rows: models that take no time, everything else real."""

import json

import numpy as np
import psutil
import pytest

from xactor.options import AnimateOptions
from xactor.rates import FPS, SAMPLE_RATE_HZ
from xactor_platform.dubbing import run as running
from xactor_platform.dubbing.config import DubConfig, Pool, Pools
from xactor_platform.dubbing.manifest import read_manifest
from xactor_platform.dubbing.model import look_at_model
from xactor_platform.dubbing.motion import Perform
from xactor_platform.dubbing.render import Render
from xactor_platform.dubbing.run import Run
from xactor_platform.dubbing.stage import OneByOne
from xactor_platform.dubbing.work import Rendered
from xactor_platform.storage.location import Location

MIB = 1 << 20


class InstantMotion(Perform, OneByOne):
    """Latents of zeros."""

    def __init__(self, *, output: str, segment_windows: int, **_):
        self._output, self._segment_windows = Location.parse(output), segment_windows

    run = OneByOne.run

    def work(self, work):
        yield from self._cut(work, np.zeros((len(work.samples) * FPS // SAMPLE_RATE_HZ, 8), np.float32), 0.0)


class InstantRender(Render):
    """Frames of 512 px, as large as real ones: 19 MiB a row."""

    def __init__(self, **_):
        pass

    def work(self, work):
        yield Rendered(segment=work, frames=np.full((work.end - work.first, 512, 512, 3), 90, np.uint8))


class Watched(Run):
    """Notes the memory at each row's end, in MiB: of this process, and of the object store."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.driver: list[float] = []
        self.store: list[float] = []

    def _finish(self, result, expected_s):
        import ray
        from ray._private.internal_api import node_stats

        super()._finish(result, expected_s)
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
def test_memory_is_flat(ray_cluster, model, media, tmp_path, monkeypatch, rows, settled):
    monkeypatch.setattr(running, "Perform", InstantMotion)
    monkeypatch.setattr(running, "Render", InstantRender)
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
        pools=Pools(decode=small, motion=small, render=small, encode=Pool(max=2, cpus=0.5)),
    )
    asked, refused = read_manifest(config.manifest, config.options)
    watched = Watched(config, look_at_model(model), lambda line: None)
    outcome = watched.make(asked, refused)
    print("\n".join(outcome.bill.lines()))
    assert not outcome.failed
    assert len(list((tmp_path / "out").glob("*.mp4"))) == rows
    for name, seen in (("driver", watched.driver), ("object store", watched.store)):
        before, after = max(seen[:settled]), max(seen[settled:])
        print(f"{name}: {before:.0f} MiB up to row {settled}, {after:.0f} MiB up to row {rows}")
        # What the rows after those make is more than the store could hold, or three times what it held.
        assert after < 1.3 * before + 40, f"{name}: {before:.0f} MiB up to row {settled}, {after:.0f} after"

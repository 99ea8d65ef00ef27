"""Test bulk dubbing: manifests, segments that equal the whole, and runs on real Ray that lose and repeat nothing."""

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from dub_manifests import write_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from xactor.media import read_frames
from xactor.options import AnimateOptions, Recommended
from xactor.render import RenderConfig, render_windows
from xactor_platform.bulk.message import pack, unpack
from xactor_platform.bulk.pipeline import Pipeline
from xactor_platform.bulk.pool import Pool
from xactor_platform.dubbing.dub import DubRun, dub
from xactor_platform.dubbing.dub_config import DubConfig, DubPools
from xactor_platform.dubbing.dub_results import DubResults, StorageFailed, dub_tally
from xactor_platform.dubbing.manifest import read_manifest
from xactor_platform.dubbing.messages import Dub, Failed
from xactor_platform.dubbing.model_facts import read_model_facts
from xactor_platform.dubbing.segments import spans, windows_of_span
from xactor_platform.storage.location import check_output

FAST = AnimateOptions(motion_steps=2, render_steps=1, render_cfg=1.0)


# Segments


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    frames=st.integers(1, 2000),
    windows=st.integers(1, 20),
    size=st.integers(1, 16),
    overlap=st.integers(0, 8),
)
def test_segments_have_each_frame_once_and_all_windows_that_it_is_blended_from(
    frames, windows, size, overlap
):
    config = RenderConfig(window_frames=size, overlap_frames=min(overlap, size // 2))
    cut = spans(frames, windows, config)
    assert [f for span in cut for f in range(span.first, span.end)] == list(range(frames))
    for span in cut:
        own = windows_of_span(span, frames, config)
        reach = [w for w in render_windows(frames, config) if w[0] < span.end and w[1] > span.first]
        assert set(reach) <= set(own)
        assert all(span.z_first <= first and end <= span.z_end for first, end in own)


# Whole runs


def config_of(manifest: str, output: Path, model: str, **changes) -> DubConfig:
    small = Pool(max=1, cpus=0.5)
    pools = DubPools(decode=small, motion=small, render=Pool(max=2, cpus=0.5), encode=small)
    settings = {"options": FAST, "pools": pools, "streams": 4, "segment_windows": 4, **changes}
    return DubConfig(manifest=manifest, output=str(output), model=model, **settings)


def run(config: DubConfig):
    return dub(config, connect=lambda: None, say=lambda line: None)


@pytest.fixture(scope="module")
def bulk(ray_cluster, model, media, tmp_path_factory):
    """Run good rows and bad rows, and two that kill their worker.

    Return the config, the result and the lines of progress.
    """
    import ray

    mark = tmp_path_factory.mktemp("deadly") / "mark"

    class Deadly:
        """Kill its own process at the row `always` each time, and at the row `once` only the first time.

        The class is defined in this function so that its processes need not import this module, and with it torch.
        """

        def __init__(self, always: str, once: str, mark: str):
            self._always, self._once, self._mark = always, once, Path(mark)

        def __call__(self, table):
            for message in unpack(table):
                name = message.row.id
                if name == self._always or (name == self._once and not self._mark.exists()):
                    self._mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield pack(message)

    class DeadlyPipeline(Pipeline):
        def source(self, messages):
            tables = super().source(messages)
            if not isinstance(messages[0], Dub):
                return tables
            return tables.map_batches(
                Deadly,
                fn_constructor_kwargs={"always": "poison", "once": "shot", "mark": str(mark)},
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=0.1,
                compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1),
                max_restarts=-1,
                max_task_retries=0,
            )

    class DeadlyRun(DubRun):
        def _pipeline(self, steps):
            return DeadlyPipeline(**vars(super()._pipeline(steps)))

    rows: list = [
        {"id": f"v{n}", "image": "face.png", "audio": f"{1 + n % 3}.wav", "seed": n} for n in range(6)
    ]
    rows += [
        {"id": "v1", "image": "face.png", "audio": "1.wav"},
        {"id": "../../up", "image": "face.png", "audio": "1.wav"},
        {"id": "missing", "image": "none.png", "audio": "1.wav"},
        {"id": "noface", "image": "wall.png", "audio": "1.wav"},
        {"id": "corrupt", "image": "face.png", "audio": "cut.wav"},
        {"id": "option", "image": "face.png", "audio": "1.wav", "render_steps": -1},
        "not json",
        {"id": "poison", "image": "face.png", "audio": "1.wav"},
        {"id": "shot", "image": "face.png", "audio": "1.wav"},
    ]
    manifest = write_manifest(media / "items.jsonl", rows)
    config = config_of(manifest, tmp_path_factory.mktemp("bulk") / "out", model, attempts=2)
    lines: list[str] = []
    asked, refused = read_manifest(config.manifest, config.options, Recommended())
    result = DeadlyRun(config, read_model_facts(model), lines.append).make(asked, refused)
    return config, result, lines


def result_lines(config: DubConfig) -> list[dict]:
    return [json.loads(line) for line in Path(config.output, "results.jsonl").read_text().splitlines()]


@pytest.mark.cluster
# In the second pass the poisoned row leaves the later stages without a message.
@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors:UserWarning")
def test_good_rows_become_videos_and_bad_rows_are_reported(bulk, media):
    config, result, lines = bulk
    rows = result_lines(config)
    assert rows == result.rows
    assert [(r["id"], r["status"], r["frames"]) for r in rows[:6]] == [
        (f"v{n}", "ok", 25 * (1 + n % 3)) for n in range(6)
    ]
    codes = [(r["id"], r["error"]["code"]) for r in rows[6:14]]
    assert codes == [
        ("v1", "bad_row"),
        ("../../up", "bad_row"),
        ("missing", "bad_input"),
        ("noface", "bad_input"),
        ("corrupt", "bad_input"),
        ("option", "bad_row"),
        (None, "bad_row"),
        ("poison", "lost"),
    ]
    assert rows[13]["error"]["message"] == "2 attempts failed: the workers died"
    # This row killed its worker once.
    assert (rows[14]["id"], rows[14]["status"]) == ("shot", "ok")
    assert {p.stem for p in Path(config.output).glob("*.mp4")} == {*(f"v{n}" for n in range(6)), "shot"}
    assert not list(Path(config.output).rglob("*.partial"))
    for n in range(6):
        assert len(list(read_frames(Path(config.output, f"v{n}.mp4")))) == 25 * (1 + n % 3)
    bill = json.loads(Path(config.output, "bill.json").read_text())
    assert bill == result.bill.as_json()
    assert [*bill] == ["made", "there", "failed", "video_s", "stage_s", "wall_s"]
    assert (bill["made"], bill["there"], bill["failed"], bill["video_s"]) == (7, 0, 8, 13.0)
    assert [*bill["stage_s"]] == ["look", "decode", "motion", "render", "encode", "write"]
    assert all(seconds > 0 for seconds in bill["stage_s"].values())
    assert any(line == "retrying 1 of 9, which were lost with their workers" for line in lines), lines
    assert any("row 9: missing: bad_input: image: " in line for line in lines)


@pytest.mark.cluster
def test_a_second_run_makes_only_missing_and_changed_videos(bulk, media):
    config, *_ = bulk
    before = {p.name: p.stat().st_mtime_ns for p in Path(config.output).glob("*.mp4")}
    Path(config.output, "v2.mp4").unlink()
    Path(config.output, "results.jsonl").unlink()
    lines = Path(config.manifest).read_text().splitlines()
    changed = json.loads(lines[0]) | {"audio": "2.wav"}
    good = write_manifest(media / "again.jsonl", [changed, *lines[1:6]])
    result = run(replace(config, manifest=good))
    assert [result.bill.figures[name] for name in ("made", "there", "failed")] == [2, 4, 0]
    after = {p.name: p.stat().st_mtime_ns for p in Path(config.output).glob("*.mp4")}
    assert {name for name in after if after[name] != before[name]} == {"v0.mp4", "v2.mp4"}
    assert [r["frames"] for r in result_lines(config)] == [50, 50, 75, 25, 50, 75]
    assert not Path(config.output, ".parts").exists()


def actors_of(stage: str) -> list[int]:
    """Return the process ids of a stage's actors in the cluster of this test session."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == [f"ray::MapWorker(MapBatches({stage}))"]:
                found.append(process.pid)
    return found


# This is a soak test because a row of the test above kills its worker too.
@pytest.mark.soak
@pytest.mark.cluster
def test_killed_workers_lose_no_video(ray_cluster, model, media, tmp_path):
    """Kill render and motion actors during a run."""
    rows = [{"id": f"k{n}", "image": "face.png", "audio": "3.wav", "render_steps": 6} for n in range(8)]
    config = config_of(write_manifest(media / "kill.jsonl", rows), tmp_path / "out", model, segment_windows=2)
    killed: list[str] = []
    ended = threading.Event()

    def kill() -> None:
        for name in ("Render", "Perform"):
            while not ended.is_set():
                has_begun = any((tmp_path / "out" / ".parts").glob("*/*"))
                alive = actors_of(name)
                if has_begun and alive:
                    os.kill(alive[0], signal.SIGKILL)
                    killed.append(name)
                    break
                time.sleep(0.2)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = run(config)
    finally:
        ended.set()
        killer.join()
    assert "Render" in killed
    assert [(r["id"], r["status"], r["frames"]) for r in result.rows] == [
        (f"k{n}", "ok", 75) for n in range(8)
    ]
    assert len({p.stem for p in (tmp_path / "out").glob("*.mp4")}) == 8


@pytest.mark.cluster
def test_a_run_ends_if_its_nodes_never_start(ray_cluster, model, media, tmp_path):
    rows = [{"id": "w", "image": "face.png", "audio": "1.wav"}]
    config = config_of(write_manifest(media / "wait.jsonl", rows), tmp_path / "out", model, start_timeout_s=1)
    # The pools ask for node groups, which this cluster does not have.
    config = replace(config, pools=replace(config.pools, groups=True))
    with pytest.raises(TimeoutError, match=r"no room for the first actor of every pool within 1 s"):
        run(config)
    assert not (tmp_path / "out" / "results.jsonl").exists()


# What is refused before any work


def test_an_invalid_model_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="no such model folder"):
        read_model_facts(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="model_index.json is missing"):
        read_model_facts(str(tmp_path))
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    shutil.rmtree(broken / "vae")
    with pytest.raises(ValueError, match="the component vae/ is missing"):
        read_model_facts(str(broken))
    (broken / "vae").mkdir()
    (broken / "vae" / "config.json").write_text('{"x": 1}')
    with pytest.raises(
        ValueError, match=r"unet/config\.json and vae/config\.json do not give the frames' size"
    ):
        read_model_facts(str(broken))
    shutil.copy(broken / "vae" / "config.json", broken / "unet" / "config.json")
    with pytest.raises(
        ValueError, match=r"latent_dim is 32 in motion/config\.json and None in unet/config\.json"
    ):
        read_model_facts(str(broken))


def test_other_weights_have_another_fingerprint(model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(model, other)
    assert read_model_facts(str(other)) == read_model_facts(model)
    (file,) = (other / "unet").glob("*.safetensors")
    weights = {name: weight + 1e-3 for name, weight in load_file(file).items()}
    save_file({name: weight.to(torch.float32) for name, weight in weights.items()}, file, {"format": "pt"})
    assert read_model_facts(str(other)).fingerprint != read_model_facts(model).fingerprint


def test_a_model_whose_parts_do_not_fit_is_refused_and_one_of_another_origin_keeps_no_latents(
    model, tmp_path
):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(model, other)

    def record(component: str, origin: str) -> None:
        file = other / component / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "latent_origin": origin}))

    record("motion", "controls-1")
    record("unet", "motion-encoder-0")
    with pytest.raises(
        ValueError,
        match=f"{other}/motion works with those of controls-1, {other}/unet with .* motion-encoder-0",
    ):
        read_model_facts(str(other))
    record("unet", "controls-1")
    assert read_model_facts(str(other)).fingerprint != read_model_facts(model).fingerprint


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written to"):
        check_output(str(tmp_path / "file" / "below"))


def test_a_full_disk_ends_the_run_and_is_named(tmp_path):
    results = DubResults(str(tmp_path), dub_tally(1), print)
    full = Failed(number=1, id="a", code="storage", message="[Errno 28] No space left")
    with pytest.raises(StorageFailed, match="No space left"):
        results.finish(full, 0.0)


def make_settings(changes: dict):
    if "pools" in changes:
        return Pool(**changes["pools"])
    return DubConfig(manifest="m", output="o", **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"streams": 0}, "streams must be >= 1, got 0"),
        ({"attempts": 0}, "attempts must be >= 1, got 0"),
        ({"pools": {"min": 3, "max": 2}}, "1 <= min <= max, got 3..2"),
        ({"pools": {"cpus": 0}}, "need CPUs or GPUs"),
    ],
)
def test_invalid_settings_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        make_settings(changes)

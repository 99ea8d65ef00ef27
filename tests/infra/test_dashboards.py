"""Test that every query of the dashboards finds data in a Prometheus server that runs with infra/prometheus.yml."""

import gzip
import itertools
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import manifests
import numpy as np
import pytest
import requests
import yaml

FOLDER = manifests.ROOT / "infra" / "grafana"
SCRAPE = manifests.ROOT / "infra" / "prometheus.yml"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
STEPS, RUN = 6, "dashboards"
# Ray's processes report every ten seconds, and a rate needs two reports.
FIND_TIMEOUT_S = 90.0

PANELS = [
    (name, panel)
    for name, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
    if panel["type"] != "row"
]
QUERIES = [
    pytest.param(target["expr"], id=f"{name}-{panel['title']}-{target['refId']}".replace(" ", "_"))
    for name, panel in PANELS
    for target in panel["targets"]
]


@pytest.mark.parametrize("name", ["train", "serve", "dub"])
def test_grafana_can_show_the_dashboard(name):
    dashboard = DASHBOARDS[name]
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["uid"] == f"xactor-{name}"
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        right, bottom = place["x"] + place["w"], place["y"] + place["h"]
        cells = set(itertools.product(range(place["x"], right), range(place["y"], bottom)))
        assert not cells & taken, f"{panel['title']} overlaps another panel"
        assert right <= 24, f"{panel['title']} is wider than Grafana's grid of 24 columns"
        taken |= cells


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=lambda part: part if isinstance(part, str) else "")
def test_panels_are_described(name, panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    refs = [target["refId"] for target in panel["targets"]]
    assert refs
    assert len(refs) == len(set(refs))
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        names = re.findall(r"\$(\w+)", target["expr"])
        assert set(names) <= {"run", "__rate_interval"}, target["expr"]


def test_prometheus_accepts_the_scrape_config():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    checked = subprocess.run(
        [promtool, "check", "config", str(SCRAPE)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


# --- with a real server -------------------------------------------------------------------------------------------


class Prometheus:
    """Query a server.

    Attributes:
        since: Unix time in seconds at which the tests began to use the server.
    """

    def __init__(self, url: str, record_once: Callable[[], None]):
        self._url, self._record_once = url, record_once
        self.since = time.time()
        self._deadline: float | None = None

    def get(self, path: str, **params: Any) -> Any:
        answer = requests.get(f"{self._url}/api/v1/{path}", params=params, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, expression: str) -> list[float]:
        """Return the finite values that a panel would draw for all the time since the start."""
        for name, value in {"$__rate_interval": "60s", "$run": ".+"}.items():
            expression = expression.replace(name, value)
        found = self.get("query_range", query=expression, start=self.since, end=time.time(), step=1)
        values = [float(value) for series in found["result"] for _, value in series["values"]]
        return [value for value in values if math.isfinite(value)]

    def find(self, expression: str) -> list[float]:
        """Record metrics until `values` finds some, and return those. All calls share one deadline."""
        self._deadline = self._deadline or time.monotonic() + FIND_TIMEOUT_S
        while not (values := self.values(expression)) and time.monotonic() < self._deadline:
            self._record_once()
            time.sleep(1.0)
        return values


@pytest.fixture(scope="module")
def prometheus(ray_cluster, record_metrics, tmp_path_factory) -> Iterator[Prometheus]:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")
    import ray

    from xactor_platform.cluster.local import free_port

    folder = tmp_path_factory.mktemp("prometheus")
    # Ray writes such a file too, but Ray's file may list other clusters of this machine.
    agents = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes()]
    (folder / "nodes.json").write_text(json.dumps([{"labels": {"job": "ray"}, "targets": agents}]))
    config = yaml.safe_load(SCRAPE.read_text())
    config["global"]["scrape_interval"] = "1s"
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(folder / "nodes.json")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"127.0.0.1:{free_port()}"
    command = [binary, f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={url}"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not _is_ready(f"http://{url}/-/ready"):
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "Prometheus did not start in 30 s"
            time.sleep(0.1)
        yield Prometheus(f"http://{url}", record_metrics)
    finally:
        server.terminate()
        server.wait(20)


def _is_ready(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="module")
def record_metrics(ray_cluster) -> Iterator[Callable[[], None]]:
    """Start processes that can record the metrics of serving, dubbing and GPU training.

    Yield a function that makes each of them record once.
    """
    import ray
    from ray import serve

    from xactor_platform.cluster.local import free_port

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Serving:
        """Record the metrics that a replica records for one video."""

        def __call__(self) -> None:
            from xactor_serving.metrics import metrics

            recorded = metrics()
            recorded.first_fragment_s.observe(0.7)
            recorded.chunk_s.observe(0.4)
            recorded.window_s.observe(0.2)
            recorded.video_fps.observe(31.0)
            for model in ("motion", "render"):
                with recorded.queued(model):
                    recorded.batch_size.observe(2, {"of": model})
                recorded.retries.inc(tags={"of": model})
            recorded.references.inc()
            recorded.windows.inc(3)
            recorded.errors.inc(tags={"code": "full"})
            recorded.open_videos.set(1)

    @ray.remote(num_cpus=0.1)
    class Dubbing:
        def __init__(self):
            from xactor_platform.dubbing.dub_results import dub_tally

            self._tally = dub_tally(10_000)
            self._tally.start_pace(1e5)

        def record(self) -> None:
            from xactor.options import AnimateOptions
            from xactor_platform.dubbing.dub_results import STAGES, count_result
            from xactor_platform.dubbing.messages import Done, Failed, Row

            self._tally.add_seconds(dict.fromkeys(STAGES, 0.5))
            row = Row(
                number=1, id="row", image="face.png", video=None, audio="a.wav", options=AnimateOptions()
            )
            count_result(self._tally, Done(row=row, frames=50, seconds=2.0, made=True), 2.0)
            count_result(self._tally, Failed(number=2, id=None, code="bad_row", message="no audio"), 2.0)

    @ray.remote(num_cpus=0.1)
    class GpuTraining:
        """Record the metrics of two ranks on GPUs: ranks on CPUs do not report MFU."""

        def __init__(self):
            from xactor_platform.training.run.telemetry import Telemetry

            self._ranks = [Telemetry("gpu", rank, 100) for rank in (0, 1)]

        def record(self) -> None:
            self._ranks[0].step({"frames": 8192, "mfu": 0.41})
            for telemetry in self._ranks:
                telemetry.times(4.9, 0.1)

    serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
    serving = serve.run(Serving.bind(), name="recording", route_prefix="/recording")
    dubbing, gpu = Dubbing.remote(), GpuTraining.remote()

    def record_once() -> None:
        calls = serving.remote()
        ray.get([dubbing.record.remote(), gpu.record.remote()])
        calls.result()

    yield record_once
    serve.shutdown()


@pytest.fixture(scope="module")
def run_folder(prometheus, record_metrics, tmp_path_factory) -> Path:
    """Train on two ranks while Prometheus scrapes them, and return the run's folder.

    The folder has a trace and TensorBoard's files.
    """
    from xactor_platform.data.shards import ShardWriter
    from xactor_platform.training.launch import train
    from xactor_platform.training.stage2_config import LatentDataConfig, MotionConfig, Stage2Config
    from xactor_platform.training.train_config import RunConfig, ScaleConfig, TrainConfig

    folder = tmp_path_factory.mktemp("training")
    generator = np.random.default_rng(0)
    for split, clips in (("train", 12), ("test", 2)):
        with ShardWriter(str(folder / "shards"), split, samples_per_shard=6) as writer:
            for i in range(clips):
                motion = generator.standard_normal((24, 6)).astype(np.float16)
                audio = generator.standard_normal((24, 2, 5)).astype(np.float16)
                meta = {"frames": 24, "fps": 25, "speaker": "s"}
                writer.write(f"{split}-{i:02d}", {"motion.npy": motion, "audio.npy": audio, "json": meta})
    record_metrics()
    (folder / RUN).mkdir()
    (folder / RUN / "profile").write_text("2")  # asks for a trace of two steps
    sizes = {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 48, "audio_width": 16}
    train(
        Stage2Config(
            run=RunConfig(storage=str(folder), name=RUN),
            scale=ScaleConfig(ranks=2, cpus_per_rank=0.5, max_failures=0),
            data=LatentDataConfig(shards=str(folder / "shards")),
            model=MotionConfig(**sizes, chunk_frames=8, context_frames=24),
            train=TrainConfig(
                steps=STEPS,
                micro_batches=2,
                budget_frames=48,
                evaluate_every=3,
                checkpoint_every=4,
                tensorboard=True,
            ),
        )
    )
    return folder / RUN


@pytest.fixture(scope="module")
def trained(run_folder) -> list[dict[str, Any]]:
    """Return the run's rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.cluster
def test_run_has_a_trace_and_tensorboard_files(run_folder, trained):
    assert [path.name for path in (run_folder / "traces").iterdir()] == ["step-00000002.json.gz"]
    trace = json.loads(gzip.decompress((run_folder / "traces" / "step-00000002.json.gz").read_bytes()))
    names = {event["name"] for event in trace["traceEvents"]}
    assert any("scaled_dot_product" in name for name in names)
    assert not (run_folder / "profile").exists()
    assert any(path.stat().st_size > 500 for path in (run_folder / "tensorboard").iterdir())


@pytest.mark.cluster
def test_prometheus_has_the_values_that_the_run_wrote(trained, prometheus):
    last = trained[-1]
    # The name of each metric, and its column in metrics.jsonl.
    columns = {
        "loss": "loss",
        "held_out_loss": "held_out_loss",
        "grad_norm": "grad_norm",
        "learning_rate": "lr",
        "padding_ratio": "padding",
        "step": "step",
        "epoch": "epoch",
        "epoch_step": "epoch_step",
        "frames_per_second": "frames_per_s",
        "skipped_steps": "skipped",
    }
    for name, column in columns.items():
        values = prometheus.find(f'ray_xactor_train_{name}{{run="{RUN}"}}')
        assert values, name
        assert values[-1] == pytest.approx(last[column], rel=1e-6), name
    frames = prometheus.find(f'ray_xactor_train_frames_total{{run="{RUN}"}}')
    assert frames[-1] == sum(row["frames"] for row in trained)
    for name in ("step_seconds", "data_wait_seconds", "memory_bytes"):
        assert prometheus.find(f'ray_xactor_train_{name}{{run="{RUN}", rank="0"}}'), name
        # The short run's second rank may have ended before the next scrape, so look at the two ranks of `gpu`.
        assert max(prometheus.find(f'count by (run) (ray_xactor_train_{name}{{run="gpu"}})')) == 2, name
    memory = prometheus.find(f'ray_xactor_train_memory_bytes{{run="{RUN}"}}')
    assert 50e6 < min(memory) < 5e9
    age = prometheus.find(f'time() - ray_xactor_train_checkpoint_unix_seconds{{run="{RUN}"}}')
    assert 0 <= age[0] < 60


@pytest.mark.cluster
@pytest.mark.parametrize("expression", QUERIES)
def test_query_finds_data(expression, trained, prometheus):
    assert prometheus.find(expression)


@pytest.mark.cluster
def test_run_variable_lists_the_runs(trained, prometheus):
    (variable,) = [v for v in DASHBOARDS["train"]["templating"]["list"] if v["name"] == "run"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()
    assert RUN in prometheus.get(f"label/{label}/values", **{"match[]": metric, "start": prometheus.since})


@pytest.mark.cluster
@pytest.mark.parametrize("name", ["train", "serve", "dub"])
def test_every_metric_is_shown(name, trained, prometheus):
    names = prometheus.get("label/__name__/values", start=prometheus.since)
    ours = {
        re.sub("_(bucket|sum|count)$", "", metric)
        for metric in names
        if metric.startswith(f"ray_xactor_{name}_")
    }
    assert ours
    queries = " ".join(
        target["expr"] for dashboard, panel in PANELS if dashboard == name for target in panel["targets"]
    )
    assert not {metric for metric in ours if metric not in queries}

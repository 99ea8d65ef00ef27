"""Test the service under load: killed replicas, new weights, malformed bodies, and autoscaling."""

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests
from client import FAST, Service, delete, frames, run, wav
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sounds import index_bomb

pytestmark = pytest.mark.cluster
ERRORS = {400, 401, 413, 415, 422, 429, 503, 504}


def replicas(kind: str) -> list[int]:
    """Return the process ids of a deployment's replicas."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if process.name.isdigit() and title.startswith(f"ray::ServeReplica:plain:{kind}"):
            found.append(int(process.name))
    return found


def while_loaded(service: Service, face: bytes, act: Callable[[], None]) -> list[requests.Response]:
    """Start three videos, call `act` while they are made, and return their answers."""

    def ask(seed: int) -> requests.Response:
        options = {**FAST, "motion_steps": 12}
        return service.post(image=face, audio=wav(4), seed=str(seed), stream_response=True, **options)

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, seed) for seed in range(3)]
        # Each answer begins with its first fragment.
        answers = [future.result() for future in asked]
        act()
        return answers


@pytest.mark.parametrize("kind", ["render", pytest.param("motion", marks=pytest.mark.soak)])
def test_work_of_a_killed_replica_is_retried(service, face, tmp_path, kind):
    """Every frame arrives. A viewer notices a pause at most."""
    victims = replicas(kind)
    assert len(victims) == {"render": 2, "motion": 1}[kind]
    answers = while_loaded(service, face, lambda: os.kill(victims[0], signal.SIGKILL))
    for seed, answer in enumerate(answers):
        assert answer.status_code == 200
        made = frames(answer.content, tmp_path)
        assert len(made) == 100, seed
    wait_for_replicas(service, kind)


def wait_for_replicas(service: Service, kind: str) -> None:
    """Wait until a deployment has its full number of replicas again."""
    wanted, deadline = {"render": 2, "motion": 1, "ingress": 1}[kind], time.monotonic() + 60
    while (
        len(replicas(kind)) < wanted or requests.get(f"{service.url}/healthz", timeout=30).status_code != 200
    ):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_killed_ingress_cuts_its_connections_and_is_replaced(service, face):
    [victim] = replicas("ingress")

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)

    for answer in while_loaded(service, face, kill):
        with pytest.raises(requests.RequestException):
            # The connection breaks, so no client takes the video for a complete one.
            assert not answer.content
    wait_for_replicas(service, "ingress")
    assert service.post(image=face, audio=wav(0.4), **FAST).status_code == 200


def test_decoding_processes_that_are_killed_are_replaced(service, face):
    """Kill the idle decoding processes of the ingress, twice, as the kernel may if memory is short."""
    [ingress] = replicas("ingress")

    def decoders() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(ingress).children():
            # A process may end while it is looked at.
            with suppress(psutil.NoSuchProcess):
                if "spawn_main" in str(child.cmdline()):
                    found.append(child)
        return found

    for _ in range(2):
        deadline = time.monotonic() + 60
        while len(victims := decoders()) < 2:
            assert time.monotonic() < deadline, "no two decoding processes within 60 s"
            time.sleep(0.2)
        for victim in victims:
            victim.kill()
        assert service.post(image=face, audio=wav(0.2), **FAST).status_code == 200
        assert service.get("/healthz").status_code == 200


def test_a_bomb_costs_the_ingress_no_memory(service, face):
    """The index of a small file claims millions of samples. Its sound is good, so its video is made."""

    def peak_mib() -> int:
        [ingress] = replicas("ingress")
        [line] = [
            line for line in Path(f"/proc/{ingress}/status").read_text().splitlines() if "VmHWM" in line
        ]
        return int(line.split()[1]) >> 10

    before = peak_mib()
    assert service.post(image=face, audio=index_bomb(), **FAST).status_code == 200
    assert peak_mib() - before < 200


@pytest.mark.soak
def test_new_weights_drop_no_request(serving, face, tmp_path, tmp_path_factory):
    """Replace a model while videos are made. They are complete, and the next video comes from the new model."""
    from pipelines import small_pipeline

    folders = [tmp_path_factory.mktemp(name) for name in ("old", "new")]
    for folder in folders:
        pipeline = small_pipeline()
        if folder is folders[1]:
            for weight in pipeline.unet.conv_out.parameters():
                weight.data.neg_()
        pipeline.save_pretrained(folder)
    name = "updated"
    updated = run(serving, str(folders[0]), name)

    def replace_model() -> None:
        run(serving, str(folders[1]), name)

    try:
        asked = {"image": face, "audio": wav(2), **FAST}
        before = updated.post(**asked).content
        answers = while_loaded(updated, face, replace_model)
        for answer in answers:
            assert answer.status_code == 200
            assert len(frames(answer.content, tmp_path)) == 100
        after = updated.post(**asked).content
        distance = [
            abs(a.astype(int) - b).mean()
            for a, b in zip(frames(before, tmp_path), frames(after, tmp_path), strict=True)
        ]
        assert min(distance[1:]) > 2, "the old weights still answer"
    finally:
        delete(name)


VALUES = st.one_of(
    st.text(max_size=20),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.binary(max_size=50),
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_malformed_bodies_get_documented_errors(service, face, data):
    """Send forms with the schema's fields, each missing, valid or arbitrary."""
    form: list[tuple] = []
    for name in form_fields(service):
        valid = {"image": face, "audio": wav(0.05)}.get(name, str(FAST.get(name, "1")).encode())
        value = data.draw(st.one_of(st.none(), VALUES, st.just(valid)), label=name)
        if value is None:
            continue
        content = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
        as_file = data.draw(st.booleans(), label=f"{name} as a file")
        form.append((name, ("x", content) if as_file else (None, content)))
    answer = requests.post(f"{service.url}/v1/videos", files=form or None, timeout=60)
    if answer.status_code == 200:
        assert answer.content
        return
    assert answer.status_code in ERRORS, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "request_id"}


_FORM_FIELDS: dict[str, list[str]] = {}


def form_fields(service: Service) -> list[str]:
    """Return the fields of the form in the service's schema, which is read once."""
    if service.url not in _FORM_FIELDS:
        schema = service.get("/openapi.json").json()
        [form] = [part for name, part in schema["components"]["schemas"].items() if name == "VideoForm"]
        _FORM_FIELDS[service.url] = list(form["properties"])
    return _FORM_FIELDS[service.url]


# Two replicas start during the test, on a machine that is busy already.
@pytest.mark.timeout(900)
@pytest.mark.soak
def test_each_deployment_scales_with_its_own_load(serving, model, face):
    """Load rendering alone, then motion alone, and count the replicas in Serve's own status."""
    from ray import serve

    scaling = run(serving, model, "scaling", motion_replicas=0, render_replicas=0)

    def count(kind: str) -> int:
        return serve.status().applications["scaling"].deployments[kind].replica_states.get("RUNNING", 0)

    def load(kind: str, **options) -> None:
        """Send requests until the deployment has two replicas."""
        enough = threading.Event()

        def ask(seed: int) -> set[int]:
            statuses = set()
            while not enough.is_set():
                answer = scaling.post(image=face, audio=wav(1, seed=seed), **FAST | options, seed=seed)
                statuses.add(answer.status_code)
            return statuses

        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask, seed) for seed in range(6)]
            deadline = time.monotonic() + 300
            while count(kind) < 2 and time.monotonic() < deadline:
                time.sleep(0.5)
            enough.set()
            assert {status for future in asked for status in future.result()} == {200}
        assert count(kind) >= 2

    try:
        load("render", motion_steps=1, render_steps=15)
        assert count("motion") == 1, "motion scaled with the load of rendering"
        before = count("render")
        load("motion", motion_steps=400, audio_cfg=3, render_steps=1)
        assert count("render") <= before, "rendering scaled with the load of motion"
    finally:
        delete("scaling")

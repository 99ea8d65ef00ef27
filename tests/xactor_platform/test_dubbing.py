"""Bulk dubbing: manifests, segments that equal the whole, and runs on real Ray that lose and repeat nothing."""

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xactor.media import read_audio, read_frames
from xactor.options import AnimateOptions
from xactor.pipeline import XActorPipeline
from xactor.render import RenderConfig, render_windows
from xactor_platform.dubbing.config import DubConfig, Pool, Pools
from xactor_platform.dubbing.decode import Decode
from xactor_platform.dubbing.encode import Encode
from xactor_platform.dubbing.look import Look
from xactor_platform.dubbing.manifest import read_manifest
from xactor_platform.dubbing.model import look_at_model
from xactor_platform.dubbing.motion import Perform
from xactor_platform.dubbing.render import Render
from xactor_platform.dubbing.run import Run, StorageFailed, dub
from xactor_platform.dubbing.segments import spans, windows_of_span
from xactor_platform.dubbing.work import Done, Dub, Failed, Part, Row
from xactor_platform.dubbing.write import write
from xactor_platform.location import check_output
from xactor_platform.pools import pack, unpack

FAST = AnimateOptions(motion_steps=2, render_steps=1, render_cfg=1.0)


def write_manifest(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


# The manifest


def test_all_kinds_of_manifests_hold_the_same_rows(tmp_path):
    rows = [
        {"id": "007", "image": "a.png", "audio": "s3://bucket/a.wav", "seed": 3, "audio_cfg": 2.5},
        {"id": "b", "video": "/b.mp4", "audio": "b.wav", "paste_back": True},
    ]
    table = pa.Table.from_pylist([{**dict.fromkeys({**rows[0], **rows[1]}), **row} for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    pa.csv.write_csv(table, tmp_path / "m.csv")
    write_manifest(tmp_path / "m.jsonl", [rows[0], "", rows[1]])
    read = {kind: read_manifest(str(tmp_path / f"m.{kind}"), FAST) for kind in ("jsonl", "csv", "parquet")}
    assert all(not failed for _, failed in read.values())
    first, second = read["parquet"][0]
    assert first == Row(
        number=1,
        id="007",
        image=f"{tmp_path}/a.png",
        video=None,
        audio="s3://bucket/a.wav",
        options=replace(FAST, seed=3, audio_cfg=2.5),
    )
    assert (second.video, second.options.paste_back) == ("/b.mp4", True)
    assert read["csv"][0] == read["parquet"][0]
    assert [replace(row, number=0) for row in read["jsonl"][0]] == [
        replace(r, number=0) for r in (first, second)
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": "a", "audio": "b"}, "id must be"),
        ({"id": 7, "image": "a", "audio": "b"}, "id must be .* got '7'"),
        ({"id": "../up", "image": "a", "audio": "b"}, r"id must be .* got '\.\./up'"),
        ({"id": ".hidden", "image": "a", "audio": "b"}, "id must be"),
        ({"id": "x" * 129, "image": "a", "audio": "b"}, "1..128"),
        ({"id": "a\n", "image": "a", "audio": "b"}, "id must be"),
        ({"id": "GOOD", "image": "a", "audio": "b"}, "id 'GOOD' is row 1's already"),
        ({"id": "x", "audio": "b"}, "either an image or a video"),
        ({"id": "x", "image": "a", "video": "v", "audio": "b"}, "either an image or a video"),
        ({"id": "x", "image": "a"}, "audio must be a path or URI, got None"),
        ({"id": "x", "image": 3, "audio": "b"}, "image must be a path or URI, got 3"),
        ({"id": "x", "image": "a", "audio": "b", "steps": 3}, "no option 'steps'"),
        ({"id": "x", "image": "a", "audio": "b", "seed": "3"}, "seed must be of type int"),
        ({"id": "x", "image": "a", "audio": "b", "motion_steps": 0}, "steps must be within 1..1000, got 0"),
        ("[1]", "must be a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_row_is_one_failed_row(tmp_path, row, says):
    good = {"id": "good", "image": "a.png", "audio": "a.wav"}
    rows, failed = read_manifest(write_manifest(tmp_path / "m.jsonl", [good, row]), FAST)
    assert [r.id for r in rows] == ["good"]
    (bad,) = failed
    assert (bad.number, bad.code) == (2, "bad_row")
    with pytest.raises(ValueError, match=says):
        raise ValueError(bad.message)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.txt", b"", "must be .jsonl, .csv or .parquet, got '.txt'"),
        ("m.jsonl", b"\n\n", "no rows"),
        ("m.jsonl", b"\xff\xfe", "not UTF-8"),
        ("m.parquet", b"PAR1", "cannot be read"),
        ("m.csv", b"id,image\na", "cannot be read"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_manifest(str(tmp_path / name), FAST)
    with pytest.raises(ValueError, match="cannot be read"):
        read_manifest(str(tmp_path / "other.jsonl"), FAST)


# Segments


@settings(max_examples=200, deadline=None)
@given(
    frames=st.integers(1, 2000),
    windows=st.integers(1, 20),
    size=st.integers(1, 16),
    overlap=st.integers(0, 8),
)
def test_segments_hold_each_frame_once_and_all_that_it_is_blended_of(frames, windows, size, overlap):
    config = RenderConfig(window_frames=size, overlap_frames=min(overlap, size // 2))
    cut = spans(frames, windows, config)
    assert [f for span in cut for f in range(span.first, span.end)] == list(range(frames))
    for span in cut:
        own = windows_of_span(span, frames, config)
        reach = [w for w in render_windows(frames, config) if w[0] < span.end and w[1] > span.first]
        assert set(reach) <= set(own)
        assert all(span.z_first <= first and end <= span.z_end for first, end in own)


# The stages, one after another without Ray


@pytest.fixture(scope="module")
def stages(model, media, tmp_path_factory):
    """All of a run's stages, and the folder that they write to."""
    output = str(tmp_path_factory.mktemp("staged"))
    facts = look_at_model(model)
    decode = Decode(size=facts.image_size, decode_s=60)
    motion = Perform(model=model, output=output, device="cpu", streams=4, segment_windows=2)
    yield (
        output,
        [
            Look(output=output, model=facts.fingerprint, most_bytes=1 << 20),
            decode,
            motion,
            Render(model=model, device="cpu", windows=1),
            Encode(output=output),
        ],
    )
    del decode


def through(stages: list, rows: list[Row]) -> list:
    works: list = list(rows)
    for stage in stages:
        table = pa.concat_tables([pack(work) for work in works])
        works = [work for made in stage(table) for work in unpack(made)]
    return works


def row(media: Path, name: str, audio: str, number: int = 1, **options) -> Row:
    return Row(
        number=number,
        id=name,
        image=str(media / "face.png"),
        video=None,
        audio=str(media / audio),
        options=replace(FAST, **options),
    )


def test_the_stages_make_what_animate_makes(stages, model, media, tmp_path):
    output, all_stages = stages
    asked = [row(media, "a", "3.wav", seed=5), row(media, "b", "1.wav", number=2, paste_back=True)]
    parts = through(all_stages, asked)
    assert sorted((p.dub.row.id, p.number, p.of) for p in parts) == [
        ("a", 0, 3),
        ("a", 1, 3),
        ("a", 2, 3),
        ("b", 0, 1),
    ]
    assert all({"look", "decode", "motion", "render", "encode"} >= set(p.spent) for p in parts)
    pipeline = XActorPipeline.from_pretrained(model)
    for wanted in asked:
        (first, *_) = [part for part in parts if part.dub.row == wanted]
        done = write(output, first.dub, first.of)
        options = wanted.options
        made = pipeline(
            wanted.image,
            wanted.audio,
            seed=options.seed,
            motion=options.sampling(),
            render=options.rendering(),
            paste_back=options.paste_back,
        )
        made.save(tmp_path / "animate.mp4")
        path = Path(output, f"{wanted.id}.mp4")
        ours, theirs = list(read_frames(path)), list(read_frames(tmp_path / "animate.mp4"))
        assert done.frames == len(ours) == len(theirs)
        # Coded in other pieces, of the same pixels.
        errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(ours, theirs, strict=True)]
        other = [np.abs(a.astype(int) - b).mean() for a, b in zip(ours[1:], theirs, strict=False)]
        assert np.mean(errors) < 0.5 * np.mean(other), (np.mean(errors), np.mean(other))
        np.testing.assert_array_equal(read_audio(path), read_audio(tmp_path / "animate.mp4"))
        with av.open(str(path)) as container:
            assert json.loads(container.metadata["comment"])["ai_generated"] is True
    assert not list(Path(output, ".parts").iterdir())


def test_segments_rendered_apart_are_the_whole_bit_for_bit(stages, model, media):
    _, (look, decode, motion, render, _) = stages
    rendered = through([look, decode, motion, render], [row(media, "parts", "4.wav")])
    frames = np.concatenate([r.frames for r in sorted(rendered, key=lambda r: r.segment.number)])
    pipeline = XActorPipeline.from_pretrained(model)
    whole = pipeline(media / "face.png", media / "4.wav", motion=FAST.sampling(), render=FAST.rendering())
    assert len(rendered) > 2
    np.testing.assert_array_equal(frames, np.stack(list(whole.frames)))


def test_performances_side_by_side_are_those_alone(stages, media):
    _, (look, decode, motion, *_) = stages
    rows = [row(media, f"p{n}", f"{n}.wav", number=n, seed=n) for n in (1, 2, 3)]
    together = {s.dub.row.id: s.z for s in through([look, decode, motion], rows) if s.number == 0}
    for one in rows:
        (alone,) = [s.z for s in through([look, decode, motion], [one]) if s.number == 0]
        np.testing.assert_allclose(together[one.id], alone, atol=1e-4)


def test_what_an_earlier_run_wrote_is_not_made_again(stages, media):
    output, all_stages = stages
    first = through(all_stages, [row(media, "again", "3.wav")])
    folder = Path(output, first[0].dub.parts)
    (folder / "00001.mp4").unlink()
    kept = np.load(folder / "motion.npy")
    motion = through(all_stages[:3], [row(media, "again", "3.wav")])
    assert [(type(w), w.number) for w in motion] == [(Part, 0), (type(motion[1]), 1), (Part, 2)]
    np.testing.assert_array_equal(motion[1].z, kept[motion[1].z_first : motion[1].z_first + len(motion[1].z)])
    second = through(all_stages, [row(media, "again", "3.wav")])
    assert {part.number: part.made for part in second} == {0: False, 1: True, 2: False}


def test_the_look_knows_what_a_video_was_made_from(stages, media, tmp_path):
    output, all_stages = stages
    (part,) = through(all_stages, [row(media, "known", "1.wav")])
    write(output, part.dub, part.of)
    look = all_stages[0]

    def looked(asked: Row):
        (work,) = through([look], [asked])
        return work

    there = looked(row(media, "known", "1.wav"))
    assert isinstance(there, Done)
    assert (there.made, there.frames) == (False, 25)
    assert isinstance(looked(row(media, "known", "2.wav")), Dub), "another sound"
    assert isinstance(looked(row(media, "known", "1.wav", seed=1)), Dub), "another option"
    assert isinstance(through([replace(look, model="other")], [row(media, "known", "1.wav")])[0], Dub)
    Path(output, "known.mp4").write_bytes(b"broken")
    assert isinstance(looked(row(media, "known", "1.wav")), Dub)


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"image": "none.png"}, "bad_input", "image: .*none.png: no such file"),
        ({"image": "."}, "bad_input", "is a folder"),
        ({"image": "text.png"}, "bad_input", "image: not a picture"),
        ({"image": "wall.png"}, "bad_input", "image: no face is found"),
        ({"image": None, "video": "1.wav"}, "bad_input", "video: no video track"),
        ({"audio": "cut.wav"}, "bad_input", "audio: .*cannot be decoded"),
        ({"audio": "face.png"}, "bad_input", "audio: "),
        ({"audio": "4.wav", "options": replace(FAST, max_seconds=2)}, "too_large", "audio: longer than 2 s"),
        ({"image": "big"}, "bad_input", "image: .*2097152 bytes are more than 1048576"),
    ],
)
def test_files_that_are_refused(stages, media, changes, code, says):
    big = media / "big"
    big.touch()
    os.truncate(big, 2 << 20)
    places = {name: str(media / v) if isinstance(v, str) else v for name, v in changes.items()}
    (failed,) = through(stages[1][:2], [replace(row(media, "bad", "1.wav"), **places)])
    assert isinstance(failed, Failed)
    assert failed.code == code
    with pytest.raises(ValueError, match=says):
        raise ValueError(failed.message)


def test_a_videos_best_frame_is_the_portrait(stages, media):
    asked = replace(row(media, "video", "1.wav"), image=None, video=str(media / "bust.mp4"))
    (found,) = through(stages[1][:2], [asked])
    (wanted,) = through(stages[1][:2], [row(media, "image", "1.wav")])
    assert np.abs(found.square.astype(int) - wanted.square).mean() < 4


# Whole runs


def config_of(manifest: str, output: Path, model: str, **changes) -> DubConfig:
    small = Pool(max=1, cpus=0.5)
    pools = Pools(decode=small, motion=small, render=Pool(max=2, cpus=0.5), encode=small)
    settings = {"options": FAST, "pools": pools, "streams": 4, "segment_windows": 4, **changes}
    return DubConfig(manifest=manifest, output=str(output), model=model, **settings)


def run(config: DubConfig, said: list[str] | None = None):
    return dub(config, connect=lambda: None, say=(said if said is not None else []).append)


class Deadly:
    """A stage that ends its own process when it comes to some rows: each time, or the first time."""

    def __init__(self, always: str, once: str, mark: str):
        self._always, self._once, self._mark = always, once, Path(mark)

    def __call__(self, table):
        for work in unpack(table):
            name = work.row.id
            if name == self._always or (name == self._once and not self._mark.exists()):
                self._mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield pack(work)


@pytest.fixture(scope="module")
def bulk(ray_cluster, model, media, tmp_path_factory):
    """A run over good and bad rows, of which two kill who works on them: its config, its outcome and what it said."""
    import ray

    mark = tmp_path_factory.mktemp("deadly") / "mark"

    class Perilous(Run):
        def _source(self, dubs):
            deadly = {"always": "poison", "once": "shot", "mark": str(mark)}
            return (
                super()
                ._source(dubs)
                .map_batches(
                    Deadly,
                    fn_constructor_kwargs=deadly,
                    batch_size=1,
                    batch_format="pyarrow",
                    num_cpus=0.1,
                    compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=1),
                    max_restarts=-1,
                    max_task_retries=0,
                )
            )

    rows: list = [
        {"id": f"v{n}", "image": "face.png", "audio": f"{1 + n % 3}.wav", "seed": n} for n in range(6)
    ]
    rows += [
        {"id": "v1", "image": "face.png", "audio": "1.wav"},
        {"id": "../../up", "image": "face.png", "audio": "1.wav"},
        {"id": "missing", "image": "none.png", "audio": "1.wav"},
        {"id": "noface", "image": "wall.png", "audio": "1.wav"},
        {"id": "corrupt", "image": "face.png", "audio": "cut.wav"},
        {"id": "option", "image": "face.png", "audio": "1.wav", "render_steps": 0},
        "not json",
        {"id": "poison", "image": "face.png", "audio": "1.wav"},
        {"id": "shot", "image": "face.png", "audio": "1.wav"},
    ]
    manifest = write_manifest(media / "items.jsonl", rows)
    config = config_of(manifest, tmp_path_factory.mktemp("bulk") / "out", model, attempts=2)
    said: list[str] = []
    asked, refused = read_manifest(config.manifest, config.options)
    outcome = Perilous(config, look_at_model(model), said.append).make(asked, refused)
    return config, outcome, said


def results(config: DubConfig) -> list[dict]:
    return [json.loads(line) for line in Path(config.output, "results.jsonl").read_text().splitlines()]


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors:UserWarning")  # of the second try
def test_good_rows_are_made_and_bad_ones_named(bulk, media):
    config, outcome, said = bulk
    rows = results(config)
    assert rows == outcome.rows
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
    assert rows[13]["error"]["message"] == "tried 2 times, and its workers died each time"
    assert (rows[14]["id"], rows[14]["status"]) == ("shot", "ok")  # it killed its worker once
    assert {p.stem for p in Path(config.output).glob("*.mp4")} == {*(f"v{n}" for n in range(6)), "shot"}
    assert not list(Path(config.output).rglob("*.part"))
    for n in range(6):
        assert len(list(read_frames(Path(config.output, f"v{n}.mp4")))) == 25 * (1 + n % 3)
    bill = outcome.bill
    assert (bill.made, bill.there, bill.failed, bill.video_s) == (7, 0, 8, 13.0)
    assert set(bill.stage_s) == {"look", "decode", "motion", "render", "encode", "write"}
    assert all(seconds > 0 for seconds in bill.stage_s.values())
    assert any("row 9: missing: bad_input: image: " in line for line in said)


@pytest.mark.cluster
def test_a_second_run_makes_what_is_missing_or_has_changed(bulk, media):
    config, *_ = bulk
    before = {p.name: p.stat().st_mtime_ns for p in Path(config.output).glob("*.mp4")}
    Path(config.output, "v2.mp4").unlink()
    Path(config.output, "results.jsonl").unlink()
    lines = Path(config.manifest).read_text().splitlines()
    changed = json.loads(lines[0]) | {"audio": "2.wav"}
    good = write_manifest(media / "again.jsonl", [changed, *lines[1:6]])
    outcome = run(replace(config, manifest=good))
    assert (outcome.bill.made, outcome.bill.there, outcome.bill.failed) == (2, 4, 0)
    after = {p.name: p.stat().st_mtime_ns for p in Path(config.output).glob("*.mp4")}
    assert {name for name in after if after[name] != before[name]} == {"v0.mp4", "v2.mp4"}
    assert [r["frames"] for r in results(config)] == [50, 50, 75, 25, 50, 75]
    assert not Path(config.output, ".parts").exists()


def actors_of(stage: str) -> list[int]:
    """The processes of a stage's actors, of this test session's cluster alone."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] == [f"ray::MapWorker(MapBatches({stage}))"]:
                found.append(process.pid)
    return found


@pytest.mark.soak  # test_dubbing_cluster takes a whole node
@pytest.mark.cluster
def test_killed_workers_cost_nothing_but_time(ray_cluster, model, media, tmp_path):
    """While a run goes on, its render and motion actors are killed."""
    rows = [{"id": f"k{n}", "image": "face.png", "audio": "3.wav", "render_steps": 6} for n in range(8)]
    config = config_of(write_manifest(media / "kill.jsonl", rows), tmp_path / "out", model, segment_windows=2)
    killed: list[str] = []
    ended = threading.Event()

    def kill() -> None:
        for name in ("Render", "Perform"):
            while not ended.is_set():
                begun = any((tmp_path / "out" / ".parts").glob("*/*"))
                alive = actors_of(name)
                if begun and alive:
                    os.kill(alive[0], signal.SIGKILL)
                    killed.append(name)
                    break
                time.sleep(0.2)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        outcome = run(config)
    finally:
        ended.set()
        killer.join()
    assert "Render" in killed
    assert [(r["id"], r["status"], r["frames"]) for r in outcome.rows] == [
        (f"k{n}", "ok", 75) for n in range(8)
    ]
    assert len({p.stem for p in (tmp_path / "out").glob("*.mp4")}) == 8


@pytest.mark.cluster
def test_nodes_that_never_come_end_the_run(ray_cluster, model, media, tmp_path):
    rows = [{"id": "w", "image": "face.png", "audio": "1.wav"}]
    config = config_of(write_manifest(media / "wait.jsonl", rows), tmp_path / "out", model, start_timeout_s=1)
    config = replace(config, pools=replace(config.pools, groups=True))  # which this cluster has not
    with pytest.raises(TimeoutError, match=r"no room for the first actor of every pool within 1 s"):
        run(config)
    assert not (tmp_path / "out" / "results.jsonl").exists()


# What is said before any work


def test_a_model_that_is_none(model, tmp_path):
    with pytest.raises(ValueError, match="no such model folder"):
        look_at_model(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="model_index.json is missing"):
        look_at_model(str(tmp_path))
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    shutil.rmtree(broken / "vae")
    with pytest.raises(ValueError, match="the part vae/ is missing"):
        look_at_model(str(broken))


def test_other_weights_are_another_model(model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(model, other)
    assert look_at_model(str(other)) == look_at_model(model)
    (file,) = (other / "unet").glob("*.safetensors")
    weights = {name: weight + 1e-3 for name, weight in load_file(file).items()}
    save_file({name: weight.to(torch.float32) for name, weight in weights.items()}, file, {"format": "pt"})
    assert look_at_model(str(other)).fingerprint != look_at_model(model).fingerprint


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written to"):
        check_output(str(tmp_path / "file" / "below"))


def test_a_full_disk_ends_the_run_and_is_named(tmp_path, model):
    finished = Run(config_of("m.jsonl", tmp_path, model), look_at_model(model), print)
    from xactor_platform.dubbing.bill import Tally

    finished._tally = Tally(rows=1, left_s=0.0)
    with pytest.raises(StorageFailed, match="No space left"):
        finished._finish(Failed(number=1, id="a", code="storage", message="[Errno 28] No space left"), 0.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"streams": 0}, "streams must be >= 1, got 0"),
        ({"attempts": 0}, "attempts must be >= 1, got 0"),
        ({"pools": {"min": 3, "max": 2}}, "1 <= min <= max, got 3..2"),
        ({"pools": {"cpus": 0}}, "need CPUs or GPUs"),
    ],
)
def test_settings_that_cannot_be(changes, says):
    with pytest.raises(ValueError, match=says):
        Pool(**changes["pools"]) if "pools" in changes else DubConfig(manifest="m", output="o", **changes)

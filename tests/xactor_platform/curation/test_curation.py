"""Test whole curation runs: every planted fault is found, no good clip is lost, sound and pictures stay in sync, and a
worker that dies loses no more than the piece that it worked on."""

import contextlib
import io
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from xactor.faces import FaceLandmarker
from xactor.faces.landmarks import find_landmarks, landmark_frames
from xactor.media import read_audio, read_frames, write_video
from xactor.metrics.sync import cepstra_windows
from xactor.metrics.sync_crop import sync_crop
from xactor.metrics.syncnet import SyncNetConfig
from xactor_platform.bulk.pool import Pool
from xactor_platform.curation.adapters import find_videos
from xactor_platform.curation.clip_report import PAGE, REPORT
from xactor_platform.curation.curate import CurationRun, TooManyFailed, curate, facts_of
from xactor_platform.curation.curation_config import Bounds, CurationConfig, CurationPools, Gates
from xactor_platform.curation.group_plan import GroupPlan
from xactor_platform.curation.lips import syncnet_facts
from xactor_platform.curation.messages import Ended, Fate
from xactor_platform.curation.people import PEOPLE
from xactor_platform.curation.track import Track
from xactor_platform.data.index_file import load_index
from xactor_platform.evaluation.syncnet_training import Clip as SyncClip
from xactor_platform.evaluation.syncnet_training import SyncNetTraining, train_syncnet

# Functions import `talkers` themselves: Ray's workers import this file, but cannot import `talkers`.

TINY = SyncNetConfig(
    image_size=64,
    mouth_px=32,
    stem_stride=1,
    lip_channels=(4, 8, 8, 8, 8, 16),
    audio_channels=(4, 8, 8, 8, 8, 16),
    embedding=8,
)
MIN_CONFIDENCE = 0.4
"""The model below has a confidence of about 0.8 for a clip's own sound and of 0.2 for another clip's."""

# `talkers.write_good` writes this many videos. One of them has two shots and gives two clips.
GOOD_VIDEOS, GOOD_CLIPS = 9, 10
OFFSETS = {"early.mp4": 4, "below/late.mkv.mp4": -9}
FATES = {
    "swapped.mp4": "out_of_sync",
    "wall.mp4": "no_face",
    "silent.mp4": "silent",
    "mute.mp4": "no_sound",
    "music.mp4": "no_speech",
    "short.mp4": "too_short",
    "large.mp4": "too_large",
    "endless.mp4": "too_long",
    "truncated.mp4": "unreadable",
    "corrupt.mp4": "unreadable",
    "empty.mp4": "unreadable",
    "list.mp4": "unreadable",
    "a; rm -rf $HOME\n.mp4": "unreadable",
    "out.mp4": "bad_name",
    "nowhere.mp4": "bad_name",
}


@pytest.fixture(scope="module")
def videos(talkers, tmp_path_factory) -> Path:
    from talkers import write_faults, write_good

    folder = tmp_path_factory.mktemp("videos")
    write_good(folder, *talkers)
    write_faults(folder, *talkers)
    return folder


@pytest.fixture(scope="module")
def syncnet(talkers, tmp_path_factory) -> str:
    """Train a SyncNet only on the clips of the two talkers, so that it overfits them."""
    landmarker = FaceLandmarker(max_faces=1)
    clips = []
    for number, talker in enumerate(talkers):
        faces = landmarker.follow(iter(talker.frames[:30]))
        box = np.median([face.box for face in faces if face], axis=0)
        crops = np.stack([sync_crop(picture, box, 68) for picture in talker.frames])
        cepstra = cepstra_windows(talker.samples, 0, len(crops) - 5)
        clips.append(
            SyncClip(key=f"k{number}", source="demo", crops=crops, samples=talker.samples, cepstra=cepstra)
        )
    folder = tmp_path_factory.mktemp("syncnet")
    training = {"steps": 300, "runs": 2, "run_windows": 24, "learning_rate": 1e-2, "threads": 1}
    train_syncnet(SyncNetTraining(output=folder, model=TINY, **training), clips)
    return str(folder)


def config_of(videos: Path | str, output: Path | str, syncnet: str = "none", **changes) -> CurationConfig:
    pools = {name: Pool(max=1, cpus=0.4) for name in ("probe", "scan", "cut", "sync", "recognise", "write")}
    given = {
        "videos": str(videos),
        "output": str(output),
        "syncnet": syncnet,
        "size_px": 96,
        # Most of the good videos are copies of one recording. The last tests show that copies are found.
        "gates": Gates(min_crop_px=96, min_confidence=MIN_CONFIDENCE, max_copied=1),
        "identity": "none",
        "bounds": Bounds(max_pixels=300_000, max_s=3600),
        "pools": CurationPools(**pools, track=Pool(min=2, max=2, cpus=0.5)),
        "videos_per_shard": 8,
        "max_failed": 1.0,
    }
    return CurationConfig(**{**given, **changes})


def run(config: CurationConfig, lines: list[str] | None = None):
    if lines is None:
        lines = []
    return curate(config, connect=lambda: None, say=lines.append)


@pytest.fixture(scope="module")
def curated(ray_cluster, videos, syncnet, tmp_path_factory):
    """Run curation over all videos. Return the config, the result and the lines of progress."""
    config = config_of(videos, tmp_path_factory.mktemp("curated") / "out", syncnet)
    lines: list[str] = []
    return config, run(config, lines), lines


def by_video(fates: list[Fate]) -> dict[str, list[Fate]]:
    found: dict[str, list[Fate]] = {}
    for fate in fates:
        # Fates name videos with their unprintable characters escaped, such as a newline.
        name = fate.video.encode().decode("unicode_escape")
        found.setdefault(name, []).append(fate)
    return found


def shards_of(folder: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.tar"))}


@pytest.mark.cluster
def test_every_fault_is_found_and_no_good_clip_is_lost(curated, videos):
    _, result, lines = curated
    fates = by_video(result.fates)
    files = {str(path.relative_to(videos)) for path in videos.rglob("*.mp4")}
    assert fates.keys() == files
    assert {name: fates[name][0].reason for name in FATES} == FATES
    assert all(fates[name][0].status != "kept" and len(fates[name]) == 1 for name in FATES)
    for name in files - FATES.keys():
        assert {fate.status for fate in fates[name]} == {"kept"}, fates[name]
        assert len(fates[name]) == (2 if name == "two shots.mp4" else 1)
        for fate in fates[name]:
            assert abs((fate.sync_offset or 0) - OFFSETS.get(name, 0)) <= 1
            assert fate.syncnet == "small, trained on the demo corpus"
            assert fate.split == "short"
            assert fate.seconds > 3.4
    cut = fates["two shots.mp4"]
    # Frames whose sound, moved by the offset, lies before the file's beginning are left out.
    assert [round(fate.start_s * 25) for fate in cut] == [max(cut[0].sync_offset or 0, 0), 100]
    assert any(line.startswith("large.mp4: too_large: 640x640 px are more than 300000") for line in lines)
    assert not any(str(videos) in fate.detail for fate in result.fates)


@pytest.mark.cluster
def test_the_shards_hold_square_faces_with_the_sound_that_belongs_to_them(curated, talkers, tmp_path):
    config, result, _ = curated
    index = load_index(config.output)
    kept = {fate.clip: fate for fate in result.fates if fate.status == "kept"}
    assert sorted(index.key) == sorted(kept)
    assert all(name.startswith("short-000") for name in index.shard_names)
    file = tmp_path / "clip.mp4"
    for row in range(index.samples):
        meta, fate = index.read_meta(row), kept[str(index.key[row])]
        file.write_bytes(index.read(row, "mp4"))
        pictures = list(read_frames(file))
        assert {picture.shape for picture in pictures} == {(96, 96, 3)}
        sound = read_audio(file)
        assert len(pictures) == meta["frames"]
        assert np.load(io.BytesIO(index.read(row, "controls.npy"))).shape == (meta["frames"], 57)
        again = np.stack([find_landmarks(pictures[n]) for n in landmark_frames(len(pictures))])
        assert np.abs(np.load(io.BytesIO(index.read(row, "landmarks.npy"))) - again).mean((1, 2)).max() < 0.03
        assert round(len(sound) / 640) == meta["frames"]
        assert index.frames[row] == meta["frames"]
        assert (meta["source"], meta["fps"], meta["speaker"]) == (fate.video, 25, fate.speaker)
        assert meta["sync_confidence"] == fate.sync_confidence
        assert meta["sync_confidence"] > MIN_CONFIDENCE
        # The sound must fit the frames: compare it with the sound of the talker whose frames the clip has. The second
        # talker is in the photo and in the second of the two shots, which starts at frame 100.
        first = round(fate.start_s * 25)
        is_second_shot = first >= 100
        talker = talkers[1] if "photo" in fate.video or is_second_shot else talkers[0]
        if is_second_shot:
            first -= 100
        edge = 15 * 640
        middle = sound[edge:-edge]
        lags = {
            lag: np.corrcoef(middle, shifted(talker.samples, (first + lag) * 640 + edge, len(middle)))[0, 1]
            for lag in range(-10, 11)
        }
        best = max(lags, key=lambda lag: lags[lag])
        assert abs(best) <= 1, (fate.video, best)


def shifted(samples: np.ndarray, first: int, count: int) -> np.ndarray:
    """Return `count` samples from the sample `first` on, with silence before and after the sound."""
    padded = np.concatenate([np.zeros(16_000, np.float32), samples, np.zeros(32_000, np.float32)])
    return padded[first + 16_000 : first + 16_000 + count]


@pytest.mark.cluster
def test_the_report_and_the_bill_count_all_clips(curated):
    config, result, _ = curated
    table = pq.read_table(Path(config.output, REPORT))
    assert table.num_rows == len(result.fates)
    assert table.column("reason").to_pylist() == [fate.reason for fate in result.fates]
    text = Path(config.output, PAGE).read_text()
    assert "small, trained on the demo corpus" in text
    assert "out_of_sync" in text
    assert "<svg" in text
    assert "<script" not in text
    bill = json.loads(Path(config.output, "bill.json").read_text())
    assert bill["videos"] == len(FATES) + GOOD_VIDEOS
    assert bill == result.bill.as_json()
    assert (bill["clips"], bill["fates"]["kept"]) == (GOOD_CLIPS, GOOD_CLIPS)
    # Each good clip has about 4 s.
    assert bill["hours_kept"] == pytest.approx(GOOD_CLIPS * 4 / 3600, rel=0.05)
    assert set(bill["stage_s"]) == {"probe", "scan", "track", "cut", "sync", "recognise", "write"}
    assert all(seconds > 0 for seconds in bill["stage_s"].values())
    assert not Path(config.output, ".parts").exists()
    assert not list(Path(config.output).rglob("*.partial"))


class LoggingTrack(Track):
    """Log the pieces that are started, in a file next to the output."""

    def work(self, message):
        with Path(self._output).with_name("begun").open("a") as log:
            log.write(f"{message.video.key}-{message.number} {os.getpid()}\n")
        return super().work(message)


class LoggedRun(CurationRun):
    """Run curation with a tracking stage that logs."""

    stages = tuple(LoggingTrack if stage is Track else stage for stage in CurationRun.stages)


class InterruptedRun(LoggedRun):
    """Stop the driver when half of the good clips are kept."""

    def _end(self, ended: Ended) -> None:
        super()._end(ended)
        if self._tally.clips >= 5:
            raise KeyboardInterrupt


def run_logged(config: CurationConfig, kind: type[CurationRun] = LoggedRun, *, order: int = 1):
    """Run curation with the given class, as `curate` does. The order 1 or -1 is that of the videos or its reverse."""
    found, refused = find_videos(config.videos, "folder", None)
    facts = facts_of(config, [*found, *(fate for _, fate in refused)])
    plan = GroupPlan.update(config, facts, [*(video.key for video in found), *(key for key, _ in refused)])
    return kind(config, plan, facts, lambda line: None).make(found[::order], refused)


def started_pieces(config: CurationConfig) -> list[tuple[str, int]]:
    """Return the pieces that were started, each with the id of the process that started it."""
    log = Path(config.output).with_name("begun")
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(line[0], int(line[1])) for line in lines if len(line) == 2]


@contextlib.contextmanager
def kill_a_worker(config: CurationConfig) -> Iterator[list[int]]:
    """Kill the process that started the latest piece, once two pieces have started.

    Yield a list, to which the id of the killed process is appended.
    """
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05) and not killed:
            started = started_pieces(config)
            if len(started) >= 2:
                _, process = started[-1]
                killed.append(process)
                os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


@pytest.mark.cluster
def test_an_interrupted_run_and_a_killed_worker_give_the_same_output(curated, tmp_path):
    """Stop the driver of one run, and kill a worker of the run that continues it. At most one piece is repeated."""
    first, *_ = curated
    config = replace(first, output=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        run_logged(config, InterruptedRun)
    started_before = {piece for piece, _ in started_pieces(config)}
    finished_before = {
        f"{path.parent.name}-{int(path.stem)}"
        for path in Path(config.output).glob(".parts/*/*.json")
        if path.stem.isdigit()
    }
    assert started_before & finished_before
    Path(config.output).with_name("begun").unlink()
    with kill_a_worker(config) as killed:
        result = run_logged(config)
    assert killed
    pieces = [piece for piece, _ in started_pieces(config)]
    assert len(pieces) - len(set(pieces)) <= 1
    assert not set(pieces) & finished_before
    assert shards_of(config.output) == shards_of(first.output)
    assert len(shards_of(config.output)) >= 2
    assert len(result.fates) == len(FATES) + GOOD_CLIPS
    assert (Path(config.output, REPORT)).read_bytes() == Path(first.output, REPORT).read_bytes()

    Path(config.output).with_name("begun").unlink()
    again = run_logged(config)
    assert again.bill.figures["there"] == again.bill.figures["videos"]
    assert started_pieces(config) == []
    with pytest.raises(ValueError, match="was made with another size_px: 96, now 128; choose another output"):
        run(replace(config, size_px=128))


@pytest.mark.soak
@pytest.mark.cluster
def test_more_videos_leave_existing_shards_unchanged(curated, videos, syncnet, bucket):
    """This run also reads from and writes to an object store."""
    from pyarrow import fs

    raw, out = bucket.format("raw"), bucket.format("out")
    store, path = fs.FileSystem.from_uri(raw)
    store.create_dir(path, recursive=True)

    def put(name: str, as_name: str) -> None:
        with store.open_output_stream(f"{path}/{as_name}") as file:
            file.write((videos / name).read_bytes())

    put("plain.mp4", "a plain #1.mp4")
    put("empty.mp4", "empty.mp4")
    config = config_of(raw, out, syncnet, videos_per_shard=1)
    result = run(config)
    assert {(f.video, f.reason) for f in result.fates} == {
        ("a plain #1.mp4", ""),
        ("empty.mp4", "unreadable"),
    }
    before = load_index(out)
    put("photo.mp4", "another.mp4")
    assert run(config).bill.figures["there"] == 2
    index = load_index(out)
    assert index.shard_names[:1] == before.shard_names
    assert index.shard_sizes[:1] == before.shard_sizes
    assert index.samples == 2


class Shrunk(torch.nn.Module):
    """Embed a face by its picture, shrunk to 8 x 8 pixels, in ArcFace's convention."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(x, 14)
        return (small - small.mean(dim=(2, 3), keepdim=True)).flatten(1)


class StoppedRun(CurationRun):
    """Stop the driver when three clips are kept."""

    def _end(self, ended: Ended) -> None:
        super()._end(ended)
        if self._tally.clips == 3:
            raise KeyboardInterrupt


class HalfAssembledRun(CurationRun):
    """Stop the driver when the first group of videos is assembled."""

    def _assemble(self, people) -> None:
        self._plan = GroupPlan(self._plan.groups[:1])
        super()._assemble(people)
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def people(talkers, tmp_path_factory) -> Path:
    """Write videos of three people in four folders, a copy of a file, and a video that was encoded again."""
    from talkers import Talker

    folder = tmp_path_factory.mktemp("people")
    for name, number in {
        "alice/1": 0,
        "alice/2": 0,
        "bob/1": 1,
        "bob/2": 1,
        "carol/1": 2,
        "zoe/1": 0,
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        talker = Talker(number, seed=len(list(folder.rglob("*.mp4"))) + 10, seconds=2.4)
        write_video(folder / f"{name}.mp4", talker.frames, samples=talker.samples)
        if name == "bob/1":
            small = talker.frames[5:, ::2, ::2]
            write_video(folder / "bob" / "small.mp4", small, samples=talker.samples[5 * 640 :], crf=30)
    shutil.copy(folder / "alice" / "1.mp4", folder / "carol" / "same.mp4")
    torch.jit.script(Shrunk()).save(folder / "shrunk.pt")
    return folder


@pytest.mark.cluster
def test_people_are_held_out_whole_and_copies_are_dropped_by_name(ray_cluster, people, tmp_path):
    config = config_of(
        people,
        tmp_path / "out",
        identity=str(people / "shrunk.pt"),
        min_similarity=0.9,
        held_out=0.5,
        videos_per_shard=3,
        gates=Gates(min_crop_px=32),
        size_px=64,
    )
    lines: list[str] = []
    result = run(config, lines)
    fates = {fate.video: fate for fate in result.fates}
    assert {name: fate.reason for name, fate in fates.items() if fate.status != "kept"} == {
        "carol/same.mp4": "duplicate",
        "bob/small.mp4": "duplicate",
    }
    assert fates["carol/same.mp4"].detail == "the same file as alice/1.mp4"
    assert fates["bob/small.mp4"].detail.startswith("a copy of bob/1.mp4, clip 1-")
    kept = {fate.video: fate for fate in result.fates if fate.status == "kept"}
    # Zoe and Alice are one person.
    assert {fate.video: fate.person for fate in kept.values()} == {
        "alice/1.mp4": "alice",
        "alice/2.mp4": "alice",
        "bob/1.mp4": "bob",
        "bob/2.mp4": "bob",
        "carol/1.mp4": "carol",
        "zoe/1.mp4": "alice",
    }
    splits: dict[str, set[str]] = {}
    for fate in kept.values():
        splits.setdefault(fate.person, set()).add(fate.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"short", "test"}
    index = load_index(config.output)
    assert {index.read_meta(row)["person"] for row in range(index.samples)} == set(splits)
    for row in range(index.samples):
        is_test = index.shard_names[index.shard[row]].startswith("test")
        assert is_test == (splits[index.read_meta(row)["person"]] == {"test"})
    held_out = [person for person, found in splits.items() if found == {"test"}]
    (line,) = [line for line in result.summary() if "people by their faces" in line]
    assert line.startswith("3 people by their faces (shrunk.pt (sha256 ")
    assert f"clips of each: 1 to 3, median 2; held out: {len(held_out)} people with" in line
    assert any(line.startswith("speakers who are one person: alice = zoe (") for line in result.summary())
    assert "alice = zoe" in Path(config.output, PAGE).read_text()
    assert json.loads(Path(config.output, "bill.json").read_text())["fates"] == {"duplicate": 2, "kept": 6}
    assert fates["alice/1.mp4"].own_similarity > 0.9 > fates["alice/1.mp4"].other_similarity

    # Stop the driver twice, and give it the videos in another order.
    again = replace(config, output=str(tmp_path / "again"))
    for kind in (StoppedRun, HalfAssembledRun):
        with pytest.raises(KeyboardInterrupt):
            run_logged(again, kind, order=-1)
    times = {name: Path(again.output, name).stat().st_mtime_ns for name in shards_of(again.output)}
    assert 0 < len(times) < len(shards_of(config.output))
    run_logged(again, CurationRun, order=-1)
    assert shards_of(again.output) == shards_of(config.output)
    assert all(Path(again.output, name).stat().st_mtime_ns == time for name, time in times.items())
    for name in (REPORT, PEOPLE):
        assert Path(again.output, name).read_bytes() == Path(config.output, name).read_bytes()


def test_too_many_bad_videos_end_the_run(ray_cluster, videos, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("empty.mp4", "list.mp4"):
        (tmp_path / "in" / name).write_bytes((videos / name).read_bytes())
    says = r"of 2 videos failed \(missing, unreadable or too slow\), the bound \(max_failed\) is 0.2"
    with pytest.raises(TooManyFailed, match=says):
        run(config_of(tmp_path / "in", tmp_path / "out", max_failed=0.2))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size_px": 63}, "size_px must be even and >= 32, got 63"),
        ({"held_out": 1.0}, "held_out must be >= 0 and < 1, got 1"),
        ({"max_failed": 2}, "max_failed must be within 0..1, got 2"),
        ({"attempts": 0}, "attempts must be >= 1, got 0"),
    ],
)
def test_invalid_settings_are_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        CurationConfig(**changes)


def test_a_model_without_a_report_needs_a_bound(syncnet, tmp_path):
    with pytest.raises(ValueError, match="has no sync.json with its confidences"):
        syncnet_facts(syncnet, None)
    with pytest.raises(ValueError, match="no such file of weights"):
        syncnet_facts(str(tmp_path / "none"), None)
    assert syncnet_facts("none", None) == {"weights": None, "min_confidence": 0.0}
    Path(syncnet, "sync.json").write_text('{"confidence_true": 2.0, "confidence_swapped": 1.0}')
    assert syncnet_facts(syncnet, None)["min_confidence"] == 1.5
    assert syncnet_facts(syncnet, 0.5)["weights"] == "small, trained on the demo corpus"
    Path(syncnet, "sync.json").unlink()

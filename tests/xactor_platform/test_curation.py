"""Curation: every planted fault meets its fate, no good clip is lost, sound and pictures stay together, and what dies
costs no more than it was doing."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from xactor.faces import FaceLandmarker
from xactor.media import read_audio, read_frames, write_video
from xactor.metrics.sync import cepstra_windows
from xactor.metrics.sync_crop import sync_crop
from xactor.metrics.syncnet import SyncNetConfig
from xactor_platform.curation.account import PAGE, REPORT
from xactor_platform.curation.adapters import find_videos
from xactor_platform.curation.config import Bounds, CurateConfig, CuratePools, Gates
from xactor_platform.curation.cut import Cut
from xactor_platform.curation.files import key_of, list_videos
from xactor_platform.curation.guard import Bad, Guard
from xactor_platform.curation.lips import syncnet_facts
from xactor_platform.curation.measures import blur, face_thumbnail, occluded, speech_db
from xactor_platform.curation.parts import Parts
from xactor_platform.curation.probe import look
from xactor_platform.curation.run import BudgetSpent, Plan, Run, curate
from xactor_platform.curation.scan import MOST_FRAMES, Scan, part, pieces_of, spans_of
from xactor_platform.curation.shots import shot_starts
from xactor_platform.curation.track import Track
from xactor_platform.curation.work import Clip, Ended, Fate, Probed, Video
from xactor_platform.curation.write import Write, split_of
from xactor_platform.index import load_index
from xactor_platform.pools import Pool
from xactor_platform.training.syncnet import Clip as SyncClip
from xactor_platform.training.syncnet import SyncNetTraining, train_syncnet

# `talkers` is imported where it is used: workers import this file, and do not find that one.

TINY = SyncNetConfig(
    image_size=64,
    mouth_px=32,
    stem_stride=1,
    lip_channels=(4, 8, 8, 8, 8, 16),
    audio_channels=(4, 8, 8, 8, 8, 16),
    embedding=8,
)
ENOUGH = 0.4  # of the confidence of the model below: about 0.8 with the clips' own sound, 0.2 with another's
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
def talkers() -> tuple:
    from talkers import Talker

    return Talker(1, seed=1), Talker(0, seed=2)


@pytest.fixture(scope="module")
def videos(talkers, tmp_path_factory) -> Path:
    from talkers import write_faults, write_good

    folder = tmp_path_factory.mktemp("videos")
    write_good(folder, *talkers)
    write_faults(folder, *talkers)
    return folder


@pytest.fixture(scope="module")
def syncnet(talkers, tmp_path_factory) -> str:
    """It knows these two people's words by heart, no more."""
    landmarker = FaceLandmarker(most_faces=1)
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


def config_of(videos: Path | str, output: Path | str, syncnet: str = "none", **changes) -> CurateConfig:
    pools = {name: Pool(max=1, cpus=0.5) for name in ("probe", "scan", "cut", "sync", "write")}
    given = {
        "videos": str(videos),
        "output": str(output),
        "syncnet": syncnet,
        "size_px": 96,
        "gates": Gates(least_crop_px=96, least_confidence=ENOUGH),
        "bounds": Bounds(most_pixels=300_000, most_s=3600),
        "pools": CuratePools(**pools, track=Pool(min=2, max=2, cpus=0.5)),
        "videos_per_shard": 8,
        "max_failed": 1.0,
    }
    return CurateConfig(**{**given, **changes})


def run(config: CurateConfig, said: list[str] | None = None):
    return curate(config, connect=lambda: None, say=(said if said is not None else []).append)


@pytest.fixture(scope="module")
def curated(ray_cluster, videos, syncnet, tmp_path_factory):
    """A run over all videos: its config, its outcome and what it said."""
    config = config_of(videos, tmp_path_factory.mktemp("curated") / "out", syncnet)
    said: list[str] = []
    return config, run(config, said), said


def by_video(fates: list[Fate]) -> dict[str, list[Fate]]:
    found: dict[str, list[Fate]] = {}
    for fate in fates:
        found.setdefault(fate.video.encode().decode("unicode_escape"), []).append(fate)
    return found


def shards_of(folder: Path | str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.tar"))}


@pytest.mark.cluster
def test_every_fault_meets_its_fate_and_no_good_clip_is_lost(curated, videos):
    _, outcome, said = curated
    fates = by_video(outcome.fates)
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
    assert [round(fate.start_s * 25) for fate in cut] == [0, 100]
    assert any(line.startswith("large.mp4: too_large: 640x640 px are more than 300000") for line in said)
    assert not any(str(videos) in fate.detail for fate in outcome.fates)


@pytest.mark.cluster
def test_the_shards_hold_square_faces_with_the_sound_that_belongs_to_them(curated, talkers, tmp_path):
    config, outcome, _ = curated
    index = load_index(config.output)
    kept = {fate.clip: fate for fate in outcome.fates if fate.status == "kept"}
    assert sorted(index.key) == sorted(kept)
    assert all(name.startswith("short-000") for name in index.shard_names)
    file = tmp_path / "clip.mp4"
    for row in range(index.samples):
        meta, fate = index.read_meta(row), kept[str(index.key[row])]
        file.write_bytes(index.read(row, "mp4"))
        pictures = list(read_frames(file))
        assert {picture.shape for picture in pictures} == {(96, 96, 3)}
        sound = read_audio(file)
        assert len(pictures) == meta["frames"] == round(len(sound) / 640) == index.frames[row]
        assert (meta["source"], meta["fps"], meta["speaker"]) == (fate.video, 25, fate.speaker)
        assert meta["sync_confidence"] == fate.sync_confidence > ENOUGH
        # The sound is where the lips say it: as in the talker whose frames these are.
        first = round(fate.start_s * 25)
        who = talkers[1] if "photo" in fate.video or first >= 100 else talkers[0]
        at = first - 100 if first >= 100 else first
        lags = {
            lag: np.corrcoef(
                sound[9600:-9600], shifted(who.samples, at * 640 + 9600 + lag * 640, len(sound) - 19200)
            )[0, 1]
            for lag in range(-10, 11)
        }
        best = max(lags, key=lambda lag: lags[lag])
        assert abs(best) <= 1, (fate.video, best)


def shifted(samples: np.ndarray, first: int, count: int) -> np.ndarray:
    padded = np.concatenate([np.zeros(16_000, np.float32), samples, np.zeros(32_000, np.float32)])
    return padded[first + 16_000 : first + 16_000 + count]


@pytest.mark.cluster
def test_the_account_counts_what_became_of_all(curated):
    config, outcome, _ = curated
    table = pq.read_table(Path(config.output, REPORT))
    assert table.num_rows == len(outcome.fates)
    assert table.column("reason").to_pylist() == [fate.reason for fate in outcome.fates]
    text = Path(config.output, PAGE).read_text()
    assert "small, trained on the demo corpus" in text
    assert "out_of_sync" in text
    assert "<svg" in text
    assert "<script" not in text
    bill = json.loads(Path(config.output, "bill.json").read_text())
    assert bill["videos"] == outcome.bill.videos == len(FATES) + 9
    assert (bill["clips"], bill["fates"]["kept"]) == (10, 10)
    assert bill["hours_kept"] == pytest.approx(40 / 3600, rel=0.05)
    assert set(bill["stage_s"]) == {"probe", "scan", "track", "cut", "sync", "write"}
    assert all(seconds > 0 for seconds in bill["stage_s"].values())
    assert not Path(config.output, ".parts").exists()
    assert not list(Path(config.output).rglob("*.part"))


class Counting(Track):
    """Writes down, beside the output, what it begins."""

    def run(self, work):
        with Path(self._output).with_name("begun").open("a") as log:
            log.write(f"{work.video.key}-{work.number} {os.getpid()}\n")
        return super().run(work)


class Counted(Run):
    stages = {**Run.stages, "track": Counting}  # noqa: RUF012


class Interrupted(Counted):
    """Its driver dies when half of the pieces are finished."""

    def _ended(self, ended: Ended) -> None:
        super()._ended(ended)
        if self._tally.clips >= 5:
            raise KeyboardInterrupt


def counted(config: CurateConfig, kind: type[Run] = Counted):
    found, refused = find_videos(config.videos, "folder", None)
    facts = syncnet_facts(config.syncnet, config.gates.least_confidence)
    plan = Plan.of(config, facts, [*(video.key for video in found), *(key for key, _ in refused)])
    return kind(config, plan, facts["least_confidence"], lambda line: None).make(found, refused)


def begun(config: CurateConfig) -> list[tuple[str, int]]:
    """Pieces, and by which process."""
    log = Path(config.output).with_name("begun")
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(line[0], int(line[1])) for line in lines if len(line) == 2]


@contextlib.contextmanager
def a_worker_is_killed(config: CurateConfig) -> Iterator[list[int]]:
    """The one that began a piece last, once two are begun: its process, when it is dead."""
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.05) and not killed:
            if len(at_work := begun(config)) >= 2:
                killed.append(at_work[-1][1])
                os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()


@pytest.mark.cluster
def test_cut_short_and_then_with_a_killed_worker_it_ends_as_undisturbed(curated, tmp_path):
    """The driver dies amid a run; in the next one a worker dies. The same bytes, and at most one piece done twice."""
    first, *_ = curated
    config = replace(first, output=str(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        counted(config, Interrupted)
    before = {piece for piece, _ in begun(config)}
    finished = {
        f"{path.parent.name}-{int(path.stem)}"
        for path in Path(config.output).glob(".parts/*/*.json")
        if path.stem.isdigit()
    }
    shards = {name: Path(config.output, name).stat().st_mtime_ns for name in shards_of(config.output)}
    assert before & finished
    Path(config.output).with_name("begun").unlink()
    with a_worker_is_killed(config) as killed:
        outcome = counted(config)
    assert killed
    pieces = [piece for piece, _ in begun(config)]
    assert len(pieces) - len(set(pieces)) <= 1
    assert not set(pieces) & finished
    assert shards_of(config.output) == shards_of(first.output)
    assert len(shards_of(config.output)) >= 2
    assert all(Path(config.output, name).stat().st_mtime_ns == then for name, then in shards.items())
    assert len(outcome.fates) == len(FATES) + 10
    assert (Path(config.output, REPORT)).read_bytes() == Path(first.output, REPORT).read_bytes()

    Path(config.output).with_name("begun").unlink()
    again = counted(config)
    assert again.bill.there == again.bill.videos
    assert begun(config) == []
    with pytest.raises(ValueError, match="was made with another size_px: 96, now 128; choose another output"):
        run(replace(config, size_px=128))


@pytest.mark.cluster
def test_more_videos_leave_the_shards_that_are_there(curated, videos, syncnet, bucket):
    """And from an object store to an object store."""
    from pyarrow import fs

    raw, out = bucket.format("raw"), bucket.format("out")
    there, path = fs.FileSystem.from_uri(raw)
    there.create_dir(path, recursive=True)

    def put(name: str, as_name: str) -> None:
        with there.open_output_stream(f"{path}/{as_name}") as file:
            file.write((videos / name).read_bytes())

    put("plain.mp4", "a plain #1.mp4")
    put("empty.mp4", "empty.mp4")
    config = config_of(raw, out, syncnet, videos_per_shard=1)
    outcome = run(config)
    assert {(f.video, f.reason) for f in outcome.fates} == {
        ("a plain #1.mp4", ""),
        ("empty.mp4", "unreadable"),
    }
    (name,) = load_index(out).shard_names
    before = load_index(out).shard_sizes
    put("photo.mp4", "another.mp4")
    assert run(config).bill.there == 2
    index = load_index(out)
    assert index.shard_names[0] == name
    assert index.shard_sizes[:1] == before
    assert index.samples == 2


def test_too_many_bad_videos_end_the_run(ray_cluster, videos, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("empty.mp4", "list.mp4"):
        (tmp_path / "in" / name).write_bytes((videos / name).read_bytes())
    with pytest.raises(BudgetSpent, match=r"of 2 videos cannot be read, the bound \(max_failed\) is 0.2"):
        run(config_of(tmp_path / "in", tmp_path / "out", max_failed=0.2))


# Without Ray


def through(video: Path, tmp_path: Path, **gates) -> tuple[Path, Fate]:
    """The one clip of a video, by the stages' own work, without SyncNet."""
    work = Video(key="k", name=video.name, uri=str(video), corpus="c", speaker="s")
    facts = look(str(video), most_bytes=1 << 30, most_s=100, most_pixels=1 << 20)
    probed = Probed(video=work, facts=facts)
    (piece,) = pieces_of(probed, *Scan.make(most_s=100)((probed, None)))
    (piece,) = Track.make()(piece)
    most = {"least_crop_px": 64, "least_speech_db": 0, "most_blur": 1, "most_occluded": 1, **gates}
    (piece,) = Cut.make(gates=Gates(**most), size_px=128)(piece)
    (ended,) = Write.make(folder=str(tmp_path / "out"), held_out=0, seed=0)(piece)
    (fate,) = ended.fates
    return tmp_path / "out" / ".parts" / "k" / f"{fate.clip}.mp4", fate


FLASHES = (0.52, 1.31, 2.07, 2.9)  # s


@pytest.mark.parametrize("rate", ["25", "29.97", "50", "variable", "rotated"])
def test_a_flash_and_a_beep_stay_together_within_half_a_frame(talkers, tmp_path, rate):
    from talkers import write_timed

    times = {
        "25": [Fraction(n, 25) for n in range(90)],
        "29.97": [Fraction(n * 1001, 30_000) for n in range(105)],
        "50": [Fraction(n, 50) for n in range(180)],
        "variable": [Fraction(n, 100) for n in range(360) if n % 7 in (0, 2, 3)],
        "rotated": [Fraction(n, 25) for n in range(90)],
    }[rate]
    frames = np.repeat(talkers[1].frames[:1], len(times), axis=0)
    sound = np.zeros(int(3.6 * 16_000), np.float32)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2400) / 16_000)
    lit = []
    for flash in FLASHES:
        shown = [n for n, time in enumerate(times) if flash <= time < flash + 0.15]
        frames[shown, :24, :24] = 255
        lit.append(float(times[shown[0]]))
        at = round(lit[-1] * 16_000)
        sound[at : at + len(tone)] = tone
    frames[~np.isin(np.arange(len(times)), np.flatnonzero(frames[:, 0, 0].min(axis=1) == 255)), :24, :24] = 0
    turned = np.rot90(frames, -1, axes=(1, 2)) if rate == "rotated" else frames
    write_timed(tmp_path / "v.mp4", turned, times, sound, rotation=90 if rate == "rotated" else 0)
    clip, fate = through(tmp_path / "v.mp4", tmp_path)
    assert fate.status == "kept", fate
    corner = np.array([picture[2:8, 2:8].mean() for picture in read_frames(clip)])
    bright = corner > (corner.max() + corner.min()) / 2
    seen = [n / 25 for n in range(1, len(bright)) if bright[n] and not bright[n - 1]]
    heard_in = np.abs(read_audio(clip)).reshape(-1, 16).max(axis=1) > 0.2  # by the ms
    heard = [n / 1000 for n in range(20, len(heard_in)) if heard_in[n] and not heard_in[n - 20 : n].any()]
    assert len(seen) == len(heard) == len(FLASHES)
    assert np.abs(np.array(seen) - heard).max() <= 0.020 + 0.002
    assert np.abs(np.array(heard) - lit).max() <= 0.002 + 0.001


@pytest.mark.parametrize(("missing", "frames"), [(0, 50), (201, 50), (401, 49), (1001, 48)])
def test_sound_may_end_within_a_frame(talkers, tmp_path, missing, frames):
    talker = talkers[0]
    write_video(tmp_path / "v.mp4", talker.frames[:50], samples=talker.samples[: 50 * 640])
    samples = talker.samples[: 50 * 640 - missing]
    assert spans_of(tmp_path / "v.mp4", samples, (), 100) == [(0, frames)]


def test_a_long_shot_is_parted_where_it_is_quiet():
    loudness = np.ones(4000)
    loudness[1980:1990] = 0
    pieces = part(100, 3100, loudness)
    assert pieces[0][0] == 100
    assert pieces[-1][1] == 3100
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    assert all(0 < end - first <= MOST_FRAMES for first, end in pieces)
    assert part(0, MOST_FRAMES, loudness) == [(0, MOST_FRAMES)]


def test_shots_begin_at_cuts_and_not_at_flashes_or_gestures():
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 255, (36, 64, 3)) for _ in range(3)]
    frames = [scenes[0]] * 30 + [scenes[1]] * 40 + [scenes[2]] * 3 + [scenes[0]] * 30
    moving = [np.clip(f + rng.integers(-4, 5, f.shape), 0, 255).astype(np.uint8) for f in frames]
    moving[15] = np.full_like(moving[0], 255)  # a flash
    for n in range(40, 60):  # a hand that comes up
        moving[n] = moving[n].copy()
        moving[n][36 - (n - 40) :, 20:40] = 120
    moving[60:70] = [moving[59]] * 10
    assert shot_starts(iter(moving)) == ([0, 30, 70, 73], 103)
    assert shot_starts(iter([])) == ([], 0)


@pytest.mark.parametrize("length", [8, 25, 50])
def test_no_clip_holds_a_part_of_a_dissolve(length):
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 255, (36, 64, 3)) for _ in range(2))
    share = np.concatenate([np.zeros(60), np.arange(1, length + 1) / (length + 1), np.ones(60)])
    frames = [before * (1 - part) + after * part for part in share]
    noisy = (np.clip(frame + rng.integers(-4, 5, frame.shape), 0, 255).astype(np.uint8) for frame in frames)
    starts, count = shot_starts(noisy)
    long = [(a, b) for a, b in zip(starts, [*starts[1:], count], strict=True) if b - a >= 25]
    assert len(long) == 2
    for first, end in long:
        assert len(set(share[first:end].round())) == 1
        assert np.abs(share[first:end] - share[first:end].round()).max() < 0.2  # seen by nobody
        assert end - first >= 40  # little else is lost


def test_the_measures_tell_bad_from_good(talkers):
    import cv2

    face = talkers[1].frames[0]
    soft = [blur(cv2.GaussianBlur(face, (0, 0), sigma)) for sigma in (0.01, 1, 2, 4)]
    assert soft == sorted(soft)
    assert soft[-1] - soft[0] > 0.3
    points = np.array([(55, 65), (105, 65), (80, 90)], np.float32)
    open_faces = [face_thumbnail(picture, points) for picture in talkers[1].frames[::5]]
    covered = []
    for n, picture in enumerate(talkers[1].frames[::5]):
        barred = picture.copy()
        if n % 3 == 0:
            barred[92:125, 40:120] = 15
        covered.append(face_thumbnail(barred, points))
    assert occluded(np.stack(open_faces)) < 0.1
    assert occluded(np.stack(covered)) > 0.3
    time_s = np.arange(32_000) / 16_000
    assert speech_db(np.sin(2 * np.pi * 300 * time_s).astype(np.float32), 640) < 1
    assert speech_db(talkers[0].samples, 640) > 15


def test_a_speakers_clips_are_all_held_out_or_none_is():
    clips = [Clip(first=0, end=249), Clip(first=0, end=250)]
    held = {name: [split_of(clip, name, 0.3, 0) for clip in clips] for name in map(str, range(300))}
    assert {tuple(splits) for splits in held.values()} == {("test", "test"), ("short", "long")}
    assert 60 < sum(splits == ["test", "test"] for splits in held.values()) < 120
    assert held == {name: [split_of(clip, name, 0.3, 0) for clip in clips] for name in held}


def test_keys_are_plain_and_each_files_own(tmp_path):
    names = ["a.mp4", "b/a.mp4", "A.mp4", "ä ö.mp4", "../x.mp4", "." * 300 + ".mp4"]
    keys = [key_of(name) for name in names]
    assert len({key.lower() for key in keys}) == len(names)
    assert all(key.replace("-", "").replace("_", "").isalnum() and len(key) < 64 for key in keys)
    with pytest.raises(ValueError, match="no such folder"):
        list_videos(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="no videos found"):
        list_videos(str(tmp_path))


def does(how: str):
    """For a process that may die."""

    def work(given):
        if given == "sleep":
            time.sleep(60)
        if given == "die":
            os._exit(7)
        if given == "eat":
            return bytearray(3 << 30)
        if given == "raise":
            raise ValueError("no good")
        return how + given

    return work


def test_what_strangers_made_is_bounded_in_time_and_memory():
    guard = Guard(does, {"how": "well "}, memory_bytes=2 << 30)
    try:
        assert guard("done", 10) == "well done"
        for given, reason in (("die", "crashed"), ("eat", "too_much_memory"), ("sleep", "too_slow")):
            with pytest.raises(Bad) as caught:
                guard(given, 0.5 if given == "sleep" else 20)
            assert caught.value.reason == reason
        with pytest.raises(ValueError, match="no good"):
            guard("raise", 10)
        assert guard("again", 60) == "well again"
    finally:
        guard.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"size_px": 63}, "size_px must be even and >= 32, got 63"),
        ({"held_out": 1.0}, "held_out must be within 0..1, got 1"),
        ({"max_failed": 2}, "max_failed must be within 0..1, got 2"),
        ({"attempts": 0}, "attempts must be >= 1, got 0"),
    ],
)
def test_settings_that_cannot_be(changes, says):
    with pytest.raises(ValueError, match=says):
        CurateConfig(**changes)


def test_a_model_without_a_report_needs_a_bound(syncnet, tmp_path):
    with pytest.raises(ValueError, match="has no sync.json that says what is enough"):
        syncnet_facts(syncnet, None)
    with pytest.raises(ValueError, match="no such file of weights"):
        syncnet_facts(str(tmp_path / "none"), None)
    assert syncnet_facts("none", None) == {"weights": None, "least_confidence": 0.0}
    Path(syncnet, "sync.json").write_text('{"confidence_true": 2.0, "confidence_swapped": 1.0}')
    assert syncnet_facts(syncnet, None)["least_confidence"] == 1.5
    assert syncnet_facts(syncnet, 0.5)["weights"] == "small, trained on the demo corpus"
    Path(syncnet, "sync.json").unlink()


def test_what_is_finished_is_read_back(tmp_path):
    parts = Parts(str(tmp_path), "v")
    fate = Fate(video="v.mp4", status="kept", clip="v-0000-00", end_s=2.0, split="short")
    parts.cut([(0, 50), (50, 90)])
    assert parts.spans() == [(0, 50), (50, 90)]
    ended = Ended(key="v", number=1, of=2, fates=(fate,), looked_s=2.0)
    parts.finish(ended, {"v-0000-00": (b"mp4", {"frames": 50})})
    assert parts.finished(0) is None
    assert parts.finished(1) == replace(ended, again=True)
    assert parts.all() == ([fate], [("v-0000-00", {"frames": 50})])
    assert parts.mp4("v-0000-00") == b"mp4"
    parts.forget()
    assert parts.spans() is None
    assert list((tmp_path / ".parts").iterdir()) == []

"""Test that sound and pictures land where a player presents them, whatever the clock of a file does."""

from pathlib import Path

import av
import numpy as np
import pytest
from films import EVENTS_S, FRAME_S, clicks, film, flashes, join
from sounds import write_sound

from xactor.media import read_audio, read_frames, read_span
from xactor.media.clock import duration_s
from xactor.media.container import open_container
from xactor.media.seek import pick_frames

WRAP_S = 2**33 / 90_000
"""Length of the clock of MPEG-TS in seconds."""
TONE = 0.1 * np.sin(2 * np.pi * 200 * np.arange(60 * 16_000) / 16_000)


def assert_in_sync(path: Path, events_s: list[float]) -> None:
    """Check that all readers see and hear the events at their times, and agree on the frames.

    A player starts with the track that begins first. That may be the sound, as AAC's first block is before time 0.
    """
    seen, heard = flashes(read_frames(path)), clicks(read_audio(path))
    assert len(seen) == len(heard) == len(events_s)
    assert np.abs(np.array(seen) - heard).max() < FRAME_S
    assert np.abs(np.array(heard) - events_s).max() < FRAME_S
    # A reader that skips the beginning numbers the frames as one that reads them all.
    everything = list(read_frames(path))
    for first in (0, 30, len(everything) // 2, len(everything) - 30):
        np.testing.assert_array_equal(list(read_span(path, first)), everything[first:])
    numbers = [3, len(everything) // 2, len(everything) - 1]
    picked = list(pick_frames(path.read_bytes(), numbers))
    np.testing.assert_array_equal(picked, [everything[n] for n in numbers])
    with pytest.raises(ValueError, match=f"ends after {len(everything)} frames"):
        list(pick_frames(path.read_bytes(), [len(everything)]))


@pytest.mark.parametrize(
    ("suffix", "starts_s"),
    [
        (".ts", (0, 0)),
        (".ts", (0, 100)),
        (".ts", (100, 0)),
        (".ts", (50, 0, 3_000, 0)),
        (".ts", (WRAP_S - 100, WRAP_S - 3, 0)),
        (".mpg", (0, 0)),
    ],
)
def test_the_parts_of_a_joined_stream_follow_each_other(tmp_path, caplog, suffix, starts_s):
    parts = [film(tmp_path / f"{n}{suffix}", start_s=start_s) for n, start_s in enumerate(starts_s)]
    joined = join(tmp_path / f"joined{suffix}", *parts)
    with open_container(parts[0]) as container:
        part_s = duration_s(container, parts[0], 100)
    # The next part begins when the longer track has ended, and its first picture is shown two frames later.
    step_s = part_s + (0.08 if suffix == ".ts" else 0.04) - 0.02
    assert_in_sync(joined, [n * step_s + event_s + 0.02 for n in range(len(parts)) for event_s in EVENTS_S])
    caplog.clear()
    list(read_frames(joined))
    (note,) = caplog.messages
    assert note.startswith(f"{joined}: the clock jumps, first from ")
    assert f"(jumps: {len(parts) - 1})" in note
    caplog.clear()
    read_audio(joined)
    assert note in caplog.messages
    with open_container(joined) as container:
        assert duration_s(container, joined, 100) == pytest.approx(step_s * len(parts), abs=0.1)
        # The reading stops when the length is known to be too long.
    with open_container(joined) as container:
        assert 7 < duration_s(container, joined, 7) < 8


def test_a_clock_that_is_wrong_for_a_moment_resumes(tmp_path, caplog):
    """A damaged stream has a few wrong times; the pictures and sound after them are where they belong."""
    first = film(tmp_path / "0.ts")
    wrong = film(tmp_path / "1.ts", 0.12, start_s=1_000, events_s=())
    rest = film(tmp_path / "2.ts", start_s=6.2)
    path = join(tmp_path / "joined.ts", first, wrong, rest)
    assert_in_sync(path, [*EVENTS_S, *(6.12 + event_s for event_s in EVENTS_S)])
    assert "(jumps: 1)" in caplog.messages[0]


def test_the_clock_of_a_transport_stream_may_wrap(tmp_path, caplog):
    assert_in_sync(film(tmp_path / "wrapped.ts", start_s=WRAP_S - 2.5), list(EVENTS_S))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "start_s"),
    [
        ("a.avi", 0),
        *(
            (f"a.{suffix}", start_s)
            for suffix in ("ts", "mkv", "mp4", "flv", "mpg", "mov")
            for start_s in (0, 3.2)
        ),
    ],
)
def test_a_steady_file_is_in_sync_without_a_note(tmp_path, caplog, name, start_s):
    """AVI gives no display times, MPEG-TS starts at any time, and B-frames are stored out of order."""
    assert_in_sync(film(tmp_path / name, start_s=start_s), list(EVENTS_S))
    assert not caplog.messages


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
@pytest.mark.parametrize("late_s", [0.3, 2.0])
def test_sound_that_starts_late_is_heard_late(tmp_path, caplog, suffix, late_s):
    path = film(tmp_path / f"a.{suffix}", sound_late_s=late_s)
    assert flashes(read_frames(path)) == pytest.approx(list(EVENTS_S), abs=FRAME_S)
    assert clicks(read_audio(path)) == pytest.approx(np.array(EVENTS_S) + late_s, abs=FRAME_S)
    assert not caplog.messages


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_a_gap_in_one_track_does_not_move_the_other(tmp_path, caplog, suffix):
    """The gap of 12 s is longer than the step that is taken for a jump of the clock, but the pictures go on."""
    path = film(tmp_path / f"a.{suffix}", 20, gap=(2.0, 12.0), events_s=(1.0, 6.0), missing=range(50, 150))
    heard, seen = clicks(read_audio(path)), flashes(read_frames(path))
    assert heard == pytest.approx([1.0, 18.0], abs=FRAME_S)
    assert "12.00 s of gaps made silent" in caplog.text
    assert "clock jumps" not in caplog.text
    # A player shows the picture before the gap until the first one after it.
    assert seen == pytest.approx([1.02, 6.02], abs=FRAME_S)
    assert flashes(read_span(path, 60), 60) == pytest.approx([6.02], abs=FRAME_S)


def test_sound_that_overlaps_is_cut(tmp_path, caplog):
    """The clock goes back by less than a jump, so both parts have the same time."""
    parts = [film(tmp_path / "0.ts"), film(tmp_path / "1.ts", start_s=5.78)]
    path = join(tmp_path / "joined.ts", *parts)
    assert_in_sync(path, [*EVENTS_S, *(5.7 + event_s for event_s in EVENTS_S)])
    assert "of overlaps cut" in caplog.text


@pytest.mark.parametrize("stretch", [1.01, 0.99, 1.03, 0.97])
@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_sound_whose_clock_is_wrong_stays_in_sync_for_a_minute(tmp_path, caplog, suffix, stretch):
    events_s = (1.0, 20.0, 40.0, 55.0)
    tone = TONE if suffix == "mkv" else None
    path = film(
        tmp_path / f"a.{suffix}", 60, stretch=stretch, events_s=events_s, tone=tone, missing=range(5, 1495)
    )
    samples = read_audio(path)
    heard = np.array(clicks(samples))
    # In the transport stream the AAC encoder's first block comes before the pictures.
    start_s = 0.0 if suffix == "mkv" else 1024 / 48_000
    assert np.abs(heard - np.array(events_s) * stretch - start_s).max() < 0.03
    assert len(samples) / 16_000 == pytest.approx(60 * stretch, abs=0.1)
    change = "slowed down" if stretch > 1 else "speeded up"
    (note,) = caplog.messages
    assert note.startswith(f"{path}: the sound is placed by its times: {change} by ")
    assert float(note.split()[-2]) == pytest.approx(abs(60 * stretch - 60), abs=0.1)
    if tone is not None:
        # A click in the tone would be a large second difference.
        quiet = np.ones(len(samples) - 2, bool)
        for time_s in (0.0, *heard, len(samples) / 16_000):
            quiet[max(round((time_s - 0.05) * 16_000), 0) : round((time_s + 0.1) * 16_000)] = False
        expected = 0.1 * (2 * np.pi * 200 / 16_000) ** 2
        assert np.abs(np.diff(samples, 2))[quiet].max() < 2 * expected


def test_a_joined_file_of_a_format_with_one_clock_is_refused(tmp_path):
    """FFmpeg reads both parts of such a file, and seeks to the first one only."""
    joined = join(tmp_path / "joined.mkv", *[film(tmp_path / "0.mkv")] * 2)
    message = r"joined\.mkv: the clock jumps from \d\.\d\d to 0\.00 s"
    for read in (read_frames, read_span, lambda path: read_span(path, 30), lambda path: [read_audio(path)]):
        with pytest.raises(ValueError, match=message):
            list(read(joined))


@pytest.mark.parametrize(("suffix", "codec"), [("flac", "flac"), ("ogg", "libopus"), ("mka", "pcm_s16le")])
def test_joined_sound_is_read_whole(tmp_path, caplog, suffix, codec):
    samples = np.zeros(3 * 48_000, np.float32)
    samples[48_000:48_200] = 0.8 * np.sin(np.arange(200) / 3)
    part = write_sound(tmp_path / f"0.{suffix}", rate_hz=48_000, codec=codec, samples=samples)
    joined = join(tmp_path / f"joined.{suffix}", part, part)
    assert clicks(read_audio(joined)) == pytest.approx([1.0, 4.0], abs=FRAME_S)
    assert caplog.messages[0].startswith(f"{joined}: the clock jumps, first from ")


def test_a_joined_stream_whose_parts_have_other_tracks_is_refused(tmp_path):
    """FFmpeg makes tracks of both parts, of which a reader plays one."""
    parts = [film(tmp_path / f"{n}.ts", options={"mpegts_start_pid": str(300 + 100 * n)}) for n in range(2)]
    joined = join(tmp_path / "joined.ts", *parts)
    for read in (read_frames, lambda path: read_span(path, 30), lambda path: [read_audio(path)]):
        with pytest.raises(
            ValueError, match=r"joined\.ts: another (video|audio) track begins where this one ends"
        ):
            list(read(joined))


def test_a_stream_without_times_is_read_at_its_rate(tmp_path):
    with av.open(str(film(tmp_path / "a.mkv"))) as source, av.open(str(tmp_path / "a.h264"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None or packet.pts is not None:
                packet.stream = stream
                target.mux(packet)
    everything = list(read_frames(tmp_path / "a.h264"))
    assert len(everything) == 150
    assert flashes(everything) == list(EVENTS_S)
    np.testing.assert_array_equal(list(read_span(tmp_path / "a.h264", 60)), everything[60:])

"""Test that the stages of bulk dubbing, called one after another without Ray, make the videos of `xactor animate`."""

import json
import os
import re
import resource
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from sounds import index_bomb

from xactor.media import Sound, read_audio, read_frames
from xactor.options import AnimateOptions
from xactor.pipeline import XActorPipeline
from xactor.sandbox import ProcessLost
from xactor_platform.bulk.message import pack, unpack
from xactor_platform.dubbing.decode import Decode
from xactor_platform.dubbing.encode import Encode
from xactor_platform.dubbing.look import Look
from xactor_platform.dubbing.messages import Done, Dub, Failed, Row, SegmentFile
from xactor_platform.dubbing.model_facts import read_model_facts
from xactor_platform.dubbing.motion import Perform
from xactor_platform.dubbing.render import Render
from xactor_platform.dubbing.write import write

FAST = AnimateOptions(motion_steps=2, render_steps=1, render_cfg=1.0)


@pytest.fixture(scope="module")
def stages(model, media, tmp_path_factory):
    """Return the folder that all stages write to, and the stages."""
    output = str(tmp_path_factory.mktemp("staged"))
    facts = read_model_facts(model)
    return (
        output,
        [
            Look(output=output, model=facts.fingerprint, max_input_bytes=1 << 20, decode_s=60),
            Decode(output=output, size=facts.image_size, decode_s=60),
            Perform(model=model, output=output, device="cpu", streams=4, segment_windows=2),
            Render(model=model, device="cpu", windows=1),
            Encode(output=output),
        ],
    )


def run_stages(stages: list, rows: list[Row]) -> list:
    """Pass rows through the stages, and return the messages of the last stage."""
    messages: list = list(rows)
    for stage in stages:
        table = pa.concat_tables([pack(message) for message in messages])
        messages = [message for made in stage(table) for message in unpack(made)]
    return messages


def row(media: Path, name: str, audio: str, number: int = 1, **options) -> Row:
    return Row(
        number=number,
        id=name,
        image=str(media / "face.png"),
        video=None,
        audio=str(media / audio),
        options=replace(FAST, **options),
    )


@pytest.mark.slow
def test_the_stages_make_the_same_videos_as_animate(stages, model, media, tmp_path):
    output, all_stages = stages
    asked = [row(media, "a", "3.wav", seed=5), row(media, "b", "1.wav", number=2, paste_back=True)]
    files = run_stages(all_stages, asked)
    assert sorted((f.dub.row.id, f.number, f.of) for f in files) == [
        ("a", 0, 3),
        ("a", 1, 3),
        ("a", 2, 3),
        ("b", 0, 1),
    ]
    assert all({"look", "decode", "motion", "render", "encode"} >= set(f.stage_s) for f in files)
    pipeline = XActorPipeline.from_pretrained(model)
    for wanted in asked:
        (first, *_) = [file for file in files if file.dub.row == wanted]
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
        assert len(ours) == done.frames
        assert len(theirs) == done.frames
        # The frames were equal before the segments were encoded separately. Neighbouring frames differ more.
        errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(ours, theirs, strict=True)]
        to_neighbours = [np.abs(a.astype(int) - b).mean() for a, b in zip(ours[1:], theirs, strict=False)]
        assert np.mean(errors) < 0.5 * np.mean(to_neighbours), (np.mean(errors), np.mean(to_neighbours))
        np.testing.assert_array_equal(read_audio(path), read_audio(tmp_path / "animate.mp4"))
        with av.open(str(path)) as container:
            assert json.loads(container.metadata["comment"])["ai_generated"] is True
    assert not list(Path(output, ".parts").iterdir())


@pytest.mark.slow
def test_separately_rendered_segments_equal_the_whole_bit_for_bit(stages, model, media):
    _, (look, decode, motion, render, _) = stages
    rendered = run_stages([look, decode, motion, render], [row(media, "parts", "4.wav")])
    frames = np.concatenate([r.frames for r in sorted(rendered, key=lambda r: r.segment.number)])
    pipeline = XActorPipeline.from_pretrained(model)
    whole = pipeline(media / "face.png", media / "4.wav", motion=FAST.sampling(), render=FAST.rendering())
    assert len(rendered) > 2
    np.testing.assert_array_equal(frames, np.stack(list(whole.frames)))


def test_latents_of_concurrent_rows_equal_those_of_each_row_alone(stages, media):
    _, (look, decode, motion, *_) = stages
    rows = [row(media, f"p{n}", f"{n}.wav", number=n, seed=n) for n in (1, 2, 3)]
    together = {s.dub.row.id: s.z for s in run_stages([look, decode, motion], rows) if s.number == 0}
    for one in rows:
        (alone,) = [s.z for s in run_stages([look, decode, motion], [one]) if s.number == 0]
        np.testing.assert_allclose(together[one.id], alone, atol=1e-4)


@pytest.mark.slow
def test_files_of_an_earlier_run_are_not_made_again(stages, media):
    output, all_stages = stages
    first = run_stages(all_stages, [row(media, "again", "3.wav")])
    folder = Path(output, first[0].dub.folder)
    (folder / "00001.mp4").unlink()
    kept = np.load(folder / "latents.npy")
    motion = run_stages(all_stages[:3], [row(media, "again", "3.wav")])
    assert [message.number for message in motion] == [0, 1, 2]
    assert type(motion[0]) is SegmentFile
    assert type(motion[2]) is SegmentFile
    kept = kept[motion[1].row.options.rendering().lead_frames :]
    np.testing.assert_array_equal(motion[1].z, kept[motion[1].z_first : motion[1].z_first + len(motion[1].z)])
    second = run_stages(all_stages, [row(media, "again", "3.wav")])
    assert {file.number: file.made for file in second} == {0: False, 1: True, 2: False}


@pytest.mark.slow
def test_damaged_motion_of_an_earlier_run_fails_its_row_alone(stages, media):
    _, all_stages = stages
    rows = [row(media, "damaged", "3.wav", number=1), row(media, "intact", "1.wav", number=2)]
    (first, *_) = run_stages(all_stages[:3], rows[:1])
    output, _ = stages
    Path(output, first.dub.folder, "latents.npy").write_bytes(b"no array")
    made = run_stages(all_stages[:3], rows)
    assert [m.id for m in made if isinstance(m, Failed)] == ["damaged"]
    assert {m.dub.row.id for m in made if not isinstance(m, Failed)} == {"intact"}


def test_look_recognises_a_video_that_was_made_from_the_same_inputs(stages, media, tmp_path):
    output, all_stages = stages
    (file,) = run_stages(all_stages, [row(media, "known", "1.wav")])
    write(output, file.dub, file.of)
    look = all_stages[0]

    def looked(asked: Row):
        (work,) = run_stages([look], [asked])
        return work

    there = looked(row(media, "known", "1.wav"))
    assert isinstance(there, Done)
    assert (there.made, there.frames) == (False, 25)
    assert isinstance(looked(row(media, "known", "2.wav")), Dub), "another sound"
    assert isinstance(looked(row(media, "known", "1.wav", seed=1)), Dub), "another option"
    other_look = Look(output=output, model="other", max_input_bytes=1 << 20, decode_s=60)
    assert isinstance(run_stages([other_look], [row(media, "known", "1.wav")])[0], Dub)
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
        ({"image": "pipe"}, "bad_input", "image: .*pipe: is neither a file nor a folder"),
        ({"audio": "list.ffconcat"}, "bad_input", "audio: .*cannot be decoded"),
        ({"audio": "4.wav", "options": replace(FAST, max_seconds=2)}, "too_large", "audio: longer than 2 s"),
        ({"image": "big"}, "bad_input", "image: .*has 2097152 bytes, at most 1048576 are allowed"),
    ],
)
def test_unusable_files_are_refused(stages, media, changes, code, says):
    big = media / "big"
    big.touch()
    os.truncate(big, 2 << 20)
    if not (media / "pipe").exists():
        os.mkfifo(media / "pipe")
    # A playlist, which would make FFmpeg open other files.
    (media / "list.ffconcat").write_text("ffconcat version 1.0\nfile 1.wav\n")
    places = {name: str(media / v) if isinstance(v, str) else v for name, v in changes.items()}
    (failed,) = run_stages(stages[1][:2], [replace(row(media, "bad", "1.wav"), **places)])
    assert isinstance(failed, Failed)
    assert failed.code == code
    assert re.search(says, failed.message)


def test_a_bomb_costs_memory_in_the_child_processes_only(stages, media):
    """The index of a small file claims 15 million samples. Its sound is good, so its video is made."""
    (media / "bomb.mov").write_bytes(index_bomb())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    output, (look, decode, *_) = stages
    [portrait] = run_stages([look, decode], [row(media, "bomb", "bomb.mov")])
    assert abs(len(portrait.samples) - 16_000) < 2000
    track = Sound.of(Path(output, portrait.dub.folder, "track.w64"))
    assert abs(sum(map(len, track.blocks(16_000, "mono"))) - len(portrait.samples)) < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_killed_decoding_process_is_replaced_and_never_fails_a_row(stages, media):
    """Kill the idle process, as the kernel may if memory is short. Then the row is decoded all the same."""
    [looked] = run_stages(stages[1][:1], [row(media, "killed", "1.wav")])
    for process in active_children():
        process.kill()
    [decoded] = run_stages(stages[1][1:2], [looked])
    assert decoded.samples.size
    # A process that is lost in every attempt is no failure of the row: the next pass retries it.
    with pytest.raises(ProcessLost):
        stages[1][1].failed(looked, ProcessLost("its process was killed"))


def test_a_videos_best_frame_is_the_portrait(stages, media):
    asked = replace(row(media, "video", "1.wav"), image=None, video=str(media / "bust.mp4"))
    (found,) = run_stages(stages[1][:2], [asked])
    (wanted,) = run_stages(stages[1][:2], [row(media, "image", "1.wav")])
    assert np.abs(found.square.astype(int) - wanted.square).mean() < 4

"""Test the `xactor` command as a user runs it, with audio and pictures of every kind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sounds import voice, write_sound

from xactor.cli import main, read_items
from xactor.media import write_video
from xactor.options import AnimateOptions

QUICK = ["--motion-steps", "1", "--render-steps", "1", "--audio-cfg", "1", "--render-cfg", "1"]
ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def run(model_folder, portrait_file, tmp_path, capsys):
    """Return a function that runs `xactor animate` on an audio file.

    The function returns the exit status, the output's path and the printed text.
    """

    def animate(audio, *options, image=portrait_file, output="out/video.mp4", model=model_folder):
        target = tmp_path / output
        target.parent.mkdir(exist_ok=True)
        paths = ["--model", model, "--image", image, "--audio", audio, "--output", target]
        with pytest.raises(SystemExit) as exit_:
            main(["animate", *map(str, paths), *QUICK, *options])
        printed = capsys.readouterr()
        if exit_.value.code != 0:
            assert not any(target.parent.iterdir()), "something was left behind"
        return exit_.value.code, target, printed

    return animate


def frames_and_sound(path: Path) -> tuple[int, float, int, str]:
    """Check the properties that all outputs share.

    Return the number of frames, and the audio's seconds, sample rate and channel layout.
    """
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert video.average_rate == 25
        assert audio.codec_context.name == "aac"
        assert json.loads(container.metadata["comment"])["ai_generated"] is True
        seconds = float(audio.duration * audio.time_base)
        rate_hz, layout = audio.rate, audio.layout.name
        frames = sum(1 for _ in container.decode(video))
    return frames, seconds, rate_hz, layout


@pytest.mark.slow
def test_the_command_makes_a_video_as_long_as_the_audio(model_folder, portrait_file, speech_file, tmp_path):
    paths = [
        "--model",
        model_folder,
        "--image",
        portrait_file,
        "--audio",
        speech_file,
        "--output",
        tmp_path / "a.mp4",
    ]
    command = [sys.executable, "-m", "xactor.cli", "animate", *map(str, paths), *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert "a.mp4: 30 frames in" in done.stdout
    frames, seconds, rate_hz, layout = frames_and_sound(tmp_path / "a.mp4")
    assert (frames, rate_hz, layout) == (30, 44_100, "stereo")
    assert seconds == pytest.approx(1.21, abs=0.04)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("sound", "suffix", "kept"),
    [
        ({"codec": "pcm_u8", "rate_hz": 8_000}, "wav", (8_000, "mono")),
        ({"codec": "pcm_f32le", "rate_hz": 96_000}, "wav", (96_000, "mono")),
        ({"codec": "flac", "rate_hz": 48_000, "layout": "5.1"}, "flac", (48_000, "5.1")),
        ({"codec": "libmp3lame", "rate_hz": 44_100, "layout": "stereo"}, "mp3", (44_100, "stereo")),
    ],
)
def test_audio_keeps_its_rate_and_channels(run, tmp_path, sound, suffix, kept):
    source = write_sound(tmp_path / f"a.{suffix}", 0.53, **sound)
    status, output, printed = run(source)
    assert status == 0, printed.err
    frames, seconds, rate_hz, layout = frames_and_sound(output)
    assert (rate_hz, layout) == kept
    assert abs(seconds - 0.53) <= 0.04
    assert frames == 13


def test_audio_may_come_from_a_video(run, tmp_path):
    write_video(tmp_path / "talk.mp4", [np.zeros((32, 32, 3), np.uint8)] * 10, samples=voice(0.4))
    status, output, printed = run(tmp_path / "talk.mp4")
    assert status == 0, printed.err
    assert frames_and_sound(output)[0] == 10


def test_silence_and_50_ms_of_audio_make_videos(run, tmp_path):
    status, output, printed = run(write_sound(tmp_path / "none.wav", samples=np.zeros(8_000, np.float32)))
    assert status == 0, printed.err
    assert frames_and_sound(output)[0] == 12
    status, output, printed = run(write_sound(tmp_path / "short.wav", 0.05))
    assert status == 0, printed.err
    assert frames_and_sound(output)[0] == 1


@pytest.mark.slow
def test_the_seed_decides_the_video_and_paste_back_keeps_the_picture_size(run, speech_file, portrait_file):
    made = {}
    for name, options in (("a", []), ("b", []), ("c", ["--seed", "1"]), ("d", ["--paste-back"])):
        status, output, printed = run(speech_file, *options, output=f"{name}/video.mp4")
        assert status == 0, printed.err
        made[name] = output.read_bytes()
    assert made["a"] == made["b"]
    assert made["a"] != made["c"]
    with av.open(str(output)) as container, Image.open(portrait_file) as picture:
        video = container.streams.video[0]
        assert (video.width, video.height) == picture.size


def silent_video(path: Path) -> Path:
    write_video(path, [np.zeros((32, 32, 3), np.uint8)] * 10, samples=np.zeros(0, np.float32))
    return path


def corrupt(path: Path) -> Path:
    source = write_sound(path, 3.0, rate_hz=48_000, codec="flac")
    data = bytearray(source.read_bytes())
    data[2000:] = np.random.default_rng(0).integers(0, 256, len(data) - 2000, dtype=np.uint8).tobytes()
    source.write_bytes(data)
    return source


def empty(path: Path) -> Path:
    path.touch()
    return path


def text_file(path: Path) -> Path:
    path.write_text("hello")
    return path


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("silent.mp4", silent_video, "no audio track"),
        ("bad.flac", corrupt, "corrupt or truncated"),
        ("empty.wav", empty, "the file is empty"),
        ("tiny.wav", lambda path: write_sound(path, 0.01), "10 ms of audio are too short"),
        ("text.wav", text_file, "cannot be decoded"),
    ],
)
def test_bad_audio_is_a_one_line_error_and_leaves_nothing(run, tmp_path, name, make, message):
    status, _, printed = run(make(tmp_path / name))
    assert status == 3
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("error: ")
    assert name in line
    assert message in line


def test_too_long_audio_is_a_one_line_error(run, speech_file):
    status, _, printed = run(speech_file, "--max-seconds", "1")
    assert status == 3
    assert printed.err.strip() == f"error: {speech_file}: longer than 1 s, the maximum"


def test_bad_pictures_are_one_line_errors_and_leave_nothing(run, speech_file, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (256, 256), "white").save(tmp_path / "wall.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    for name, message in (
        ("text.png", "not a picture"),
        ("wall.png", "no face is found in the picture of 256x256 px"),
        ("dot.png", "got 1x1"),
    ):
        status, _, printed = run(speech_file, image=tmp_path / name)
        assert status == 3
        (line,) = printed.err.strip().splitlines()
        assert line.startswith(f"error: {tmp_path / name}: ")
        assert message in line


def test_the_user_is_told_of_several_faces(run, speech_file, portrait_file, tmp_path):
    with Image.open(portrait_file) as photograph:
        face = photograph.crop((110, 0, 330, 220))
    both = Image.new("RGB", (640, 400), "white")
    both.paste(face.resize((300, 300)), (10, 50))
    both.paste(face.resize((320, 320)), (315, 40))
    both.save(tmp_path / "both.png")
    status, _, printed = run(speech_file, image=tmp_path / "both.png")
    assert status == 0, printed.err
    assert "both.png: 2 faces are found, the largest is used" in printed.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--output": "out/video.mov"}, "must be an .mp4"),
        ({"--output": "nowhere/video.mp4"}, "nowhere: no such folder to write to"),
        ({"--image": "nobody.png"}, "nobody.png: no such file"),
        ({"--audio": "nothing.wav"}, "nothing.wav: no such file"),
        ({"--audio": None}, "--image, --audio and --output are needed"),
        ({"--input": "items.jsonl"}, "give one or the other"),
        ({"--motion-steps": "0"}, "steps must be within 1..1000, got 0"),
        ({"--render-cfg": "0.5"}, "render cfg must be within 1..20, got 0.5"),
    ],
)
def test_usage_errors_come_before_any_work(
    portrait_file, speech_file, tmp_path, capsys, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    given = {
        "--image": str(portrait_file),
        "--audio": str(speech_file),
        "--output": "out/video.mp4",
        **change,
    }
    arguments = [part for name, value in given.items() if value is not None for part in (name, value)]
    with pytest.raises(SystemExit) as exit_:
        # The missing model would be the next error.
        main(["animate", "--model", "no-model", *arguments])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_an_output_never_replaces_its_input(run, portrait_file, tmp_path, capsys):
    write_video(tmp_path / "talk.mp4", [np.zeros((32, 32, 3), np.uint8)] * 10, samples=voice(0.4))
    talk = str(tmp_path / "talk.mp4")
    with pytest.raises(SystemExit) as exit_:
        main(["animate", "--model", "m", "--image", str(portrait_file), "--audio", talk, "--output", talk])
    assert exit_.value.code == 2
    assert "would replace what it is made from" in capsys.readouterr().err


def test_a_folder_without_a_model_is_a_usage_error(run, speech_file, tmp_path):
    status, _, printed = run(speech_file, model=tmp_path)
    assert status == 2
    assert "no model folder" in printed.err


def test_bad_rows_fail_without_affecting_the_others(model_folder, portrait_file, tmp_path, capsys):
    sound = write_sound(tmp_path / "a.wav", 0.2)
    good = {"image": str(portrait_file), "audio": str(sound)}
    rows = [
        {**good, "output": str(tmp_path / "1.mp4")},
        {**good, "output": str(tmp_path / "2.mp4"), "seed": "five"},
        {**good, "output": str(tmp_path / "3.mp4"), "speed": 2},
        {**good, "output": str(tmp_path / "4.mp4"), "image": str(tmp_path / "nobody.png")},
        {**good, "output": str(tmp_path / "1.mp4")},
        {**good, "output": str(tmp_path / "6.mp4"), "audio": str(silent_video(tmp_path / "silent.mp4"))},
        {**good, "output": str(tmp_path / "7.mp4"), "seed": 5, "audio_cfg": 2},
        {"image": good["image"]},
        {**good, "output": str(tmp_path / "9.mp4"), "image": str(tmp_path / ("long" * 80))},
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "items.jsonl").write_text("\ufeff" + "\n".join([*lines, "", "not json", "[1]"]), "utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["animate", "--model", str(model_folder), "--input", str(tmp_path / "items.jsonl"), *QUICK])
    assert exit_.value.code == 3
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "2 made, 9 failed"
    *lines, note = printed.err.strip().splitlines()
    assert note == f"note: {model_folder} recommends no options: the paper's were used"
    errors = {int(line.split(".jsonl:")[1].split(":")[0]): line for line in lines}
    assert sorted(errors) == [2, 3, 4, 5, 6, 8, 9, 11, 12]
    for number, message in (
        (2, "seed must be of type int, got 'five'"),
        (3, "no option 'speed'"),
        (4, "nobody.png: no such file"),
        (5, "row 1 writes it already"),
        (6, "no audio track"),
        (8, "audio must be a path, got None"),
        (9, "File name too long"),
        (11, "not JSON"),
        (12, "must be a JSON object"),
    ):
        assert message in errors[number]
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == ["1.mp4", "7.mp4", "silent.mp4"]
    assert (tmp_path / "1.mp4").read_bytes() != (tmp_path / "7.mp4").read_bytes()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[" * 200_000, "not JSON"),
        (
            '{"seed": -1, "image": "f", "audio": "s", "output": "o.mp4"}',
            "seed must be within 0..9223372036854775807",
        ),
        ('{"seed": 1e30, "image": "f", "audio": "s", "output": "o.mp4"}', "seed must be of type int"),
        (
            '{"max_seconds": -90.5, "image": "f", "audio": "s", "output": "o.mp4"}',
            "max_seconds must be above 0",
        ),
        ('{"image": "PIPE", "audio": "s", "output": "o.mp4"}', "PIPE: not a file"),
    ],
)
def test_a_hostile_row_fails_alone(tmp_path, portrait_file, line, says):
    os.mkfifo(tmp_path / "PIPE")
    good = {"image": str(portrait_file), "audio": str(portrait_file), "output": f"{tmp_path}/o\u2028.mp4"}
    lines = [json.dumps(good, ensure_ascii=False), line.replace("PIPE", str(tmp_path / "PIPE"))]
    (tmp_path / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (_, item), (_, error) = read_items(tmp_path / "items.jsonl", AnimateOptions())
    assert str(item.output).endswith("o\u2028.mp4")
    assert isinstance(error, ValueError)
    assert says.replace("PIPE", str(tmp_path / "PIPE")) in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(model_folder, portrait_file, tmp_path, number, status):
    sound = write_sound(tmp_path / "long.wav", 60.0)
    (tmp_path / "out").mkdir()
    paths = [
        "--model",
        model_folder,
        "--image",
        portrait_file,
        "--audio",
        sound,
        "--output",
        tmp_path / "out" / "a.mp4",
    ]
    # If the tests run in the background, this process and its children ignore SIGINT.
    code = "import signal, xactor.cli; signal.signal(signal.SIGINT, signal.default_int_handler); xactor.cli.main()"
    command = [sys.executable, "-c", code, "animate", *map(str, paths), *QUICK]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, text=True, **pipes) as process:
        deadline = time.monotonic() + 120
        while not any((tmp_path / "out").iterdir()):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(number)
        process.wait(timeout=60)
    assert process.returncode == status
    assert not any((tmp_path / "out").iterdir())


def test_two_exports_become_one_model(model_folder, tmp_path, capsys):
    for name, components in {
        "1": ("motion_encoder", "unet", "reference_unet", "vae", "scheduler"),
        "2": ("motion", "motion_scheduler", "audio_encoder"),
    }.items():
        for component in components:
            shutil.copytree(model_folder / component, tmp_path / name / component)
    stages = ["--stage1", str(tmp_path / "1"), "--stage2", str(tmp_path / "2")]
    with pytest.raises(SystemExit) as exit_:
        main(["assemble", *stages, "--output", str(tmp_path / "model")])
    assert exit_.value.code == 0
    for made in (tmp_path / "model").rglob("*.safetensors"):
        assert made.read_bytes() == (model_folder / made.relative_to(tmp_path / "model")).read_bytes()
    assert (tmp_path / "model" / "model_index.json").is_file()
    assert not (tmp_path / "model" / "recommended.json").exists()
    with pytest.raises(SystemExit) as exit_:
        main(["assemble", *stages, "--dtype", "float16", "--output", str(tmp_path / "half")])
    assert exit_.value.code == 0
    for name in ("motion", "unet", "vae"):
        (weights,) = (tmp_path / "half" / name).glob("*.safetensors")
        types = {tensor_name: tensor.dtype for tensor_name, tensor in load_file(weights).items()}
        # The latents' statistics stay exact.
        exact = [types.pop(statistic) for statistic in ("latent_mean", "latent_std") if statistic in types]
        assert set(types.values()) == {torch.float16}
        assert set(exact) <= {torch.float32}
    for output, message in (("model", "exists already"), ("nowhere/model", "no such folder to write to")):
        with pytest.raises(SystemExit) as exit_:
            main(["assemble", *stages, "--output", str(tmp_path / output)])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_:
        main(["assemble", *reversed(stages), "--output", str(tmp_path / "other")])
    assert exit_.value.code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "half", "model"]

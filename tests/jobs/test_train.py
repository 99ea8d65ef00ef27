"""Test the trainers as users run them: with plain python, and submitted to clusters with and without this code."""

import os
import re
import runpy
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from xactor_platform.cluster.local import local_cluster
from xactor_platform.data.shards import ShardWriter
from xactor_platform.training.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("--scale.ranks", "1", "--train.steps", "4", "--train.micro-batches", "2"),
    *("--train.budget-frames", "96", "--train.warmup-steps", "1"),
    *("--model.hidden", "32", "--model.heads", "2", "--model.kv-heads", "1", "--model.layers", "2"),
    *("--model.mlp", "48", "--model.chunk-frames", "8", "--model.context-frames", "48"),
]


def write_shards(folder: Path) -> None:
    """Write shards of 12 training clips and 2 held-out clips, with motion latents of width 8."""
    generator = np.random.default_rng(0)
    for split, clips in (("train", 12), ("test", 2)):
        with ShardWriter(str(folder), split) as writer:
            for i in range(clips):
                motion = generator.standard_normal((30, 8)).astype(np.float16)
                audio = generator.standard_normal((30, 1, 6)).astype(np.float16)
                meta = {"frames": 30, "fps": 25, "speaker": "s"}
                writer.write(f"{split}-{i}", {"motion.npy": motion, "audio.npy": audio, "json": meta})


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    write_shards(folder)
    return str(folder)


# This is a soak test because others cover most of it: the similar job of stage 2 is submitted below, and the training
# of stage 1 has its own tests.
@pytest.mark.soak
@pytest.mark.cluster
def test_stage_1_runs_by_plain_python(video_corpus, tmp_path):
    videos, _ = video_corpus([30, 40, 50])
    command = [sys.executable, "jobs/train_stage1.py", "tiny", "--data.shards", videos]
    command += ["--run.storage", str(tmp_path), "--run.name", "plain"]
    command += ["--train.steps", "4", "--train.stills", "2"]
    for phase in ("vae", "motion", "frames"):
        command += [f"--train.{phase}-steps", "1"]
    command += ["--train.budget-frames", "16", "--model.image-size", "32", "--model.window-frames", "8"]
    command += ["--model.channels", "16", "32", "--model.vae-channels", "16", "32"]
    command += ["--model.latent-channels", "8"]
    command += ["--model.encoder-channels", "8", "8", "16"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "done: step 4" in run.stdout
    metrics = RunFolder(str(tmp_path), "plain").read_lines("metrics.jsonl")
    assert [r["phase"] for r in metrics] == ["vae", "motion", "frames", "temporal"]
    for component in ("motion_encoder", "unet", "reference_unet", "vae", "scheduler"):
        assert (tmp_path / "plain" / "export" / component).is_dir()


@pytest.mark.cluster
def test_stage_2_runs_submitted_to_a_cluster_that_lacks_this_code(shards, tmp_path, bare_cluster):
    where = ["--data.shards", shards, "--run.storage", str(tmp_path), "--run.name", "submitted"]
    assert (
        bare_cluster.submit(["python", "jobs/train_stage2.py", "tiny", *where, *SMALL], working_dir=ROOT) == 0
    )
    rows = RunFolder(str(tmp_path), "submitted").read_lines("metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert (tmp_path / "submitted" / "export" / "motion" / "model.safetensors").exists()


@pytest.fixture
def code_folder(tmp_path, monkeypatch) -> Path:
    """Change to a folder with this code and a small demo corpus, as the image does before `ray start`."""
    for room in ("jobs", "xactor", "platform", "serving"):
        (tmp_path / room).symlink_to(ROOT / room)
    write_shards(tmp_path / "demo" / "corpus" / "shards")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.cluster
def test_the_shortest_submit_works_on_a_cluster_that_started_in_the_folder_of_the_code(code_folder):
    with local_cluster(cpus=3, log=code_folder / "ray.log") as cluster:
        line = "ray job submit -- python jobs/train_stage2.py"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = cluster.env | {"PATH": path}
        log = code_folder / "job.log"
        with log.open("w") as output:
            job = subprocess.Popen(
                line.split(), env=env, cwd=code_folder, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            # The preset would train for 300 steps.
            run, deadline = RunFolder(str(code_folder / "runs"), "tiny"), time.monotonic() + 300
            while not run.read_lines("metrics.jsonl"):
                assert job.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        finally:
            job.kill()
            job.wait()
    assert f"no arguments: preset tiny, on the demo corpus in {code_folder}/demo/corpus" in log.read_text()


@pytest.mark.parametrize(
    ("stage", "presets"), [(1, ["tiny", "box", "small", "paper"]), (2, ["tiny", "box", "small", "paper-7b"])]
)
def test_help_shows_examples_optional_presets_and_a_text_for_every_option(
    stage, presets, monkeypatch, capsys
):
    for preset in ([], ["small"]):
        monkeypatch.setattr(sys, "argv", [f"train_stage{stage}.py", *preset, "--help"])
        monkeypatch.setattr(sys, "path", [str(ROOT / "jobs"), *sys.path])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / f"train_stage{stage}.py"), run_name="__main__")
        assert ended.value.code == 0
        lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
        assert lines[0].startswith(f"usage: train_stage{stage}.py [{'|'.join(presets)}]")
        assert any(line.startswith(f"ray job submit -- python jobs/train_stage{stage}.py") for line in lines)
        assert f"Defaults below: preset {(preset or ['tiny'])[0]}." in " ".join(lines)
        options = [n for n, line in enumerate(lines) if re.match("--[a-z]", line)]
        assert len(options) > 40
        for number in options:
            text = lines[number + 1]
            assert text, lines[number]
            assert not text.startswith(("(default", "--")), lines[number]
            following = next((n for n in options if n > number), len(lines))
            assert "(default:" in " ".join(lines[number:following]), lines[number]


@pytest.mark.parametrize(
    ("stage", "arguments", "says"),
    [
        (2, ["--train.stepz", "4"], "--train.stepz"),
        (2, ["--scale.ranks", "3"], "ranks must divide micro_batches (4): one of 1, 2, 4; got 3"),
        (2, ["--train.budget-frames", "100"], "budget_frames must be >= context_frames (128), got 100"),
        (2, ["--data.shards", "/nowhere"], "/nowhere: no such folder"),
        (2, ["--data.shards", "README.md"], "is a file, not a folder"),
        (2, ["--run.name", "none", "--run.resume"], "nothing to resume"),
        (
            1,
            ["--train.vae-steps", "0"],
            "vae_steps must be >= 1 if the VAE starts from random weights, got 0",
        ),
        (1, ["--train.budget-frames", "15"], "budget_frames must be >= context_frames (16), got 15"),
        (1, ["--data.shards", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_input_ends_with_one_clear_line(stage, arguments, says, tmp_path, monkeypatch, capsys):
    """The job runs in this process, because a new process needs seconds for its imports.

    The job checks its input before it joins Ray.
    """
    monkeypatch.setattr(sys, "argv", [f"train_stage{stage}.py", *arguments, "--run.storage", str(tmp_path)])
    monkeypatch.setattr(sys, "path", [str(ROOT / "jobs"), *sys.path])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / f"train_stage{stage}.py"), run_name="__main__")
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    # tyro draws a box around its errors.
    assert says in re.sub(r"[│╭╮╰╯─\s]+", " ", out + err)
    assert not (tmp_path / "tiny" / "config.json").exists()

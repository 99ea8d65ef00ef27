"""Parse every command of one-gpu.md and cluster.md, and run them all in their order on small inputs.

The run is a soak test, because it trains four models.

A command runs as it is written, followed by options for small models. Instead of downloading weights, the test writes
small checkpoints in the published layout. Stage 1 and stage 2 start from random weights here: other tests load the
layouts of SD1.5 and Qwen.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xactor import cli
from xactor_platform.cluster.local import LocalCluster, local_cluster

ROOT = Path(__file__).resolve().parents[2]
# Commands that were run when the tests' environment was installed.
SET_UP = {"make setup", "source .venv/bin/activate"}
RANK = "--scale.ranks 1 --scale.device cpu --scale.cpus-per-rank 0.5 --scale.threads 1 --scale.start-timeout-s 60 "
STEPS = "--train.micro-batches 1 --train.warmup-steps 1 --train.evaluate-frames 16 --train.no-gradient-checkpointing "
POOLS = " ".join(
    f"--pools.{stage}.max 1 --pools.{stage}.cpus 0.25"
    for stage in ("probe", "scan", "track", "cut", "sync", "recognise", "write")
)
# Options that make a command small. They are appended to every command that contains the key. An option that is given
# twice has its last value.
SMALL_OPTIONS: Mapping[str, str] = {
    "python jobs/shards_from_videos.py": "--workers 1 --crops 64 --held-out 1",
    "python jobs/curate.py": f"--syncnet none --size-px 64 --gates.min-crop-px 64 {POOLS}",
    "python jobs/train_stage1.py": RANK
    + STEPS
    + "--train.steps 4 --train.vae-steps 1 --train.motion-steps 1 --train.frames-steps 1 --train.stills 2 "
    "--train.budget-frames 16 --train.sheet-rows 1 --train.sheet-steps 1 --model.sd15 None --model.animatediff None "
    "--model.vae None --model.image-size 32 --model.window-frames 8 --model.channels 16 32 "
    "--model.vae-channels 16 32 --model.latent-channels 8 --model.encoder-channels 8 8 16 --model.latent-dim 32",
    "python jobs/precompute.py": "--pool.max 1 --pool.cpus 0.5",
    "python jobs/train_stage2.py": RANK
    + STEPS
    + "--train.steps 2 --train.budget-frames 96 --model.backbone None --model.hidden 32 --model.heads 2 "
    "--model.kv-heads 1 --model.layers 2 --model.mlp 48 --model.audio-width 16 --model.chunk-frames 8 "
    "--model.context-frames 48",
    "python jobs/report.py render": "--windows 1 --render.steps 1 --render.cfg 1 --max-clips 1",
    "python jobs/report.py motion": "--sampling.steps 1 --max-clips 1",
    "python jobs/dub_bulk.py": "--options.motion-steps 1 --options.render-steps 1 "
    + " ".join(
        f"--pools.{stage}.max 1 --pools.{stage}.cpus 0.4"
        for stage in ("decode", "motion", "render", "encode")
    ),
    "xactor animate": "--motion-steps 1 --render-steps 1",
}


def soak(test: Callable) -> Callable:
    """Mark a test that runs the commands of a guide. On a busy machine each command takes about a minute."""
    return pytest.mark.soak(pytest.mark.cluster(pytest.mark.timeout(1800)(test)))


def commands(page: str) -> list[str]:
    """Return the commands of a page's fenced bash blocks, in order, with continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / page).read_text(), flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def with_small_options(command: str) -> str:
    """Return the command with the options that make it small."""
    for part, options in SMALL_OPTIONS.items():
        if part in command:
            return f"{command} {options}"
    return command


@pytest.mark.parametrize(
    "command",
    [command for page in ("one-gpu.md", "cluster.md") for command in commands(page)],
    ids=lambda command: command[:60],
)
def test_every_command_is_accepted_by_its_program(command, monkeypatch):
    """Each job that a guide runs exists and accepts its options."""
    words = shlex.split(command)
    if words[0] in ("make", "source", "export", "hf"):
        return
    job = next((word for word in words if word.startswith("jobs/")), None)
    assert job or words[0] == "xactor"
    options = words[words.index(job or "xactor") + 1 :]
    # `--help` after valid options prints the help. An unknown option exits with 2.
    monkeypatch.setattr("sys.argv", [job or "xactor", *options, "--help"])
    monkeypatch.setattr("sys.path", [str(ROOT / "jobs"), *sys.path])
    program = partial(runpy.run_path, str(ROOT / job), run_name="__main__") if job else cli.main
    with pytest.raises(SystemExit) as ended:
        program()
    assert ended.value.code in (0, None)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    with local_cluster(cpus=3, log=tmp_path_factory.mktemp("ray") / "ray.log") as running:
        yield running


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Return a folder with the files that a reader of the guides has: videos, a portrait, speech and small weights."""
    from skimage.data import astronaut
    from sounds import write_sound
    from talkers import Talker
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from xactor.media import write_video

    folder = tmp_path_factory.mktemp("reader")
    (folder / "videos").mkdir()
    for seed in (1, 2, 3):
        talker = Talker(0, seed=seed, seconds=2)
        write_video(folder / "videos" / f"{seed}.mp4", talker.frames, samples=talker.samples)
    Image.fromarray(np.asarray(astronaut())).save(folder / "face.png")
    write_sound(folder / "speech.wav")
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
    convolutions = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions)).save_pretrained(folder / "weights" / "wav2vec2")
    return folder


def run(command: str, folder: Path, env: Mapping[str, str]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**env, "PATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"


@pytest.fixture(scope="module")
def trained(inputs: Path, cluster: LocalCluster) -> Path:
    """Run every command of one-gpu.md in the folder of `inputs`, and return that folder.

    The jobs join one running cluster, which saves the time to start a cluster for each job.
    """
    (inputs / "jobs").symlink_to(ROOT / "jobs")
    env = {**cluster.env, "RAY_ADDRESS": cluster.address}
    for command in commands("one-gpu.md"):
        if command in SET_UP:
            continue
        if command.startswith("hf download"):
            # Nothing is downloaded: `inputs` wrote small checkpoints into weights/.
            words = shlex.split(command)
            assert words[words.index("--local-dir") + 1].startswith("weights/")
            continue
        run(with_small_options(command), inputs, env)
    return inputs


@soak
def test_the_commands_of_one_gpu_md_make_a_video(trained: Path):
    assert (trained / "out.mp4").stat().st_size > 0
    assert (trained / "model" / "model_index.json").exists()
    assert (trained / "report" / "render" / "report.json").exists()


@soak
def test_the_commands_of_cluster_md_make_dubbed_videos(trained: Path, cluster: LocalCluster, tmp_path: Path):
    data = tmp_path / "talking"
    data.mkdir()
    (data / "raw").symlink_to(trained / "videos")
    (data / "model").symlink_to(trained / "model")
    for name in ("face.png", "speech.wav"):
        (data / name).symlink_to(trained / name)
    (data / "items.jsonl").write_text('{"id": "one", "image": "face.png", "audio": "speech.wav"}\n')
    weights = trained / "weights"
    for command in commands("cluster.md"):
        if command.startswith("export"):
            continue
        if command.startswith("xactor assemble"):
            (tmp_path / "exports").mkdir()
            for stage in ("stage1", "stage2"):
                (tmp_path / "exports" / stage).symlink_to(data / "runs" / stage / "export")
            run(command, tmp_path, cluster.env)
            continue
        # On a real cluster, a submitted job finds weights/ in ~/xactor of its machine. Here it is an absolute path.
        local_command = with_small_options(command).replace(" weights/", f" {weights}/")
        run(local_command, ROOT, {**cluster.env, "DATA": str(data)})
    assert (data / "dubbed" / "one.mp4").stat().st_size > 0
    assert (tmp_path / "model" / "model_index.json").exists()

"""A training that is killed in every place where it can die ends as the one that is left alone, bit by bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xactor_platform.cluster import LocalCluster, local_cluster
from xactor_platform.shards import ShardWriter
from xactor_platform.training.crash_trial import (
    VICTIMS,
    Kill,
    Trial,
    command,
    history,
    python_env,
    random_kills,
)
from xactor_platform.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 60, 5
SMALL = {
    "train.steps": STEPS,
    "train.checkpoint-every": EVERY,
    "train.micro-batches": 4,
    "train.budget-frames": 96,
    "train.evaluate-every": 0,
    "train.log-samples": True,
    "model.hidden": 32,
    "model.heads": 2,
    "model.kv-heads": 1,
    "model.layers": 2,
    "model.mlp": 48,
    "model.chunk-frames": 8,
    "model.context-frames": 48,
    "scale.collective-timeout-s": 60,
    "scale.max-failures": 3,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("corpus") / "shards")
    generator = np.random.default_rng(0)
    for split, clips in (("train", 160), ("test", 2)):
        with ShardWriter(folder, split, samples_per_shard=40) as writer:
            for i in range(clips):
                frames = int(generator.integers(10, 70))
                motion = generator.standard_normal((frames, 6)).astype(np.float16)
                audio = generator.standard_normal((frames, 2, 5)).astype(np.float16)
                meta = {"frames": frames, "fps": 25, "speaker": "s"}
                writer.write(f"{split}-{i:03d}", {"motion.npy": motion, "audio.npy": audio, "json": meta})
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with local_cluster(cpus=4, log=tmp_path_factory.mktemp("cluster") / "ray.log") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def trial_of(cluster: LocalCluster, shards, tmp_path_factory):
    """Of a run by its name: its trial and its folder."""
    storage = tmp_path_factory.mktemp("runs")

    def make(name: str) -> tuple[Trial, RunFolder]:
        options = SMALL | {"data.shards": shards, "run.storage": storage, "run.name": name}
        folder = RunFolder(str(storage), name)
        env = python_env(cluster.env, cluster.address)
        log = storage / f"{name}.log"
        return Trial(command("train_stage2", options), folder, cwd=ROOT, env=env, log=log), folder

    return make


@pytest.fixture(scope="module")
def left_alone(trial_of) -> dict[str, Any]:
    trial, folder = trial_of("alone")
    assert trial.run() == []
    alone = history(folder, STEPS)
    assert alone["steps"] == list(range(1, STEPS + 1))
    return alone


@pytest.mark.cluster
@pytest.mark.timeout(1800)  # six starts of a training, on a machine that may have much else to do
def test_killed_in_every_place_it_ends_as_if_nothing_had_been(trial_of, left_alone):
    kills = [Kill(victim=victim, after_step=7 + 10 * n) for n, victim in enumerate(VICTIMS)]
    trial, folder = trial_of("killed")
    recoveries = trial.run(kills)
    assert [r.victim for r in recoveries] == list(VICTIMS)
    for recovery in recoveries:
        assert recovery.resumed_from >= recovery.checkpoint, recovery
        assert 0 <= recovery.lost_steps <= recovery.step - recovery.checkpoint, recovery
    stopped = recoveries[-1]
    assert stopped.victim == "stop"
    assert stopped.lost_steps == 0  # SIGTERM makes a checkpoint
    assert history(folder, STEPS) == left_alone


@pytest.mark.soak
@pytest.mark.cluster
@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_it_ends_as_if_nothing_had_been(trial_of, left_alone, seed):
    trial, folder = trial_of(f"random-{seed}")
    (recovery,) = trial.run(random_kills(seed, STEPS))
    assert recovery.resumed_from >= recovery.checkpoint, recovery
    assert history(folder, STEPS) == left_alone


def test_the_same_seed_kills_the_same():
    assert random_kills(3, 60, 4) == random_kills(3, 60, 4)
    assert {kill.victim for seed in range(30) for kill in random_kills(seed, 60)} == set(VICTIMS)
    assert all(1 <= kill.after_step < 57 for seed in range(30) for kill in random_kills(seed, 60))

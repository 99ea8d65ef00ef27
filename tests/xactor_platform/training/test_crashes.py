"""Test that a training whose processes are killed gives the same result as an uninterrupted one, bit by bit."""

from pathlib import Path

import pytest
from benches.crashes import (
    VICTIMS,
    Kill,
    Trial,
    command,
    history,
    python_env,
    random_kills,
)
from small_run import STEPS, config_of, options_of

from xactor_platform.cluster.local import LocalCluster, local_cluster
from xactor_platform.training.run.folder import RunFolder

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with local_cluster(cpus=4, log=tmp_path_factory.mktemp("cluster") / "ray.log") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def trial_of(cluster: LocalCluster, shards, tmp_path_factory):
    """Return a function that makes the trial and the folder of a run from its name."""
    storage = tmp_path_factory.mktemp("runs")

    def make(name: str) -> tuple[Trial, RunFolder]:
        scale = {"max_failures": 3, "collective_timeout_s": 60, "start_timeout_s": 60}
        options = options_of(config_of(shards, storage, name, scale=scale, checkpoint_every=5))
        env = python_env(cluster.env, cluster.address)
        trial = Trial(
            command("train_stage2", options),
            RunFolder(str(storage), name),
            cwd=ROOT,
            env=env,
            log=storage / f"{name}.log",
        )
        return trial, RunFolder(str(storage), name)

    return make


def assert_the_same(folder: RunFolder, whole_run) -> None:
    """Compare losses, norms, samples and the trained model bit by bit."""
    storage, result = whole_run
    assert history(folder, STEPS) == history(RunFolder(str(storage), "whole"), STEPS)
    for file in ("motion/model.safetensors", "motion/config.json"):
        assert Path(folder.uri_of("export"), file).read_bytes() == Path(result.export, file).read_bytes()


@pytest.mark.cluster
# The training starts several times, which takes minutes on a busy machine.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "victims",
    [("worker", "stop"), pytest.param(VICTIMS, marks=pytest.mark.soak)],
    ids=["two", "all"],
)
def test_a_training_whose_processes_are_killed_equals_an_uninterrupted_one(trial_of, whole_run, victims):
    kills = [Kill(victim=victim, after_step=7 + 10 * n) for n, victim in enumerate(victims)]
    trial, folder = trial_of(f"killed-{len(victims)}")
    recoveries = trial.run(kills)
    assert [r.victim for r in recoveries] == list(victims)
    for recovery in recoveries:
        assert recovery.resumed_from >= recovery.checkpoint, recovery
        assert 0 <= recovery.lost_steps <= recovery.step - recovery.checkpoint, recovery
    stopped = recoveries[-1]
    assert stopped.victim == "stop"
    # SIGTERM makes a checkpoint.
    assert stopped.lost_steps == 0
    assert_the_same(folder, whole_run)


@pytest.mark.soak
@pytest.mark.cluster
@pytest.mark.parametrize("seed", range(20))
def test_a_training_that_is_killed_at_random_equals_an_uninterrupted_one(trial_of, whole_run, seed):
    trial, folder = trial_of(f"random-{seed}")
    (recovery,) = trial.run(random_kills(seed, STEPS))
    assert recovery.resumed_from >= recovery.checkpoint, recovery
    assert_the_same(folder, whole_run)


def test_the_same_seed_gives_the_same_kills():
    assert random_kills(3, 60, 4) == random_kills(3, 60, 4)
    assert {kill.victim for seed in range(30) for kill in random_kills(seed, 60)} == set(VICTIMS)
    assert all(1 <= kill.after_step < 57 for seed in range(30) for kill in random_kills(seed, 60))

"""Kill a training wherever it can die, and compare its end with that of an undisturbed one, bit by bit."""

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
    """Make the trial and the folder of a run by its name."""
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
# The training starts several times, on a machine that may be busy.
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "victims",
    [
        # With a driver its controller dies too.
        ("worker", "data", "driver", "stop"),
        pytest.param(VICTIMS, marks=pytest.mark.soak),
    ],
    ids=["most", "all"],
)
def test_killed_in_every_place_it_ends_as_if_nothing_had_been(trial_of, whole_run, victims):
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
def test_killed_at_random_it_ends_as_if_nothing_had_been(trial_of, whole_run, seed):
    trial, folder = trial_of(f"random-{seed}")
    (recovery,) = trial.run(random_kills(seed, STEPS))
    assert recovery.resumed_from >= recovery.checkpoint, recovery
    assert_the_same(folder, whole_run)


def test_the_same_seed_kills_the_same():
    assert random_kills(3, 60, 4) == random_kills(3, 60, 4)
    assert {kill.victim for seed in range(30) for kill in random_kills(seed, 60)} == set(VICTIMS)
    assert all(1 <= kill.after_step < 57 for seed in range(30) for kill in random_kills(seed, 60))

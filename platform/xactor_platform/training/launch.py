"""Launch a training from the driver: check the config and the corpus, then let Ray Train start the ranks.

A rank is one worker process of a training. The driver imports neither torch nor the training loop, because these
imports would take most of the time of a start.
"""

import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import ray
import ray.train
from ray.exceptions import RayActorError

from xactor_platform.cluster.capacity import DATA_CPUS, has_placement, remove_placements, room_for_ranks
from xactor_platform.cluster.connect import connect
from xactor_platform.data.fingerprint import fingerprint, refuse_changed_corpus
from xactor_platform.data.index import Index
from xactor_platform.data.index_file import load_index
from xactor_platform.training.elastic import ElasticTrainer, RankTrainer
from xactor_platform.training.process_group import ProcessGroupConfig
from xactor_platform.training.run.checkpoints import Checkpoints, Manifest
from xactor_platform.training.run.endings import RankResult, root_cause
from xactor_platform.training.run.folder import BAD, CONFIG, EXPORT, RunFolder, saved_config
from xactor_platform.training.run.lease import lease
from xactor_platform.training.run.notices import stopping_by_signal
from xactor_platform.training.run.run_log import read_metrics
from xactor_platform.training.train_config import Facts, StageConfig, as_dict, refuse_changes

DIGESTS = "shard_digests"
"""Name of the entry in config.json that holds the corpus's fingerprint."""
# Seconds between two looks whether a signal came while the ranks wait for room.
_LOOK_S = 0.5
EARLIER = "checkpoint_manager_snapshot.json"
"""Ray Train's own list of checkpoints. A run's folder holds this file only if an earlier version of this project, whose
checkpoints have no manifests, wrote the run."""


@dataclass(frozen=True)
class TrainResult:
    """Describe how far a run has come."""

    uri: str
    """The run's folder."""
    export: str
    """Folder of the exported model."""
    last: dict[str, Any]
    """The last row of metrics.jsonl. Of a run that was stopped, the row of its newest checkpoint, or `{"step": 0}`."""
    stopped: str | None = None
    """`SIGTERM` or `requested` if the run was stopped before its last step; None if the run is done."""


def train(config: StageConfig, *, py_modules: list[str] | None = None) -> TrainResult:
    """Train the run that the config names, or resume it.

    Args:
        config: the configuration of the run.
        py_modules: folders of Python code that Ray copies to the cluster's workers.

    Raises:
        ValueError, OSError: the training cannot work; no rank was started.
        RuntimeError: the run failed; the message names the cause.
    """
    folder = RunFolder.of(config.run)
    index, corpus, facts = _check(config, folder)
    # The lease ensures that only one driver at a time trains the run.
    with lease(folder) as holder:
        checkpoints = Checkpoints(folder).complete()
        # A checkpoint holds the config of the training that wrote it. The newest checkpoint's config is compared too,
        # because the run's config.json may be missing or differ from it.
        if checkpoints:
            newest = checkpoints[0]
            refuse_changes(newest.config, config, f"{folder.uri}/{newest.folder}")
            _check_newest(newest, config, folder)
        # Joining the cluster may take long, so it comes after all other checks.
        if not ray.is_initialized():
            connect(py_modules or [])
        scale = config.scale
        room = room_for_ranks(
            ranks=scale.ranks,
            min_ranks=scale.min_ranks,
            cpus_per_rank=scale.cpus_per_rank,
            device=scale.device,
            timeout_s=scale.start_timeout_s,
        )
        with room as use_gpu, stopping_by_signal(folder) as signalled:
            saved = {"config": as_dict(config), DIGESTS: corpus, **facts}
            folder.write_text(CONFIG, json.dumps(saved, indent=2) + "\n")
            if index.bad:
                rows = "".join(json.dumps(vars(sample)) + "\n" for sample in index.bad)
                folder.write_text(BAD, rows)
            result = _run_ranks(config, facts, holder, folder, use_gpu, signalled)
    if result.stopped:
        raise RuntimeError(f"run {folder.uri} stopped: {result.stopped}")
    rows = read_metrics(folder)
    stopped = None
    if result.requested:
        stopped = "SIGTERM" if signalled.is_set() else "requested"
        # If the ranks waited for the cluster, steps after the newest checkpoint are not kept.
        kept = next((manifest.step for manifest in Checkpoints(folder).complete()), 0)
        rows = [{"step": 0}, *(row for row in rows if row["step"] <= kept)]
    return TrainResult(folder.uri, folder.uri_of(EXPORT), rows[-1], stopped)


def _check(config: StageConfig, folder: RunFolder) -> tuple[Index, dict[str, str], Facts]:
    """Check that the run, the config and the corpus fit each other.

    Returns:
        the index of the corpus, the fingerprint of the corpus, and the facts that the ranks need to know about it.
    """
    saved = saved_config(folder)
    if saved is None and config.run.resume:
        raise FileNotFoundError(f"nothing to resume: {folder.uri} holds no {CONFIG}")
    if saved is not None and folder.read_text(EARLIER) is not None:
        raise ValueError(
            f"run {folder.uri} was begun by an earlier version, whose checkpoints this version cannot read: "
            f"continue with the earlier version, or use another --run.name"
        )
    index = load_index(config.data.shards, max_bad_fraction=config.data.max_bad_fraction)
    corpus = fingerprint(index)
    if saved is not None:
        refuse_changes(saved["config"], config, folder.uri)
        digests = saved.get(DIGESTS, corpus)
        if not isinstance(digests, dict):
            raise ValueError(f"{folder.uri}/{CONFIG}: {DIGESTS} must be an object, got {digests!r}")
        refuse_changed_corpus(digests, corpus, config.data.shards)
    if not index.training().samples:
        raise ValueError(
            f"{config.data.shards}: every shard is held out by its name (test-*, val-* and the like), "
            "none is left to train on"
        )
    print(
        f"{config.data.shards}: {index.training().samples:,} samples to train on, "
        f"{index.held_out().samples:,} held out",
        flush=True,
    )
    return index, corpus, config.prepare(index, saved)


def _check_newest(newest: Manifest, config: StageConfig, folder: RunFolder) -> None:
    """Check that a run can continue from its newest checkpoint. Say if the learning rate will jump.

    Raises:
        ValueError: the run has done more steps than `config` asks for, or it was begun on a corpus of another path and
            nothing tells whether the two corpora are the same.
    """
    before = type(config).from_dict(newest.config)
    begun_on = before.data.shards
    if begun_on != config.data.shards and DIGESTS not in (saved_config(folder) or {}):
        raise ValueError(
            f"run {folder.uri} was begun on {begun_on}, and its {CONFIG} does not say whether {config.data.shards} "
            f"holds the same: use the same path"
        )
    train, steps_before = config.train, before.train.steps
    if newest.step > train.steps:
        raise ValueError(
            f"train.steps must be >= {newest.step}, the steps that run {folder.uri} has done, got {train.steps}"
        )
    if train.schedule == "cosine" and train.steps != steps_before and newest.step < train.steps:
        print(
            f"NOTE: train.steps was {steps_before}, now {train.steps}: the cosine of the learning rate now ends at "
            f"step {train.steps}, so the rate jumps at step {newest.step + 1}",
            flush=True,
        )


def _run_ranks(
    config: StageConfig,
    facts: Facts,
    holder: str,
    folder: RunFolder,
    use_gpu: bool,
    signalled: threading.Event,
) -> RankResult:
    """Run the ranks until they end, and return their result.

    The controller is the actor with which Ray Train manages the ranks. If it dies, another one is started, at most
    `scale.max_failures` times. SIGTERM ends it if the ranks wait for room in a busy cluster, because no rank sees the
    request to stop.

    Raises:
        RuntimeError: the ranks or the controller failed.
    """
    max_failures = config.scale.max_failures
    for failures in range(max_failures + 1):
        try:
            # Ray Train writes its own files to a temporary folder, so that a failure of the run's storage does not
            # make Ray Train fail.
            with tempfile.TemporaryDirectory(prefix="xactor-train-") as scratch:
                trainer = _trainer(config, facts, holder, use_gpu, scratch)
                with _ending_if_waiting(trainer, signalled):
                    result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise RuntimeError(f"run {folder.uri} failed: {root_cause(error)}") from error
        except RayActorError as error:
            if signalled.is_set():
                remove_placements()
                return RankResult(requested=True)
            if failures == max_failures:
                raise RuntimeError(
                    f"run {folder.uri} failed: Ray Train's controller died: {root_cause(error)}"
                ) from error
            print(f"{folder.uri}: Ray Train's controller died, starting another one", flush=True)
        else:
            return cast(RankResult, result.return_value)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _ending_if_waiting(trainer: RankTrainer, signalled: threading.Event) -> Iterator[None]:
    """End the trainer's controller after a signal, unless the ranks have their place in the cluster."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            # Ranks that have their place see the request to stop themselves.
            if signalled.is_set() and trainer.controller is not None and not has_placement():
                ray.kill(trainer.controller)
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _trainer(config: StageConfig, facts: Facts, holder: str, use_gpu: bool, scratch: str) -> RankTrainer:
    """Return a Ray Train trainer that runs `_train_rank` on every rank. `scratch` is the folder for its own files."""
    scale = config.scale
    options: dict[str, Any] = {
        "train_loop_config": {"config": config, "facts": facts, "holder": holder},
        "backend_config": ProcessGroupConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=scale.collective_timeout_s
        ),
        "scaling_config": ray.train.ScalingConfig(
            num_workers=scale.ranks if scale.min_ranks is None else (scale.min_ranks, scale.ranks),
            use_gpu=use_gpu,
            resources_per_worker={"CPU": scale.cpus_per_rank, **({"GPU": 1} if use_gpu else {})},
            elastic_resize_monitor_interval_s=scale.resize_s,
        ),
        "run_config": ray.train.RunConfig(
            name=config.run.name,
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(max_failures=scale.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    }
    if scale.min_ranks is None:
        return RankTrainer(_train_rank, **options)
    return ElasticTrainer(_train_rank, plan=config.plan, data_cpus=DATA_CPUS, **options)


def _train_rank(options: dict[str, Any]) -> RankResult:
    """Run `loop.train_rank` in a rank's process. Only these processes import the training loop."""
    from xactor_platform.training.loop import train_rank

    return train_rank(**options)

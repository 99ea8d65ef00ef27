"""The driver's side: check everything that can be checked, then hand the ranks to Ray Train."""

import dataclasses
import json
import tempfile
from typing import Any, cast

import ray
import ray.train
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.torch import TorchConfig, TorchTrainer

from xactor_platform.cluster.capacity import DATA_CPUS, room_for_ranks
from xactor_platform.cluster.connect import connect
from xactor_platform.data.fingerprint import fingerprint, refuse_changed_corpus
from xactor_platform.data.index import load_index
from xactor_platform.storage.retries import StorageUnavailable
from xactor_platform.training.config import StageConfig, as_dict
from xactor_platform.training.elastic import ElasticTrainer
from xactor_platform.training.loop import Ending, Job, train_rank
from xactor_platform.training.run.checkpoints import Checkpoints
from xactor_platform.training.run.folder import BAD, CONFIG, EXPORT, METRICS, RunFolder
from xactor_platform.training.run.health import CollectiveTimeout, OutOfMemory
from xactor_platform.training.run.lease import LeaseLost, lease
from xactor_platform.training.run.notices import stopping_by_signal
from xactor_platform.training.stage import stage_of

NAMED_ENDS = (CollectiveTimeout, OutOfMemory, StorageUnavailable, LeaseLost, OutOfMemoryError)
EARLIER = "checkpoint_manager_snapshot.json"  # Ray Train's list of checkpoints, before they had manifests
RESUMABLE = (
    "run",
    "scale",
    "train.steps",
    "train.evaluate",
    "train.checkpoint",
    "train.keep",
    "train.max_skipped",
    "train.loss_spike",
    "train.sheet",
    "train.log_samples",
    "train.tensorboard",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a run stands, and its last metrics row.

    stopped: what made it stop before its end, SIGTERM or somebody's wish; None where it is done.
    """

    uri: str
    export: str
    last: dict[str, Any]
    stopped: str | None = None


def train(config: StageConfig, *, py_modules: list[str] | None = None) -> Outcome:
    """Trains, or goes on training, the run that the config names.

    Args:
        py_modules: folders of code for the cluster's workers; it is joined once everything else was found right.

    Raises:
        ValueError, OSError: what cannot work, before anything starts.
        RuntimeError: the run failed; the message names the cause.
    """
    folder = RunFolder(config.run.storage, config.run.name, config.run.storage_timeout_s)
    saved = saved_config(folder)
    if saved is None and config.run.resume:
        raise FileNotFoundError(f"nothing to resume: {folder.uri} holds no {CONFIG}")
    if saved is not None and folder.read_text(EARLIER) is not None:
        raise ValueError(
            f"run {folder.uri} was begun by an earlier version, whose checkpoints this one does not read: "
            f"go on with that version, or use another --run.name"
        )
    index = load_index(config.data.shards, max_bad_fraction=config.data.max_bad_fraction)
    corpus = fingerprint(index)
    if saved is not None:
        refuse_changes(saved["config"], as_dict(config), folder.uri)
        refuse_changed_corpus(saved.get("corpus", corpus), corpus, config.data.shards)
    if not index.training().samples:
        raise ValueError(
            f"{config.data.shards}: every shard is held out (test-*, val-*), none is left to train on"
        )
    facts = stage_of(config).prepare(config, index, saved)
    with lease(folder) as holder:
        for manifest in Checkpoints(folder).complete()[:1]:
            refuse_changes(manifest.config, as_dict(config), f"{folder.uri}/{manifest.folder}")
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
            about = {"config": as_dict(config), "corpus": corpus, **facts}
            folder.write_text(CONFIG, json.dumps(about, indent=2) + "\n")
            if index.bad:
                rows = "".join(json.dumps(vars(sample)) + "\n" for sample in index.bad)
                folder.write_text(BAD, rows)
            ending = _run(Job(config, facts, holder), folder, use_gpu)
    if ending.stopped:
        raise RuntimeError(f"run {folder.uri} stopped: {ending.stopped}")
    rows = folder.read_lines(METRICS)
    stopped = ("SIGTERM" if signalled.is_set() else "asked") if ending.asked else None
    return Outcome(folder.uri, folder.uri_of(EXPORT), rows[-1], stopped)


def _run(job: Job, folder: RunFolder, use_gpu: bool) -> Ending:
    """Ray Train's part. What kills its controller is as little an end of the run as what kills a rank."""
    scale = job.config.scale
    for deaths in range(scale.max_failures + 1):
        try:
            with tempfile.TemporaryDirectory(prefix="xactor-train-") as scratch:
                result = _trainer(job, use_gpu, scratch).fit()
        except ray.train.TrainingFailedError as error:
            raise RuntimeError(f"run {folder.uri} failed: {root_cause(error)}") from error
        except RayActorError as error:
            if deaths == scale.max_failures:
                raise RuntimeError(
                    f"run {folder.uri} failed: Ray Train's controller died: {root_cause(error)}"
                ) from error
            print(f"{folder.uri}: Ray Train's controller died, another one goes on", flush=True)
        else:
            return cast(Ending, result.return_value)
    raise AssertionError("unreachable")


def _trainer(job: Job, use_gpu: bool, scratch: str) -> TorchTrainer:
    """Ray Train's own notes go to `scratch`: a run's folder is ours, and a storage that fails is not Ray's matter."""
    config, scale = job.config, job.config.scale
    resources = {"CPU": scale.cpus_per_rank, **({"GPU": 1} if use_gpu else {})}
    options: dict[str, Any] = {
        "train_loop_config": {"job": job},
        "torch_config": TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=scale.collective_timeout_s
        ),
        "scaling_config": ray.train.ScalingConfig(
            num_workers=scale.ranks if scale.min_ranks is None else (scale.min_ranks, scale.ranks),
            use_gpu=use_gpu,
            resources_per_worker=resources,
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
        return TorchTrainer(train_rank, **options)
    return ElasticTrainer(train_rank, plan=config.plan, data_cpus=DATA_CPUS, **options)


def saved_config(folder: RunFolder) -> dict[str, Any] | None:
    """What config.json of an earlier start of this run says, if there is one."""
    return folder.read_json(CONFIG)


def refuse_changes(saved: dict[str, Any], given: dict[str, Any], uri: str) -> None:
    """ValueError naming the options in which a run cannot change when it goes on."""
    before, now = _flat(saved), _flat(given)
    changed = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not name.startswith(RESUMABLE)
    ]
    if changed:
        raise ValueError(
            f"run {uri} exists with another config ({'; '.join(changed)}): "
            f"use another --run.name, or --run.resume without these options"
        )


def root_cause(error: BaseException) -> str:
    """The innermost cause that Ray wrapped, in one line: of several ranks' the one that says most."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    causes = [_innermost(failure) for failure in failures.values()]
    named = [cause for cause in causes if isinstance(cause, NAMED_ENDS)]
    cause = (named or causes)[0]
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    # Ours say it in one line, and Ray, which ends a rank where a node is short of memory, in the first of many.
    return f"{type(cause).__name__}: {lines[0 if named else -1] if lines else ''}"


def _innermost(cause: BaseException) -> BaseException:
    while not isinstance(cause, NAMED_ENDS):
        inner = getattr(cause, "cause", None) or cause.__cause__
        if inner is None:
            break
        cause = inner
    return cause


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat

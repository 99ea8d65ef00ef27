"""The driver's side: check everything that can be checked, then hand the ranks to Ray Train."""

import dataclasses
import json
import logging
import os
import time
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from xactor_platform.cluster import free_port
from xactor_platform.index import load_index
from xactor_platform.training.config import StageConfig
from xactor_platform.training.loop import Job, train_rank
from xactor_platform.training.run_folder import BAD, CONFIG, EXPORT, METRICS, RunFolder
from xactor_platform.training.stage import stage_of

DATA_CPUS = 1.0  # Ray Data must have one, or it waits for ever
RESUMABLE = (
    "run",
    "scale",
    "train.steps",
    "train.evaluate",
    "train.checkpoint",
    "train.keep",
    "train.sheet",
    "train.log_samples",
    "train.tensorboard",
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Where a finished run stands, and its last metrics row."""

    uri: str
    export: str
    last: dict[str, Any]


def train(config: StageConfig, *, py_modules: list[str] | None = None) -> Outcome:
    """Trains, or goes on training, the run that the config names.

    Args:
        py_modules: folders of code for the cluster's workers; it is joined once everything else was found right.

    Raises:
        ValueError, FileNotFoundError, NotADirectoryError: what cannot work, before anything starts.
        RuntimeError: the run failed; the message names the cause.
    """
    folder = RunFolder(config.run.storage, config.run.name)
    saved = saved_config(folder)
    if saved is None and config.run.resume:
        raise FileNotFoundError(f"nothing to resume: {folder.uri} holds no {CONFIG}")
    if saved is not None:
        refuse_changes(saved["config"], as_dict(config), folder.uri)
    index = load_index(config.data.shards, max_bad_fraction=config.data.max_bad_fraction)
    if not index.training().samples:
        raise ValueError(
            f"{config.data.shards}: every shard is held out (test-*, val-*), none is left to train on"
        )
    facts = stage_of(config).prepare(config, index, saved)
    if not ray.is_initialized():
        connect(py_modules or [])
    use_gpu = wait_for_resources(config)

    folder.write_text(CONFIG, json.dumps({"config": as_dict(config), **facts}, indent=2) + "\n")
    if index.bad:
        rows = "".join(json.dumps(vars(sample)) + "\n" for sample in index.bad)
        folder.write_text(BAD, rows)
    resources = {"CPU": config.scale.cpus_per_rank, **({"GPU": 1} if use_gpu else {})}
    trainer = TorchTrainer(
        train_rank,
        train_loop_config={"job": Job(config, facts)},
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=config.scale.collective_timeout_s
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scale.ranks, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=config.run.name,
            storage_path=folder.storage.path,
            storage_filesystem=folder.storage.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=config.scale.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.train.keep_checkpoints),
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RuntimeError(f"run {folder.uri} failed: {root_cause(error)}") from error
    if result.return_value is not None:
        raise RuntimeError(f"run {folder.uri} stopped: {result.return_value}")
    return Outcome(folder.uri, f"{folder.uri}/{EXPORT}", folder.read_lines(METRICS)[-1])


def as_dict(config: StageConfig) -> dict[str, Any]:
    """As JSON has it, which knows lists but no tuples."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def saved_config(folder: RunFolder) -> dict[str, Any] | None:
    """What config.json of an earlier start of this run says, if there is one."""
    text = folder.read_text(CONFIG)
    return None if text is None else json.loads(text)


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


def wait_for_resources(config: StageConfig) -> bool:
    """Waits until the cluster has what the ranks and the data need. Returns whether the ranks get GPUs.

    ValueError with both numbers where it does not come: a training that takes every CPU would wait for its
    data for ever.
    """
    scale = config.scale
    need = scale.ranks * scale.cpus_per_rank + DATA_CPUS
    deadline = time.monotonic() + scale.start_timeout_s
    while True:
        have = ray.cluster_resources()
        use_gpu = scale.device == "gpu" or (scale.device == "auto" and have.get("GPU", 0) > 0)
        enough_gpus = not use_gpu or have.get("GPU", 0) >= scale.ranks
        if have.get("CPU", 0) >= need and enough_gpus:
            return use_gpu
        if time.monotonic() > deadline:
            break
        time.sleep(1.0)
    if have.get("CPU", 0) < need:
        raise ValueError(
            f"the cluster has {have.get('CPU', 0):g} CPUs, but {scale.ranks} ranks of {scale.cpus_per_rank:g} and "
            f"{DATA_CPUS:g} for reading data need {need:g}: lower --scale.ranks or --scale.cpus-per-rank"
        )
    raise ValueError(f"the cluster has {have.get('GPU', 0):g} GPUs, but {scale.ranks} ranks need one each")


def root_cause(error: BaseException) -> str:
    """The innermost cause that Ray wrapped, in one line."""
    failures = getattr(error, "worker_failures", None) or {}
    cause: BaseException = next(iter(failures.values()), error)
    while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
        cause = inner
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[-1] if lines else ''}"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def connect(py_modules: list[str]) -> None:
    """Joins the cluster that RAY_ADDRESS names, as it does in a submitted job; otherwise starts one here.

    This checkout's code goes to its workers. Ray's own way of finding a cluster, by a file that the last one left,
    would wait minutes for one that is gone.
    """
    env = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}  # or every line of progress is shown twice
    os.environ.update(env)
    started: dict[str, Any] = {}
    if "RAY_ADDRESS" not in os.environ:
        # For its processes too, which would look for that file when a training ends.
        started["dashboard_port"] = port = free_port()
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    ray.init(
        address=os.environ.get("RAY_ADDRESS", "local"),
        runtime_env={"py_modules": py_modules, "env_vars": env},
        logging_level=logging.WARNING,
        **started,
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)

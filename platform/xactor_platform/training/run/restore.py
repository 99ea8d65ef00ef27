"""Restore a run's newest intact checkpoint on all ranks, even if another number of ranks wrote it.

A checkpoint is complete when it has a manifest, and intact when its files match the checksums in the manifest.
"""

import argparse
import contextlib
import io
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import torch
import torch.distributed as dist

from xactor_platform.storage.retries import StorageUnavailable
from xactor_platform.training.run.checkpoints import Checkpoints, Corrupt, Manifest
from xactor_platform.training.run.endings import TrainingStopped
from xactor_platform.training.run.snapshot import TAG

Result = TypeVar("Result")


@dataclass(frozen=True)
class Restored:
    """Describe a verified checkpoint on this node, ready for DeepSpeed to load."""

    manifest: Manifest
    """The checkpoint's manifest."""
    folder: str
    """Folder on this node that DeepSpeed loads."""
    universal: bool
    """True if another number of ranks wrote the checkpoint, so that it was converted to DeepSpeed's universal form."""


@contextmanager
def newest_checkpoint(checkpoints: Checkpoints, parameters: int) -> Iterator[Restored | None]:
    """Give the block the newest intact checkpoint, or None for a new run. All ranks must call it.

    The first rank of each node copies the checkpoint to the node and verifies it. A corrupt checkpoint is reported, and
    the previous one is tried. Checkpoints that are newer than the restored one are dropped, so that their files do not
    mix with the files of new checkpoints.

    Args:
        checkpoints: the checkpoints of the run.
        parameters: number of parameters of the model to train.

    Raises:
        TrainingStopped: every checkpoint is corrupt, or the newest one is of a model with another number of parameters,
            or a newer version of this project wrote one.
        StorageUnavailable: the storage failed until the timeout.
    """
    refuse_code()
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    complete = _on_first_rank(checkpoints.complete)
    # A run whose checkpoints all have unreadable manifests must not start from step 0, which would delete them.
    if not complete and (steps := _on_first_rank(checkpoints.unreadable)):
        names = ", ".join(map(checkpoints.uri, steps))
        raise TrainingStopped(
            f"no checkpoint of {len(steps)} can be loaded, their manifests cannot be read: {names}"
        )
    with contextlib.ExitStack() as stack:
        node_folder = None
        if context.get_local_rank() == 0:
            node_folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xactor-restore-")))
        faults: list[str] = []
        restored = None
        for manifest in complete:
            if manifest.parameters != parameters:
                raise TrainingStopped(
                    f"checkpoint {checkpoints.uri(manifest.step)} is of a model of {manifest.parameters:,} parameters, "
                    f"this one has {parameters:,}"
                )
            folder, fault = _copy_to_nodes(checkpoints, manifest, node_folder)
            if not fault:
                restored = Restored(manifest, folder, manifest.ranks != ranks)
                break
            faults.append(f"{checkpoints.uri(manifest.step)}: {fault}")
            if rank == 0:
                print(f"CORRUPT checkpoint {faults[-1]}; falling back to the one before", flush=True)
        if complete and not restored:
            raise TrainingStopped(f"no checkpoint of {len(complete)} can be loaded: {'; '.join(faults)}")
        _on_first_rank(lambda: checkpoints.sweep(after=restored.manifest.step if restored else 0))
        yield restored
        # The other ranks of a node read from its first rank's folder, which is deleted when this block ends.
        dist.barrier()


def refuse_code() -> None:
    """Make `torch.load` refuse files that hold code, in this process, from now on.

    A checkpoint may come from anyone who can write to the run's folder. DeepSpeed loads its files as pickles, which can
    run any code. With this setting they may hold tensors, numbers, strings, containers and DeepSpeed's own few types.
    `torch.load` raises `pickle.UnpicklingError` for everything else.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # The variable overrides the weights_only=False that DeepSpeed passes.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])


def _code_in(folder: Path) -> str:
    """Return one line about the code in a checkpoint's files, or an empty string. No code runs.

    All files are checked before any rank loads one, because a single rank that refused its file would leave the other
    ranks waiting.
    """
    for file in sorted(folder.rglob("*.pt")):
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        if names:
            return f"{file.name} holds code and not only tensors and numbers: {', '.join(sorted(names))}"
    return ""


def refused_code(error: pickle.UnpicklingError) -> str:
    """Return one line about the code in a file, from the error of `torch.load`, which has many lines."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"holds code and not only tensors and numbers: {found[1] if found else 'of an unknown name'}"


def _copy_to_nodes(checkpoints: Checkpoints, manifest: Manifest, node_folder: Path | None) -> tuple[str, str]:
    """Copy a checkpoint to every node, and verify it. All ranks must call it.

    Args:
        checkpoints: the checkpoints of the run.
        manifest: the manifest of the checkpoint to copy.
        node_folder: folder on this node for the copy. Only the first rank of the node gives it, other ranks give None.

    Returns:
        the checkpoint's folder on this node, and the fault of the checkpoint. The fault is empty if it is intact.

    Raises:
        StorageUnavailable: the storage failed on any node.
    """
    node, ranks = ray.train.get_context().get_node_rank(), dist.get_world_size()
    folder = fault = unavailable = ""
    if node_folder is not None:
        target = node_folder / manifest.folder
        try:
            checkpoints.fetch(manifest, target)
            fault = _code_in(target)
            if not fault and manifest.ranks != ranks:
                target = _converted(target, node_folder / f"universal-{manifest.step:08d}")
            folder = "" if fault else str(target)
        except Corrupt as error:
            fault = str(error)
        except pickle.UnpicklingError as error:
            fault = refused_code(error)
        # A failure of the storage is no fault of the checkpoint, which may be intact.
        except StorageUnavailable as error:
            unavailable = str(error)
    reports: list[Any] = [None] * ranks
    dist.all_gather_object(reports, (node, folder, fault, unavailable))
    # Most strings in the reports are empty. max() returns a string that is not empty, if there is any.
    unavailable = max(message for _, _, _, message in reports)
    if unavailable:
        raise StorageUnavailable(unavailable)
    folder_here = max(path for other_node, path, _, _ in reports if other_node == node)
    return folder_here, max(message for _, _, message, _ in reports)


def _converted(source: Path, target: Path) -> Path:
    """Convert the checkpoint in `source` to DeepSpeed's universal form in `target`, and return `target`.

    Any number of ranks can load this form: it has a file for each parameter and for each of its optimizer moments.
    """
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(source / TAG),
        output_folder=str(target / TAG),
        # With more than one worker, DeepSpeed would fork this process, which is unsafe because it has threads.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    (target / TAG).mkdir(parents=True)
    # Hide the progress that DeepSpeed prints.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
    return target


def _on_first_rank(work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0. Return its result on all ranks, or raise its error on all ranks.

    Raises:
        TrainingStopped: `work` raised ValueError.
        OSError: `work` raised this error.
    """
    # The result, and the error.
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = work()
        except ValueError as error:
            answer[1] = TrainingStopped(str(error))
        except OSError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]

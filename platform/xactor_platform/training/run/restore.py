"""Restore the newest intact checkpoint on all ranks, also on another number of ranks."""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import torch.distributed as dist

from xactor_platform.storage.retries import StorageUnavailable
from xactor_platform.training.run.checkpoints import Checkpoints, Corrupt, Manifest
from xactor_platform.training.run.endings import TrainingStopped
from xactor_platform.training.run.snapshot import TAG

Result = TypeVar("Result")


@dataclass(frozen=True)
class Restored:
    """Describe a verified checkpoint on this node, as DeepSpeed loads it."""

    manifest: Manifest
    """The checkpoint's manifest."""
    folder: str
    """Folder on this node."""
    universal: bool
    """Another number of ranks wrote it, and it was converted to DeepSpeed's universal form."""


@contextmanager
def newest_checkpoint(checkpoints: Checkpoints, parameters: int) -> Iterator[Restored | None]:
    """Give the block the newest intact checkpoint, None for a new run. All ranks call it.

    The first rank of each node brings the checkpoint there and verifies it. A corrupt one is reported, and the one
    before is tried. Checkpoints that a crash left after the restored one are dropped, so that their files do not mix
    with new ones.

    Args:
        checkpoints: the run's.
        parameters: number of parameters of the model to train.

    Raises:
        TrainingStopped: every checkpoint is corrupt, or the newest is of another model or of a newer version.
    """
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    complete = _on_first_rank(lambda: checkpoints.complete())
    with contextlib.ExitStack() as stack:
        own = None
        if context.get_local_rank() == 0:
            own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xactor-restore-")))
        faults: list[str] = []
        restored = None
        for manifest in complete:
            if manifest.parameters != parameters:
                raise TrainingStopped(
                    f"checkpoint {checkpoints.uri(manifest.step)} is of a model of {manifest.parameters:,} parameters, "
                    f"this one has {parameters:,}"
                )
            folder, fault = _bring(checkpoints, manifest, own)
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
        # The other ranks of a node read in the first one's folder, which ends with this block.
        dist.barrier()


def _bring(checkpoints: Checkpoints, manifest: Manifest, own: Path | None) -> tuple[str, str]:
    """Bring a checkpoint to every node. Return its folder on this one, and its fault, empty if it is intact."""
    node, ranks = ray.train.get_context().get_node_rank(), dist.get_world_size()
    folder = fault = lost = ""
    if own is not None:
        target = own / manifest.folder
        try:
            checkpoints.fetch(manifest, target)
            if manifest.ranks != ranks:
                target = _converted(target, own / f"universal-{manifest.step:08d}")
            folder = str(target)
        except Corrupt as error:
            fault = str(error)
        # This is no fault of the checkpoint.
        except StorageUnavailable as error:
            lost = str(error)
    nodes: list[Any] = [None] * ranks
    dist.all_gather_object(nodes, (node, folder, fault, lost))
    if any(lost for *_, lost in nodes):
        raise StorageUnavailable(max(lost for *_, lost in nodes))
    here = max(path for number, path, *_ in nodes if number == node)
    return here, max(fault for _, _, fault, _ in nodes)


def _converted(source: Path, target: Path) -> Path:
    """Convert a checkpoint to DeepSpeed's universal form, which has a file for each parameter and moment."""
    from deepspeed.checkpoint import ds_to_universal

    options = argparse.Namespace(
        input_folder=str(source / TAG),
        output_folder=str(target / TAG),
        # More workers would be forked, in a process with threads.
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    (target / TAG).mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(options)
    return target


def _on_first_rank(work: Callable[[], Result]) -> Result:
    """Run `work` on rank 0, and return its result, or raise its error, on all ranks."""
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

"""Read and write shards as any tool for tar files would."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np


def read_shard(shard: Path) -> dict[str, dict]:
    """Return a shard's samples by key, with decoded members."""
    found: dict[str, dict] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            stream = tar.extractfile(member)
            assert stream is not None
            data = stream.read()
            if extension == "json":
                data = json.loads(data)
            elif extension.endswith("npy"):
                data = np.load(io.BytesIO(data), allow_pickle=False)
            found.setdefault(key, {})[extension] = data
    return found


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], form=tarfile.USTAR_FORMAT) -> None:
    """Write a tar with exactly these members, as another tool would make it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def members_of(key: str, sample: dict) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.{name}", json.dumps(value).encode() if isinstance(value, dict) else npy(value))
        for name, value in sample.items()
    ]

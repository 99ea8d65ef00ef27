"""Read shards as any tool for tar files would."""

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

"""What a run remembers of its corpus, to see when it goes on that it is still the same."""

import hashlib
from collections.abc import Mapping

import numpy as np

from xactor_platform.data.index import Index

NAMED = 5


def fingerprint(index: Index) -> dict[str, str]:
    """A digest of each shard by its name: of its size and of what the plan depends on, keys and lengths in order."""
    order = np.argsort(index.shard, kind="stable")
    edges = np.searchsorted(index.shard[order], np.arange(len(index.shard_names) + 1))
    digests = {}
    for number, name in enumerate(index.shard_names):
        rows = order[edges[number] : edges[number + 1]]
        samples = [f"{index.key[row]} {index.frames[row]}" for row in rows]
        whole = "\n".join([str(index.shard_sizes[number]), *samples])
        digests[name] = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return digests


def refuse_changed_corpus(before: Mapping[str, str], now: Mapping[str, str], uri: str) -> None:
    """ValueError naming the shards that are missing, new or others than they were."""
    told = {
        "missing": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in before.keys() & now.keys() if before[name] != now[name]),
        "new": sorted(now.keys() - before.keys()),
    }
    parts = [
        f"{len(names)} {what} ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})"
        for what, names in told.items()
        if names
    ]
    if parts:
        raise ValueError(
            f"{uri}: not the corpus that this run was begun on: shards {'; '.join(parts)}: "
            f"bring those back, or use another --run.name"
        )

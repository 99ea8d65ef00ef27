"""Detect that the corpus of a resumed run has changed."""

import hashlib
from collections.abc import Mapping

import numpy as np

from xactor_platform.data.index import Index

# Maximum number of missing, of changed and of new shards that the error names.
_MAX_NAMES = 5


def fingerprint(index: Index) -> dict[str, str]:
    """Return a digest of each shard, by the name of the shard.

    The digest covers the shard's size in bytes, and the keys, lengths and checksums of its samples in order; see
    `Index.digest` for what the checksums cover. If they change, a training step no longer gets the same data.
    """
    order = np.argsort(index.shard, kind="stable")
    # Rows of shard i are order[edges[i] : edges[i + 1]].
    edges = np.searchsorted(index.shard[order], np.arange(len(index.shard_names) + 1))
    digests = {}
    for number, name in enumerate(index.shard_names):
        rows = order[edges[number] : edges[number + 1]]
        samples = [f"{index.key[row]} {index.frames[row]} {index.digest[row]}" for row in rows]
        content = "\n".join([str(index.shard_sizes[number]), *samples])
        digests[name] = hashlib.sha256(content.encode()).hexdigest()[:16]
    return digests


def refuse_changed_corpus(before: Mapping[str, str], now: Mapping[str, str], uri: str) -> None:
    """Raise ValueError if shards are missing, changed or new.

    Args:
        before: the fingerprint when the run began.
        now: the fingerprint of the corpus as it is now.
        uri: path or URI of the corpus, for the message.
    """
    differences = {
        "missing": sorted(before.keys() - now.keys()),
        "changed": sorted(name for name in before.keys() & now.keys() if before[name] != now[name]),
        "new": sorted(now.keys() - before.keys()),
    }
    phrases = [
        f"{len(names)} {kind} ({', '.join(names[:_MAX_NAMES])}{', ...' if len(names) > _MAX_NAMES else ''})"
        for kind, names in differences.items()
        if names
    ]
    if phrases:
        raise ValueError(
            f"{uri}: differs from the corpus that this run began with: shards {'; '.join(phrases)}: "
            f"restore them, or use another --run.name"
        )

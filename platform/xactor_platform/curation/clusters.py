"""Cluster vectors by average linkage, without a matrix of all pairs in memory.

The similarity of two clusters is the mean cosine between their vectors. With vectors of length 1, it is the product of
the clusters' mean vectors. Labels, int64 [N], name the cluster of each of N vectors; clusters are numbered from 0 in
the order of their first vectors.
"""

from collections.abc import Iterator

import numpy as np

# Number of rows of the similarity matrix that are computed at a time.
_ROWS = 1024


def numbered(labels: np.ndarray) -> np.ndarray:
    """Return labels whose clusters are numbered in the order of their first vectors.

    Args:
        labels: any integers, [N].
    """
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def merge_similar(
    vectors: np.ndarray, labels: np.ndarray, min_similarity: float, fixed: np.ndarray | None = None
) -> np.ndarray:
    """Merge the two most similar clusters until no two are as similar as `min_similarity`. Return the new labels.

    A round merges all pairs that are each other's most similar clusters. The result is that of merging one pair at a
    time, because a merged cluster is never more similar to a third one than the nearer of its two parts was.

    Args:
        vectors: vectors of length 1, float32 [N, K].
        labels: clusters at the start.
        min_similarity: smallest similarity of two clusters that are merged.
        fixed: whether each cluster at the start is fixed, bool [C]. Two fixed clusters are never merged.
    """
    labels = numbered(labels)
    sums, counts = _sums(vectors, labels)
    is_fixed = np.zeros(len(sums), bool) if fixed is None else fixed.copy()
    # Numbers of the clusters into which each cluster at the start has gone, and of those that can still be merged.
    target = np.arange(len(sums))
    active = np.arange(len(sums))
    while len(active) > 1:
        means = (sums[active] / counts[active, None]).astype(np.float32)
        nearest, similarity = _nearest(means, is_fixed[active])
        near = similarity >= min_similarity
        rows = np.arange(len(active))
        pairs = np.flatnonzero(near & (nearest[nearest] == rows) & (rows < nearest))
        if not len(pairs):
            if not near.any():
                break
            # Rounding can make a circle of nearest clusters. Merge its most similar pair.
            pairs = np.array([similarity.argmax()])
        ends = np.sort(active[np.stack([pairs, nearest[pairs]])], axis=0)
        into, gone = ends
        sums[into] += sums[gone]
        counts[into] += counts[gone]
        is_fixed[into] |= is_fixed[gone]
        target[gone] = into
        target = target[target]
        # A cluster without a near one will never have one, see above.
        active = np.setdiff1d(active[near], gone)
    return numbered(target[labels])


def similarities(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the similarity of each vector to the others of its own cluster, and to the most similar other cluster.

    Args:
        vectors: vectors of length 1, float32 [N, K].
        labels: clusters.

    Returns:
        Two arrays, float64 [N]. A number is NaN if there is no other vector, or no other cluster.
    """
    sums, counts = _sums(vectors, labels)
    means = (sums / counts[:, None]).astype(np.float32)
    others = counts[labels] - 1
    own = (np.einsum("nk,nk->n", vectors, sums[labels]) - 1) / np.maximum(others, 1)
    other = np.full(len(vectors), np.nan)
    for start in range(0, len(vectors) if len(sums) > 1 else 0, _ROWS):
        rows = slice(start, start + _ROWS)
        block = vectors[rows] @ means.T
        block[np.arange(len(block)), labels[rows]] = -np.inf
        other[rows] = block.max(axis=1)
    return np.where(others > 0, own, np.nan), other


def count_pairs(vectors: np.ndarray, labels: np.ndarray, min_similarity: float) -> int:
    """Return the number of pairs of clusters that are as similar as `min_similarity`."""
    sums, counts = _sums(vectors, labels)
    means = (sums / counts[:, None]).astype(np.float32)
    pairs = 0
    for start, block in _blocks(means):
        later = np.arange(len(means)) > np.arange(start, start + len(block))[:, None]
        pairs += int((later & (block >= min_similarity)).sum())
    return pairs


def _sums(vectors: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sum and the number of each cluster's vectors, float64 [C, K] and int64 [C]."""
    counts = np.bincount(labels)
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    return np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0), counts


def _nearest(means: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the most similar other cluster of each cluster, and its similarity, [C] each.

    Args:
        means: mean vector of each cluster, float32 [C, K].
        fixed: whether each cluster is fixed, [C]. The similarity of two fixed clusters does not count.
    """
    nearest, similarity = np.zeros(len(means), np.int64), np.zeros(len(means), np.float32)
    for start, block in _blocks(means):
        rows = np.arange(start, start + len(block))
        block[rows - start, rows] = -np.inf
        if fixed[rows].any():
            block[np.ix_(fixed[rows], fixed)] = -np.inf
        nearest[rows] = block.argmax(axis=1)
        similarity[rows] = block[rows - start, nearest[rows]]
    return nearest, similarity


def _blocks(means: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield blocks of rows of the matrix of similarities, each with the number of its first row."""
    for start in range(0, len(means), _ROWS):
        yield start, means[start : start + _ROWS] @ means.T

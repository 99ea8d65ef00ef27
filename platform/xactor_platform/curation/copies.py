"""Find identical files, and clips that are copies of other clips: encoded again, resized or trimmed."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from xactor_platform.curation.fingerprint import shared_frames
from xactor_platform.curation.messages import Fate, Prints, Video, fate_of
from xactor_platform.curation.video_files import read_bytes

DUPLICATE = "duplicate"
"""Reason for not keeping a copy."""

# Number of files that are read concurrently.
_READERS = 16
# A word of the sound joins a clip to at most this many others with the same word, those that are preferred.
_MAX_OTHERS = 4
# Two clips are compared if they share a word at one distance for every so many frames of the shorter clip.
_FRAMES_PER_SHARED_WORD = 100
# More than the frames of any clip.
_MAX_SHIFT = 1 << 12


def identical_files(
    videos: Sequence[Video], order: Mapping[str, int]
) -> tuple[list[Video], list[tuple[Video, Video]]]:
    """Return the videos without repeated files, and each repeated one with the first video of the same content.

    Files of different sizes differ. Only others are read.

    Args:
        videos: all videos.
        order: place of each key in the plan. The first video in it is kept.
    """
    by_size: defaultdict[int, list[Video]] = defaultdict(list)
    for video in sorted(videos, key=lambda video: order[video.key]):
        by_size[video.size_bytes].append(video)
    # Size 0: an empty file, which is refused later, or a size that is not known.
    suspects = [video for size, same in by_size.items() if size and len(same) > 1 for video in same]
    with ThreadPoolExecutor(_READERS) as readers:
        digests = [*readers.map(_digest, suspects)]
    firsts: dict[tuple, Video] = {}
    repeated: dict[str, tuple[Video, Video]] = {}
    for video, digest in zip(suspects, digests, strict=True):
        if digest:
            # A dataset may select other segments of the same file.
            first = firsts.setdefault((digest, video.segments), video)
            if first is not video:
                repeated[video.key] = (video, first)
    return [video for video in videos if video.key not in repeated], [*repeated.values()]


def identical_fate(video: Video, first: Video) -> tuple[str, Fate]:
    """Return the key and the fate of a video whose file is identical to that of another one."""
    detail = f"the same file as {first.name}"
    return video.key, fate_of(video, None, "dropped", reason=DUPLICATE, detail=detail)


def _digest(video: Video) -> bytes | None:
    """Return a digest of a video's file, None if it cannot be read: the pipeline will tell why."""
    digest = hashlib.sha256()
    try:
        for block in read_bytes(video.uri):
            digest.update(block)
    except (OSError, ValueError):
        return None
    return digest.digest()


def find_copies(
    prints: Sequence[Prints], decided: int, max_copied: float
) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Find the copies among clips.

    Args:
        prints: prints of the clips. A clip is kept rather than a copy of it that comes later.
        decided: number of clips, the first ones, that an earlier run kept.
        max_copied: largest fraction of a clip's frames that kept clips may hold already. 1 compares nothing.

    Returns:
        The number of the clip of which a clip is a copy, by the copy's number; and the pairs of clips that show a part
        of the same recording.
    """
    original: dict[int, int] = {}
    linked: list[tuple[int, int]] = []
    if max_copied >= 1:
        return original, linked
    compared: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for first, second, shift in _alike([clip.words for clip in prints]):
        if second >= decided:
            compared[second].append((first, shift))
    for second in sorted(compared):
        held = np.zeros(len(prints[second].words), bool)
        # Number of shared frames and negative number of each kept clip with a part of this one.
        found: list[tuple[int, int]] = []
        for first, shift in compared[second]:
            shared = None if first in original else shared_frames(prints[first], prints[second], shift)
            if shared:
                held[slice(*shared)] = True
                found.append((shared[1] - shared[0], -first))
                linked.append((first, second))
        if held.mean() > max_copied:
            original[second] = -max(found)[1]
    return original, linked


def _alike(words: Sequence[np.ndarray]) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of clips whose sounds have words in common: the clips' numbers, the smaller one first, and the frames
    by which the second clip begins after the first one.

    Args:
        words: words of each clip's sound, see `sound_words`.
    """
    lengths = np.array([len(found) for found in words], np.int64)
    if not lengths.sum():
        return
    clips = np.repeat(np.arange(len(words)), lengths)
    places = np.concatenate([np.arange(length) for length in lengths])
    values = np.concatenate(words)
    loud = values != 0
    clips, places, values = clips[loud], places[loud], values[loud]
    # Sort by word, clip and place, and keep the first place of a word in a clip.
    order = np.lexsort((places, clips, values))
    clips, places, values = clips[order], places[order], values[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (clips[1:] != clips[:-1])
    clips, places, values = clips[new], places[new], values[new]
    # Where the first clip with the same word is.
    starts = np.searchsorted(values, values)
    # A pair of clips and a shift are packed into one number, which sorts faster than three.
    pairs = []
    for n in range(_MAX_OTHERS):
        later = np.flatnonzero(starts + n < np.arange(len(values)))
        earlier = starts[later] + n
        shifts = places[earlier] - places[later] + _MAX_SHIFT
        pairs.append((clips[earlier] * len(words) + clips[later]) * (2 * _MAX_SHIFT) + shifts)
    packed, counts = np.unique(np.concatenate(pairs), return_counts=True)
    pair, shift = np.divmod(packed, 2 * _MAX_SHIFT)
    first, second = np.divmod(pair, len(words))
    wanted = np.minimum(lengths[first], lengths[second]) // _FRAMES_PER_SHARED_WORD
    for row in np.flatnonzero(counts >= np.maximum(wanted, 1)):
        yield int(first[row]), int(second[row]), int(shift[row]) - _MAX_SHIFT

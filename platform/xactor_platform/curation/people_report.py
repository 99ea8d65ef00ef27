"""Describe the people of a run in lines of text: how many there are, how sure that is, and who is held out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from xactor_platform.curation.clusters import count_pairs, merge_similar, numbered
from xactor_platform.curation.people import KnownClip, Rules, faces_of

# Maximum number of names in a line.
_MAX_NAMES = 5


def people_lines(clips: Sequence[KnownClip], rules: Rules, weights: str | None) -> list[str]:
    """Return lines about the people of all kept clips and copies.

    Args:
        clips: the clips, with their decisions.
        rules: settings of the decisions.
        weights: name of the weights that embedded the faces, None without a model.
    """
    kept = [clip for clip in clips if not clip.copy_of]
    if not kept:
        return []
    count = Counter(clip.person for clip in kept)
    held_out = Counter(clip.person for clip in kept if clip.split == "test")
    numbers = sorted(count.values())
    told_by = "their speakers alone, because faces were not compared"
    if weights:
        told_by = f"their faces ({weights}) and speakers"
    lines = [
        f"{len(count)} people by {told_by}; clips of each: {numbers[0]} to {numbers[-1]}, median "
        f"{float(np.median(numbers)):g}; held out: {len(held_out)} people with {held_out.total()} clips"
    ]
    if rules.min_similarity is not None:
        lines.append(_certainty(kept, rules, rules.min_similarity))
    if joined := _joined_speakers(clips, rules):
        lines.append(f"speakers who are one person: {'; '.join(_some(joined))}")
    if mixed := _mixed_speakers(clips, rules):
        lines.append(f"speakers with the faces of several people: {', '.join(_some(mixed))}")
    if copies := sum(bool(clip.copy_of) for clip in clips):
        lines.append(f"{copies} clips dropped as copies of other clips")
    return lines


def _certainty(kept: Sequence[KnownClip], rules: Rules, min_similarity: float) -> str:
    """Return a line that tells how sure the division into people is."""
    own, other = (
        [value for clip in kept if (value := getattr(clip, name)) is not None]
        for name in ("own_similarity", "other_similarity")
    )
    means = [f"{np.mean(values):.3f}" if values else "unknown" for values in (own, other)]
    labels = numbered(np.unique([clip.person for clip in kept], return_inverse=True)[1])
    pairs = count_pairs(faces_of(kept), labels, rules.uncertain_similarity)
    return (
        f"similarity of a clip's face: {means[0]} to the same person, {means[1]} to the most similar other one (means "
        f"of {len(own)} and {len(other)} clips); one person from {min_similarity:g} on; uncertain, from "
        f"{rules.uncertain_similarity:g} on: {pairs} pairs of people"
    )


def _joined_speakers(clips: Sequence[KnownClip], rules: Rules) -> list[str]:
    """Return the speakers of each person who has several, with the smallest similarity of two of them."""
    people: defaultdict[str, defaultdict[str, list[KnownClip]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        people[clip.person][clip.speaker].append(clip)
    joined = []
    for speakers in people.values():
        if len(speakers) > 1:
            text = " = ".join(_some(speakers))
            if rules.min_similarity is not None:
                means = np.stack([faces_of(own).mean(axis=0) for own in speakers.values()])
                text += f" ({(means @ means.T)[~np.eye(len(means), dtype=bool)].min():.3f})"
            joined.append(text)
    return joined


def _mixed_speakers(clips: Sequence[KnownClip], rules: Rules) -> list[str]:
    """Return the speakers whose faces clearly differ, each with the number of faces."""
    if rules.min_similarity is None:
        return []
    by_speaker: defaultdict[str, list[KnownClip]] = defaultdict(list)
    for clip in clips:
        by_speaker[clip.speaker].append(clip)
    mixed = []
    for speaker, own in by_speaker.items():
        labels = merge_similar(faces_of(own), np.arange(len(own)), rules.uncertain_similarity)
        if labels.any():
            mixed.append(f"{speaker} ({labels.max() + 1})")
    return mixed


def _some(names: Iterable[str]) -> list[str]:
    """Return the first names, and how many there are more."""
    names = [*names]
    more = [f"and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return [*names[:_MAX_NAMES], *more]

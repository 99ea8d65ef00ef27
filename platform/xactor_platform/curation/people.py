"""Decide which clips show the same person, which are copies, and which people are held out.

The decisions need all clips, so they are made when all videos are examined, before the shards are written. They are
saved with the clips' prints in `people.parquet`: a later run keeps them, and compares its own clips with these.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xactor.rates import FPS
from xactor_platform.curation.clusters import merge_similar, numbered, similarities
from xactor_platform.curation.copies import find_copies
from xactor_platform.curation.curation_config import SHORT_S
from xactor_platform.curation.messages import PRINT_TYPES, Fate, Prints
from xactor_platform.storage.location import Location

PEOPLE = "people.parquet"
"""File of the decisions, in the output folder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownClip:
    """Hold a clip that passed the gates, and the decisions on it."""

    clip: str
    """Key of the clip."""
    video: str
    """Name of the video."""
    speaker: str
    """Name of the speaker."""
    frames: int
    """Number of frames."""
    crop_px: int
    """Side of the face's square in the video, in pixels."""
    prints: Prints
    """Prints of the clip."""
    person: str = ""
    """Name of the person: the speaker of the person's first clip, with a number if another person has this name."""
    split: str = ""
    """Split of the clip: `short`, `long` or `test`. Empty for a copy."""
    copy_of: str = ""
    """Which clip this one is a copy of, as the report says it. Empty if the clip is no copy."""
    own_similarity: float | None = None
    """See `Fate`."""
    other_similarity: float | None = None
    """See `Fate`."""

    def without_prints(self) -> "KnownClip":
        """Return the clip without its prints, which are large."""
        empty = {name: np.zeros(0, dtype) for name, dtype in PRINT_TYPES.items() if name != "face"}
        return replace(self, prints=Prints(**empty, face=None))


def known_clip(fate: Fate, prints: Prints) -> KnownClip:
    """Return a clip that passed the gates, without decisions.

    Args:
        fate: fate of the clip.
        prints: prints of the clip.
    """
    return KnownClip(
        clip=fate.clip,
        video=fate.video,
        speaker=fate.speaker,
        frames=len(prints.words),
        crop_px=fate.crop_px or 1,
        prints=prints,
    )


_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("clip", "video", "speaker", "person", "split", "copy_of")),
        *((name, pa.int64()) for name in ("frames", "crop_px")),
        *((name, pa.float64()) for name in ("own_similarity", "other_similarity")),
        *((name, pa.list_(pa.from_numpy_dtype(dtype))) for name, dtype in PRINT_TYPES.items()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Hold the settings that decide who is who."""

    min_similarity: float | None
    """Smallest similarity of one person's faces. None: faces are not compared."""
    speakers_are_listed: bool
    """Whether a list states the speakers. Otherwise a folder may hold several people, and faces decide."""
    max_copied: float
    """See `Gates`."""
    held_out: float
    """See `CurationConfig`."""
    seed: int
    """See `CurationConfig`."""

    @property
    def uncertain_similarity(self) -> float:
        """Return the similarity above which two faces may be one person's: a quarter of the way below the bound."""
        assert self.min_similarity is not None
        return self.min_similarity - (1 - self.min_similarity) / 4


def faces_of(clips: Sequence[KnownClip]) -> np.ndarray:
    """Return the embeddings of the clips' faces, float32 [N, K]."""
    faces = [clip.prints.face for clip in clips]
    assert all(face is not None for face in faces)
    return np.stack([face for face in faces if face is not None])


def decide(
    known: Sequence[KnownClip],
    new: Sequence[KnownClip],
    rules: Rules,
    same_speakers: Iterable[tuple[str, str]] = (),
) -> list[KnownClip]:
    """Return the new clips with the decisions on them.

    Args:
        known: clips on which earlier runs decided.
        new: clips without decisions. A clip is kept rather than a copy of it that comes later, unless the copy shows
            the face notably larger.
        rules: settings of the decisions.
        same_speakers: pairs of speakers of identical files.
    """
    clips = [*known, *new]
    if not new:
        return []
    # Among new clips, the larger face is preferred. Sides that differ by less than a fifth or so count as equal.
    by_size = sorted(range(len(known), len(clips)), key=lambda n: (-round(4 * np.log2(clips[n].crop_px)), n))
    kept_before = [n for n, clip in enumerate(known) if not clip.copy_of]
    order = [*kept_before, *by_size]
    copies, pairs = find_copies([clips[n].prints for n in order], len(kept_before), rules.max_copied)
    linked = [(order[first], order[second]) for first, second in pairs]
    original = {order[copy]: clips[order[first]] for copy, first in copies.items()}

    groups = _Groups(clips)
    for first, second in linked:
        groups.join(first, second)
    labels = _labels(clips, groups, rules, same_speakers)
    people = _names(clips, labels)
    own, other = _own_and_other(clips, labels, rules)
    decided = []
    for n in range(len(known), len(clips)):
        person, first = people[labels[n]], original.get(n)
        clip = replace(clips[n], person=person, own_similarity=own[n], other_similarity=other[n])
        if first is None:
            decided.append(replace(clip, split=split_of(clip.frames, person, rules)))
        else:
            decided.append(replace(clip, copy_of=f"a copy of {first.video}, clip {first.clip}"))
    return decided


def split_of(frames: int, person: str, rules: Rules) -> str:
    """Return `test` for all clips of a held-out person, otherwise `short` or `long` by the length (Paper 4.1).

    Args:
        frames: number of the clip's frames.
        person: the person.
        rules: the fraction of the people that are held out, and the seed of the choice.
    """
    # A pseudo-random number from 0 to 1 that depends only on the seed and the person, not on the other people.
    drawn = hashlib.sha256(f"{rules.seed}/{person}".encode()).digest()[:8]
    if int.from_bytes(drawn, "big") / 2**64 < rules.held_out:
        return "test"
    return "short" if frames / FPS < SHORT_S else "long"


class _Groups:
    """Join clips into groups, without joining two people of earlier runs.

    Args:
        clips: all clips. Clips with the same person are joined already.
    """

    def __init__(self, clips: Sequence[KnownClip]):
        self._parents = list(range(len(clips)))
        # Person of each group's first clip. Empty if no earlier run knows the group.
        self.person = [clip.person for clip in clips]
        firsts: dict[str, int] = {}
        for n, clip in enumerate(clips):
            if clip.person:
                self._parents[n] = firsts.setdefault(clip.person, n)

    def find(self, n: int) -> int:
        """Return the first clip of a clip's group."""
        while self._parents[n] != n:
            self._parents[n] = self._parents[self._parents[n]]
            n = self._parents[n]
        return n

    def join(self, a: int, b: int) -> None:
        """Join the groups of two clips, unless both have people of earlier runs."""
        a, b = sorted((self.find(a), self.find(b)))
        if a != b and not (self.person[a] and self.person[b]):
            self._parents[b] = a
            self.person[a] = self.person[a] or self.person[b]

    def labels(self) -> np.ndarray:
        """Return the number of each clip's group, int64 [N]."""
        return numbered(np.array([self.find(n) for n in range(len(self._parents))]))

    def fixed(self, rows: Sequence[int]) -> np.ndarray:
        """Return whether earlier runs know the groups of some clips, in the order of their first clips, bool [C]."""
        return np.array([bool(self.person[root]) for root in dict.fromkeys(map(self.find, rows))])


def _labels(
    clips: Sequence[KnownClip], groups: _Groups, rules: Rules, same_speakers: Iterable[tuple[str, str]]
) -> np.ndarray:
    """Return the number of each clip's person, int64 [N].

    Speakers that are given are not divided. A speaker that is only the name of a folder is: by faces, if these clearly
    differ. Then the people of all speakers are compared.
    """
    by_speaker: defaultdict[str, list[int]] = defaultdict(list)
    for n, clip in enumerate(clips):
        by_speaker[clip.speaker].append(n)
    faces = faces_of(clips) if rules.min_similarity is not None else None
    if faces is None or rules.speakers_are_listed:
        for rows in by_speaker.values():
            for n in rows[1:]:
                groups.join(rows[0], n)
        for a, b in same_speakers:
            if by_speaker[a] and by_speaker[b]:
                groups.join(by_speaker[a][0], by_speaker[b][0])
    if faces is None or rules.min_similarity is None:
        return groups.labels()
    if not rules.speakers_are_listed:
        for rows in by_speaker.values():
            _join_similar(groups, faces, rows, rules.uncertain_similarity)
    _join_similar(groups, faces, range(len(clips)), rules.min_similarity)
    return groups.labels()


def _join_similar(groups: _Groups, faces: np.ndarray, rows: Sequence[int], min_similarity: float) -> None:
    """Join the groups of some clips whose faces are similar.

    Args:
        groups: groups of all clips.
        faces: embeddings of all clips' faces, float32 [N, K].
        rows: numbers of the clips.
        min_similarity: smallest similarity of two groups that are joined.
    """
    roots = numbered(np.array([groups.find(n) for n in rows]))
    if not roots.any():
        return
    merged = merge_similar(faces[np.array(rows)], roots, min_similarity, groups.fixed(rows))
    firsts: dict[int, int] = {}
    for n, label in zip(rows, merged.tolist(), strict=True):
        groups.join(firsts.setdefault(label, n), n)


def _names(clips: Sequence[KnownClip], labels: np.ndarray) -> list[str]:
    """Return the name of each person: that of an earlier run, or the speaker of the first clip, if it is still free."""
    names = [""] * (int(labels.max()) + 1)
    for clip, label in zip(clips, labels.tolist(), strict=True):
        names[label] = names[label] or clip.person
    taken = {*names}
    speakers = {clip.speaker for clip in clips}
    for clip, label in zip(clips, labels.tolist(), strict=True):
        if not names[label]:
            name, number = clip.speaker, 1
            while name in taken or (number > 1 and name in speakers):
                number += 1
                name = f"{clip.speaker}-{number}"
            names[label] = name
            taken.add(name)
    return names


def _own_and_other(
    clips: Sequence[KnownClip], labels: np.ndarray, rules: Rules
) -> tuple[list[float | None], list[float | None]]:
    """Return each clip's similarity to its own person and to the most similar other one, see `Fate`."""
    if rules.min_similarity is None:
        return [None] * len(clips), [None] * len(clips)
    own, other = (
        [None if np.isnan(value) else round(float(value), 4) for value in values]
        for values in similarities(faces_of(clips), labels)
    )
    return own, other


def read_people(place: Location) -> list[KnownClip]:
    """Return the clips on which earlier runs decided, in the order of the decisions."""
    if not place.filesystem.get_file_info(f"{place.path}/{PEOPLE}").is_file:
        return []
    with place.open(PEOPLE) as file:
        table = pq.read_table(file)
    columns = {name: [*map(_array, table[name])] for name in PRINT_TYPES}
    rows = table.drop_columns([*columns]).to_pylist()
    return [
        KnownClip(**row, prints=Prints(**{name: column[n] for name, column in columns.items()}))
        for n, row in enumerate(rows)
    ]


def write_people(place: Location, clips: Iterable[KnownClip]) -> None:
    """Save the decisions atomically."""
    rows: list[dict[str, Any]] = [
        {**{name: value for name, value in vars(clip).items() if name != "prints"}, **vars(clip.prints)}
        for clip in clips
    ]
    with place.atomic_write(PEOPLE) as stream:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), stream)


def _array(cell: pa.ListScalar) -> Any:
    """Return the array in a cell, None if it is empty."""
    return cell.values.to_numpy() if cell.is_valid else None

"""Load the index of a folder of shards: read `index.parquet`, which lies next to the shards, or make it anew."""

import json
import logging
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from xactor.origin import AUDIO, LATENTS
from xactor_platform.data.index import BadSample, CorpusShape, Index, build_index
from xactor_platform.data.shard_names import is_shard, resembles_held_out, why_left_out
from xactor_platform.storage.location import Location
from xactor_platform.storage.retries import with_retries

INDEX_NAME = "index.parquet"
# Version 2 added the samples' digests and the shards' times, version 3 their origins and the checksums of members and
# of the index.
VERSION = 3
_METADATA, _CHECKSUM = b"xactor", b"xactor.crc32"

# Number of samples or files that a message names.
_MAX_NAMES = 5

logger = logging.getLogger(__name__)


def load_index(location: str, *, max_bad_fraction: float = 0.0, warn: bool = True) -> Index:
    """Return the index of a folder of shards. Build it, and store it in the folder, if it is missing or stale.

    A stored index is stale if the names, sizes or times of the shards have changed. If the folder cannot be written to,
    the index is built each time, with a warning in the log. Warnings also name what looks like shards but is left out,
    and shards that are trained on although their names resemble those of held-out shards.

    Args:
        location: URI or path of the folder.
        max_bad_fraction: maximum fraction of unusable samples, 0..1. They are left out and listed in `Index.bad`.
        warn: whether to warn. The ranks of a training do not, because their driver has.

    Raises:
        FileNotFoundError: the folder does not exist or holds no shard.
        ValueError: the fraction of unusable samples is larger than max_bad_fraction, all samples are unusable, or
            `index.parquet` is another tool's file.
    """
    if not 0 <= max_bad_fraction <= 1:
        raise ValueError(f"max_bad_fraction must be in 0..1, got {max_bad_fraction}")
    place = Location.parse(location)
    # Raises an error if the folder does not exist.
    files = with_retries(place.sizes, location)
    entries = sorted(with_retries(place.entries, location), key=lambda file: file.base_name)
    shards = {file.base_name: file for file in entries if file.is_file and is_shard(file.base_name)}
    if warn:
        _name_surprises(place, entries)
    if not shards:
        raise FileNotFoundError(f"{location}: no .tar among {len(files)} files")
    stored = read_index(place) if INDEX_NAME in files else None
    if stored is not None and stored.stamps == _stamps(shards):
        index = stored.index
    else:
        index = _rebuilt(place, shards, stored, warn)
        try:
            with_retries(partial(write_index, index, shards), f"{location}/{INDEX_NAME}")
        except OSError as error:
            if warn:
                logger.warning("%s cannot be written to (%s): the index is not stored", location, error)
    _check_bad(index, max_bad_fraction, warn)
    return index


def _rebuilt(
    place: Location, shards: Mapping[str, fs.FileInfo], stored: "StoredIndex | None", warn: bool
) -> Index:
    """Build the index. A stale one tells which samples truncated shards have lost, and which are gone otherwise."""
    sizes = {name: file.size for name, file in shards.items()}
    if stored is None:
        return build_index(place, sizes)
    logger.info("Rebuilding %s/%s: the shards have changed", place.uri, INDEX_NAME)
    known = stored.known_keys()
    index = build_index(place, sizes, known)
    present = {*index.key, *(sample.key for sample in index.bad)}
    gone = {shard: sum(key not in present for key in keys) for shard, keys in known.items()}
    if warn and any(gone.values()):
        named = [f"{shard} ({gone[shard]} of {len(known[shard])} samples)" for shard in gone if gone[shard]]
        logger.warning("%s: gone since the shards were indexed: %s", place.uri, _named(named))
    return index


def _name_surprises(place: Location, entries: Iterable[fs.FileInfo]) -> None:
    """Warn about files that users may take for shards, and about shards that they may take for held-out ones."""
    left_out = [f"{file.base_name} ({reason})" for file in entries if (reason := why_left_out(file))]
    for file in entries:
        if file.type == fs.FileType.Directory and not file.base_name.startswith("."):
            # A folder that cannot be listed, such as lost+found, does not matter.
            with suppress(OSError):
                inside = sum(is_shard(inner.base_name) for inner in place.entries(file.base_name))
                if inside:
                    left_out.append(f"{file.base_name}/ (a folder with {inside} shards)")
    if place.is_local:
        # pyarrow does not list links to nothing.
        links = [path for path in Path(place.path).iterdir() if path.is_symlink()]
        left_out += [f"{path.name} (a link to nothing)" for path in links if not os.path.exists(path)]
    if left_out:
        logger.warning("%s: left out: %s", place.uri, _named(left_out))
    alike = [file.base_name for file in entries if is_shard(file.base_name)]
    alike = [name for name in alike if resembles_held_out(name)]
    if alike:
        logger.warning(
            "%s: trained on, not held out: %s. To hold shards out, begin their names with test- or val-",
            place.uri,
            _named(alike),
        )


def _named(names: list[str]) -> str:
    """Join the first names for a message."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def write_index(index: Index, shards: Mapping[str, fs.FileInfo]) -> None:
    """Store an index in its folder, atomically.

    Args:
        index: the index.
        shards: the shards from which it was made, by name.
    """
    columns: dict[str, Any] = {
        "key": pa.array(index.key, pa.string()),
        "shard": pa.array(index.shard),
        "frames": pa.array(index.frames),
        "speaker": pa.array(index.speaker, pa.string()),
        "sync_confidence": pa.array(index.sync_confidence),
        LATENTS: pa.array(index.latent_origin, pa.string()),
        AUDIO: pa.array(index.audio_origin, pa.string()),
        "digest": pa.array(index.digest),
    }
    for group in ("offset", "length", "header"):
        columns |= {f"{member}:{group}": pa.array(values) for member, values in getattr(index, group).items()}
    about = {
        "version": VERSION,
        "shards": _stamps(shards),
        "shape": vars(index.shape) if index.shape else None,
        "bad": [[b.key, b.shard, b.reason] for b in index.bad],
    }
    columns |= {f"{member}:crc": pa.array(values, pa.binary()) for member, values in index.crc.items()}
    table, text = pa.table(columns), json.dumps(about).encode()
    table = table.replace_schema_metadata({_METADATA: text, _CHECKSUM: _checksum(table, text)})
    with index.location.atomic_write(INDEX_NAME) as stream:
        pq.write_table(table, stream)


@dataclass(frozen=True)
class StoredIndex:
    """Hold the content of an `index.parquet`."""

    index: Index
    """The index."""
    stamps: dict[str, list[int | None]]
    """Size and time of each shard when it was indexed."""

    def known_keys(self) -> dict[str, list[str]]:
        """Return the keys of each shard's samples by the shard's name, those of unusable samples too."""
        keys: dict[str, list[str]] = {name: [] for name in self.index.shard_names}
        for shard, key in zip(self.index.shard, self.index.key, strict=True):
            keys[self.index.shard_names[shard]].append(key)
        for sample in self.index.bad:
            if sample.key:
                keys[sample.shard].append(sample.key)
        return keys


def read_index(location: Location) -> StoredIndex | None:
    """Return the stored index of a folder of shards. Return None if it is damaged or of an earlier version.

    Raises:
        ValueError: the file is not an index of this project, so it must not be replaced.
    """
    name = f"{location.uri}/{INDEX_NAME}"

    def read() -> bytes:
        with location.open(INDEX_NAME) as file:
            return file.read()

    data = with_retries(read, name)
    try:
        table = pq.read_table(pa.BufferReader(data))
        metadata = table.schema.metadata or {}
        text = metadata.get(_METADATA)
        intact = text is not None and metadata.get(_CHECKSUM) == _checksum(table, text)
    # OSError is how pyarrow reports a damaged page. The storage is not to blame.
    except (pa.ArrowException, OSError, ValueError) as error:
        logger.warning("Rebuilding %s: it is damaged (%s)", name, " ".join(str(error).split()))
        return None
    if text is None:
        raise ValueError(f"{name}: not an index of shards but another tool's table: rename or move it")
    if not intact:
        logger.warning("Rebuilding %s: it is damaged, or of an earlier version", name)
        return None
    about = json.loads(text)
    if about["version"] != VERSION:
        logger.info("Rebuilding %s: it is of version %s, not %d", name, about["version"], VERSION)
        return None
    return StoredIndex(_index_of(location, table, about), about["shards"])


def _index_of(location: Location, table: pa.Table, about: dict[str, Any]) -> Index:
    """Return the index that a table and its description hold."""
    groups: dict[str, dict[str, np.ndarray]] = {"offset": {}, "length": {}, "header": {}, "crc": {}}
    columns: dict[str, Any] = {}
    for column in table.column_names:
        values = table[column].to_numpy()
        member, colon, group = column.rpartition(":")
        if colon:
            groups[group][member] = values
        else:
            columns[column] = values
    return Index(
        location=location,
        shard_names=tuple(about["shards"]),
        shard_sizes=tuple(size for size, _ in about["shards"].values()),
        shape=CorpusShape(**about["shape"]) if about["shape"] else None,
        bad=tuple(BadSample(*fields) for fields in about["bad"]),
        **groups,
        **columns,
    )


def _checksum(table: pa.Table, about: bytes) -> bytes:
    """Return a checksum of an index's columns and of its description, in hex."""
    table, sink = table.replace_schema_metadata(None), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return b"%08x" % zlib.crc32(sink.getvalue(), zlib.crc32(about))


def delete_index(location: Location) -> None:
    """Delete the stored index of shards that are about to be rewritten.

    Raises:
        ValueError: the file is another tool's table, which is left alone.
    """
    # Reading refuses another tool's table.
    read_index(location)
    location.delete(INDEX_NAME)


def _check_bad(index: Index, max_bad_fraction: float, warn: bool) -> None:
    """Log the bad samples if `warn` is true, or raise ValueError if there are too many."""
    if not index.bad:
        return
    samples = len(index.bad) + index.samples
    fraction = len(index.bad) / samples
    first = "; ".join(map(str, index.bad[:_MAX_NAMES]))
    more = len(index.bad) - _MAX_NAMES
    named = first + (f"; and {more} more" if more > 0 else "")
    if fraction > max_bad_fraction or not index.samples:
        raise ValueError(
            f"{index.location.uri}: {len(index.bad)} of {samples} samples are unusable, a "
            f"fraction of {fraction:.3g}; at most {max_bad_fraction:g} (max_bad_fraction) may be: {named}"
        )
    if warn:
        logger.warning("%s: leaving out %d unusable samples: %s", index.location.uri, len(index.bad), named)


def _stamps(shards: Mapping[str, fs.FileInfo]) -> dict[str, list[int | None]]:
    """Return size and time of the last change, in nanoseconds, of each shard."""
    return {name: [file.size, file.mtime_ns] for name, file in shards.items()}

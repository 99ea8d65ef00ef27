"""Write shards, which are WebDataset tars. A shard appears in its folder only when it is complete."""

import io
import json
import re
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from typing import Any, Self

import numpy as np
from webdataset.writer import TarWriter

from xactor.rates import FPS
from xactor_platform.data.checksums import with_checksums
from xactor_platform.data.index_file import INDEX_NAME, delete_index
from xactor_platform.storage.location import Location


class Shard:
    """Write one tar, which appears at the end of the `with` block if it has any samples and the block did not raise.

    Args:
        location: folder of the shard.
        name: name of the tar, such as `train-000003.tar`. An earlier file of that name is replaced at the end.
    """

    def __init__(self, location: Location, name: str):
        self.samples = self.bytes = 0
        self._location, self._name = location, name
        self._stack = ExitStack()
        self._tar: TarWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        if self._tar is not None:
            # An error on closing must not replace the block's own error.
            suppressed = suppress(OSError) if exc_type else nullcontext()
            # Close the tar here. Otherwise it would be closed when it is garbage-collected, and write to a stream that
            # is already closed.
            with suppressed:
                self._tar.close()
        self._stack.__exit__(exc_type, exc, traceback)

    def write(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add one sample, whose members `encode_members` has encoded.

        Args:
            key: name of the sample in the tar.
            members: content of each file of the sample, by extension.
        """
        if self._tar is None:
            stream = self._stack.enter_context(self._location.atomic_write(self._name))
            self._tar = TarWriter(stream, encoder=False, mtime=0)
        self._tar.write({"__key__": key, **members})
        self.samples += 1
        self.bytes += sum(map(len, members.values()))


class ShardWriter:
    """Write samples into shards `<split>-%06d.tar` at a location, within a `with` block.

    Two runs that write the same samples write the same bytes. A shard appears when it is full or when the block ends.
    After an exception the incomplete shard does not appear.

    Args:
        location: URI or path of the folder, created if it is missing.
        split: the beginning of the shards' names. Shards of the splits `test` and `val` are held out from training.
        samples_per_shard: number of samples after which a shard is full.
        bytes_per_shard: number of bytes of members after which a shard is full, even if it has fewer samples.
        overwrite: delete the split's earlier shards at the start. If it is False, earlier shards raise FileExistsError,
            because a run that writes fewer shards would leave some of them next to its own.
    """

    def __init__(
        self,
        location: str,
        split: str,
        *,
        samples_per_shard: int = 256,
        bytes_per_shard: int = 1 << 30,
        overwrite: bool = False,
    ):
        for name, value in (("samples_per_shard", samples_per_shard), ("bytes_per_shard", bytes_per_shard)):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", split):
            raise ValueError(f"split must be letters, digits, '_' and '-', got {split!r}")
        self.location = Location.parse(location)
        self.split = split
        self.samples_per_shard = samples_per_shard
        self.bytes_per_shard = bytes_per_shard
        self.overwrite = overwrite
        self.shards = 0
        """Number of finished shards."""
        self._keys: set[str] = set()
        self._open_shard: Shard | None = None

    def __enter__(self) -> "ShardWriter":
        self.location.filesystem.create_dir(self.location.path, recursive=True)
        pattern = re.compile(re.escape(self.split) + r"-\d{6}\.tar")
        existing_files = self.location.sizes()
        earlier = [name for name in existing_files if pattern.fullmatch(name)]
        if earlier and not self.overwrite:
            shards = f"{len(earlier)} shards of {self.split!r}, the first {earlier[0]}"
            raise FileExistsError(f"{self.location.uri} already holds {shards}")
        for name in earlier:
            self.location.delete(name)
        # The index must be deleted too: a store's times may be too coarse to tell new shards of the same size.
        if INDEX_NAME in existing_files:
            delete_index(self.location)
        return self

    def __exit__(self, exc_type, exc, traceback) -> None:
        if self._open_shard is None:
            return
        if exc_type is None:
            self._end_shard()
        else:
            shard, self._open_shard = self._open_shard, None
            shard.__exit__(exc_type, exc, traceback)

    def write(self, key: str, members: Mapping[str, np.ndarray | Mapping[str, Any] | bytes]) -> None:
        """Add one sample.

        Args:
            key: unique in this writer, not empty, without slashes and dots. In a tar's names a dot ends the key, and a
                slash separates folders.
            members: `{"motion.npy": [T, D], "audio.npy": [T, L, F], "json": {...}}` or
                `{"mp4": bytes, "json": {...}}`. The json has `frames` = T and `fps` = 25.

        Raises:
            ValueError: the key was already written, or no reader would accept the key or the sample.
        """
        if key in self._keys:
            raise ValueError(f"key {key!r} was already written")
        encoded = encode_members(key, members)
        if self._open_shard is None:
            self._open_shard = Shard(self.location, f"{self.split}-{self.shards:06d}.tar")
        self._open_shard.write(key, encoded)
        self._keys.add(key)
        shard = self._open_shard
        if shard.samples >= self.samples_per_shard or shard.bytes >= self.bytes_per_shard:
            self._end_shard()

    def _end_shard(self) -> None:
        shard, self._open_shard = self._open_shard, None
        assert shard is not None
        shard.__exit__(None, None, None)
        self.shards += 1


def encode_members(
    key: str, members: Mapping[str, np.ndarray | Mapping[str, Any] | bytes]
) -> dict[str, bytes]:
    """Encode a sample's members as a shard stores them, with their checksums in the json.

    Raises:
        ValueError: see `ShardWriter.write`.
    """
    if not key or "." in key or "/" in key:
        raise ValueError(f"a key must not be empty nor hold '.' or '/', got {key!r}")
    check_members(key, members)
    meta = members["json"]
    assert isinstance(meta, Mapping)
    encoded = {extension: _encode(value) for extension, value in members.items()}
    others = {extension: data for extension, data in encoded.items() if extension != "json"}
    return encoded | {"json": _encode(with_checksums(meta, others))}


def check_members(key: str, members: Mapping[str, Any]) -> None:
    """Raise ValueError if a sample's members are missing, have a wrong shape or type, or contradict each other."""
    if "json" not in members:
        raise ValueError(f"{key}: a sample needs its 'json', got {sorted(members)}")
    meta = members["json"]
    if not isinstance(meta, Mapping):
        raise ValueError(f"{key}: json must be a mapping, got {type(meta).__name__}")
    frames, fps = meta.get("frames"), meta.get("fps")
    if fps != FPS:
        raise ValueError(f"{key}: json fps must be {FPS}, got {fps}")
    if not isinstance(frames, int) or frames < 1:
        raise ValueError(f"{key}: json frames must be a whole number >= 1, got {frames}")
    if "mp4" not in members and not {"motion.npy", "audio.npy"} <= set(members):
        raise ValueError(f"{key}: needs 'motion.npy' and 'audio.npy', or 'mp4', got {sorted(members)}")
    for name, axes in (("motion.npy", 2), ("audio.npy", 3)):
        if name not in members:
            continue
        array = members[name]
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float16, np.float32):
            kind = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"{key}: {name} must be float16 or float32, got {kind}")
        if array.ndim != axes:
            raise ValueError(f"{key}: {name} must have {axes} axes, got shape {list(array.shape)}")
        if len(array) != frames:
            raise ValueError(f"{key}: {name} has {len(array)} frames, its json says {frames}")
        if not np.isfinite(array).all():
            raise ValueError(f"{key}: {name} holds NaN or infinity")


def _encode(value: np.ndarray | Mapping[str, Any] | bytes) -> bytes:
    if isinstance(value, np.ndarray):
        out = io.BytesIO()
        np.save(out, np.ascontiguousarray(value), allow_pickle=False)
        return out.getvalue()
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True).encode()
    if isinstance(value, bytes):
        return value
    raise ValueError(f"a member must be an array, a mapping or bytes, got {type(value).__name__}")

"""Tell which files of a folder are shards, which shards are held out, and which files look like shards but are not."""

import re

from pyarrow import fs

# Words by which people name the shards that must not be trained on.
_WORDS = "(?:test|val|valid|validation|dev|eval|evaluation|held[-_]?out)"
_HELD_OUT = re.compile(rf"{_WORDS}(?![a-z])", re.IGNORECASE)
_INSIDE = re.compile(rf"(?<![a-z]){_WORDS}(?![a-z])", re.IGNORECASE)
_COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2|txz|zip)$", re.IGNORECASE)


def is_shard(name: str) -> bool:
    """Return whether a file is a shard: a tar, but not one of the files `._*` that macOS adds to its copies."""
    return name.lower().endswith(".tar") and not name.startswith("._")


def is_held_out(shard: str) -> bool:
    """Return whether a shard is held out: its name begins with test, val, valid, validation, dev, eval or held-out.

    No letter may follow the word: `test-000000.tar` and `val_0.tar` are held out, and `testimony.tar` is not.
    """
    return bool(_HELD_OUT.match(shard))


def resembles_held_out(shard: str) -> bool:
    """Return whether the name of a training shard has such a word inside, as `corpus-val-0.tar` has."""
    return not is_held_out(shard) and bool(_INSIDE.search(shard))


def why_left_out(file: fs.FileInfo) -> str:
    """Return why something that looks like a shard is none. Return an empty string for everything else."""
    name = file.base_name
    if file.is_file:
        if _COMPRESSED.search(name):
            return "compressed, which cannot be read from the middle: unpack it to a .tar"
        return "a copy's metadata by macOS" if name.lower().endswith(".tar") and not is_shard(name) else ""
    return "a folder" if is_shard(name) else ""

"""Detect changed bytes of a sample by checksums in its json.

The field `crc32` of a sample's json holds for each member the CRC-32 of every 64 KiB in hex, one after another, and
for the json itself that of its other fields. Shards of other tools lack the field, and their samples are not checked.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

FIELD = "crc32"
BLOCK_BYTES = 64 << 10
"""Bytes that one checksum covers. A part of a member can be checked without its other blocks."""
_CRC_BYTES = 4


def checksums(data: Any) -> bytes:
    """Return the checksums of the blocks of bytes-like data, 4 bytes each."""
    view = memoryview(data)
    blocks = (view[begin : begin + BLOCK_BYTES] for begin in range(0, len(view), BLOCK_BYTES))
    return b"".join(zlib.crc32(block).to_bytes(_CRC_BYTES, "big") for block in blocks)


def blocks_around(begin: int, end: int, length: int) -> tuple[int, int]:
    """Return the first byte and the end of the blocks that cover bytes `begin` to `end` of a member of some length."""
    return begin // BLOCK_BYTES * BLOCK_BYTES, min(-(-end // BLOCK_BYTES) * BLOCK_BYTES, length)


def differs(data: Any, crc: bytes, begin: int = 0) -> bool:
    """Return whether bytes differ from their checksums.

    Args:
        data: bytes-like data, which begins and ends with a block or with the member.
        crc: checksums of all blocks of the member; empty if they are not known.
        begin: position of the data in the member.
    """
    first = begin // BLOCK_BYTES * _CRC_BYTES
    expected = crc[first : first + -(-len(memoryview(data)) // BLOCK_BYTES) * _CRC_BYTES]
    return bool(crc) and checksums(data) != expected


def with_checksums(meta: Mapping[str, Any], members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a sample's json with the checksums of its members and of the json itself."""
    found = {name: checksums(data).hex() for name, data in members.items()}
    return {**meta, FIELD: {**found, "json": _of_json(meta)}}


def read_checksums(meta: dict[str, Any]) -> dict[str, bytes]:
    """Return the checksums in a sample's json by member; none if another tool wrote it.

    Raises:
        ValueError: the json differs from its own checksum, or a checksum is not hex.
    """
    found = meta.get(FIELD)
    if not isinstance(found, dict):
        return {}
    remedy = f"remove its {FIELD} to accept the change"
    if "json" in found and found["json"] != _of_json({k: v for k, v in meta.items() if k != FIELD}):
        raise ValueError(f"differs from its checksum: {remedy}")
    try:
        return {name: bytes.fromhex(text) for name, text in found.items() if name != "json"}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{FIELD} is not hex: {remedy}") from error


def _of_json(meta: Mapping[str, Any]) -> str:
    # A first pass through JSON turns keys that are numbers into text, by which they are sorted in the second pass.
    fields = json.loads(json.dumps(meta))
    return checksums(json.dumps(fields, sort_keys=True).encode()).hex()

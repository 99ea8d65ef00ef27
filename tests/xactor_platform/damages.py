"""Damage files at random, as disks, copies, cut downloads and people do. A seed repeats a damage."""

import io
import json
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Values that take the place of a field of a JSON document.
_STRANGE = [None, True, -1, 0, 3.5, 10**30, "", "x", "../x", [], {}, [[1]], {"a": 1}, "\ud800", 1e308]
# Numbers that take the place of a field of a binary header.
_NUMBERS = [0, 1, 2, 7, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
# Boxes of an mp4 that hold boxes.
_PARENTS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf")


def flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        changed[random.randrange(len(data))] ^= random.randrange(1, 256)
    return bytes(changed)


def cut(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data))]


def extend(data: bytes, random: Random) -> bytes:
    return data + random.randbytes(random.choice((1, 100, 512, 10_240, 100_000)))


def zero(data: bytes, random: Random) -> bytes:
    begin, end = _range(data, random)
    return data[:begin] + bytes(end - begin) + data[end:]


def duplicate(data: bytes, random: Random) -> bytes:
    """Insert a range twice, or copy it over another place of the file."""
    begin, end = _range(data, random)
    at = random.randrange(len(data))
    rest = data[at + end - begin :] if random.random() < 0.5 else data[at:]
    return data[:at] + data[begin:end] + rest


def _range(data: bytes, random: Random) -> tuple[int, int]:
    begin = random.randrange(len(data))
    length = random.choice((1, 16, 512, 4096, len(data)))
    return begin, min(begin + random.randint(1, length), len(data))


CONTENT: list[Callable[[bytes, Random], bytes]] = [flip, flip, flip, cut, cut, extend, zero, duplicate]
"""Damages to a file's content."""


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


FILES = [delete, empty, become_folder, become_dangling_link]
"""Damages to a file as a whole."""


def json_field(data: bytes, random: Random) -> bytes:
    """Change or remove one field of a JSON document, or of one line of a JSONL file."""
    text = data.decode()
    lines = text.splitlines() if "\n{" in text and text.count("\n{") > 1 else [text]
    number = random.randrange(len(lines))
    lines[number] = json.dumps(changed_field(json.loads(lines[number]), random))
    return "\n".join(lines).encode() + b"\n"


def changed_field(document: Any, random: Random) -> Any:
    """Return a JSON document with one field at any depth changed or removed, or with another document in its place."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            if isinstance(value[key], (dict, list)):
                collect(value[key])

    if not isinstance(document, (dict, list)) or random.random() < 0.05:
        return random.choice(_STRANGE)
    collect(document)
    if places:
        holder, key = random.choice(places)
        if random.random() < 0.25:
            del holder[key]
        else:
            holder[key] = random.choice(_STRANGE)
    return document


def parquet_footer(data: bytes, random: Random) -> bytes:
    """Change a field of the description in a parquet file's footer, or bytes of the footer."""
    if random.random() < 0.5:
        length = int.from_bytes(data[-8:-4], "little")
        begin = len(data) - 8 - length
        return data[:begin] + flip(data[begin:], random)
    table = pq.read_table(pa.BufferReader(data))
    about = changed_field(json.loads(table.schema.metadata[b"xactor"]), random)
    table = table.replace_schema_metadata({**table.schema.metadata, b"xactor": json.dumps(about)})
    out = pa.BufferOutputStream()
    pq.write_table(table, out)
    return out.getvalue().to_pybytes()


def tar_header(data: bytes, random: Random) -> bytes:
    """Change one field of a member's header in a tar. Half of the changed headers have a valid checksum."""
    changed = bytearray(data)
    at = random.choice(_tar_members(data)).offset
    first, last = random.choice(
        [(0, 100), (100, 108), (124, 136), (136, 148), (148, 156), (156, 157), (257, 265)]
    )
    if first == 156:
        changed[at + first] = random.choice(b"0123456789LKxgSDM\0")
    elif first == 124 and random.random() < 0.5:
        changed[at + 124 : at + 136] = b"%011o\0" % random.choice((0, 1, 511, 513, 5000, 8**10))
    else:
        changed[at + random.randrange(first, last)] = random.choice(b"\0\xff 019ax./")
    if random.random() < 0.5 and first != 148:
        block = bytes(changed[at : at + 512])
        total = sum(block[:148]) + 8 * 32 + sum(block[156:])
        changed[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(changed)


def tar_json(data: bytes, random: Random) -> bytes:
    """Change one field of a sample's json in a tar. The text keeps its length: it is padded or cut."""
    member = random.choice([m for m in _tar_members(data) if m.name.endswith(".json")])
    text = data[member.offset_data : member.offset_data + member.size]
    new = json.dumps(changed_field(json.loads(text), random)).encode()
    new = new.ljust(member.size)[: member.size]
    return data[: member.offset_data] + new + data[member.offset_data + member.size :]


def npy_header(data: bytes, random: Random) -> bytes:
    """Change bytes of the header of an array in a tar."""
    members = [m for m in _tar_members(data) if m.name.endswith(".npy")]
    if not members:
        return flip(data, random)
    at = random.choice(members).offset_data
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 3))):
        changed[at + random.randrange(128)] = random.choice(b"0123456789<>'(){},fiTF\0\xff")
    return bytes(changed)


def _tar_members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def safetensors_header(data: bytes, random: Random) -> bytes:
    """Change the length of a safetensors file's header, or one field of the header."""
    length = int.from_bytes(data[:8], "little")
    if random.random() < 0.3:
        return struct.pack("<Q", random.choice([*_NUMBERS, length + 8, 2**63])) + data[8:]
    header = json.loads(data[8 : 8 + length])
    # Only some of the entries, because the header of a model has hundreds.
    entry = random.choice(sorted(header))
    header[entry] = changed_field(header[entry], random)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def mp4_box(data: bytes, random: Random) -> bytes:
    """Change the size, the type or a number of one box of an mp4, at any depth."""
    boxes: list[tuple[int, int]] = []

    def collect(at: int, end: int) -> None:
        while at + 8 <= end:
            size = int.from_bytes(data[at : at + 4], "big")
            if size < 8:
                return
            boxes.append((at, size))
            if data[at + 4 : at + 8] in _PARENTS:
                collect(at + 8, min(at + size, end))
            at += size

    collect(0, len(data))
    at, size = random.choice(boxes)
    changed = bytearray(data)
    what = random.random()
    if what < 0.2:
        changed[at : at + 4] = struct.pack(">I", random.choice([*_NUMBERS, size - 1, size + 8]))
    elif what < 0.4:
        changed[at + 4 : at + 8] = random.choice((b"free", b"moov", b"trak", b"stts", b"mdat", b"uuid"))
    else:
        place = at + 8 + 4 * random.randrange(max(1, min(size - 8, 200) // 4))
        changed[place : place + 4] = struct.pack(">I", random.choice(_NUMBERS))
    return bytes(changed[: len(data)])


def wav_header(data: bytes, random: Random) -> bytes:
    """Change one field of the 44 bytes with which a wav file begins."""
    first, last = random.choice(
        [
            (0, 4),
            (4, 8),
            (8, 12),
            (16, 20),
            (20, 22),
            (22, 24),
            (24, 28),
            (28, 32),
            (32, 34),
            (34, 36),
            (40, 44),
        ]
    )
    number = random.choice(_NUMBERS) & ((1 << 8 * (last - first)) - 1)
    return data[:first] + number.to_bytes(last - first, "little") + data[last:]


def png_chunk(data: bytes, random: Random) -> bytes:
    """Change, remove or repeat a chunk of a PNG. The checksums fit."""
    chunks, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = random.randrange(len(chunks))
    kind, body = chunks[number]
    what = random.randrange(4)
    if what == 0:
        del chunks[number]
    elif what == 1:
        chunks.insert(number, chunks[number])
    elif body:
        place = random.randrange(len(body))
        new = bytes([random.choice((0, 1, 255, body[place] ^ 16))])
        chunks[number] = kind, body[:place] + new + body[place + 1 :]
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def jpeg_segment(data: bytes, random: Random) -> bytes:
    """Change, remove or repeat a segment of a JPEG before its pixels."""
    segments, at = [], 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append(data[at : at + 2 + length])
        at += 2 + length
    number = random.randrange(len(segments))
    what = random.randrange(4)
    if what == 0:
        del segments[number]
    elif what == 1:
        segments.insert(number, segments[number])
    else:
        place = random.randrange(2, len(segments[number]))
        new = bytes([random.choice(_NUMBERS[:6])])
        segments[number] = segments[number][:place] + new + segments[number][place + 1 :]
    return data[:2] + b"".join(segments) + data[at:]


STRUCTURES: dict[str, list[Callable[[bytes, Random], bytes]]] = {
    ".json": [json_field],
    ".jsonl": [json_field],
    ".parquet": [parquet_footer],
    ".tar": [tar_header, tar_header, tar_json, npy_header],
    ".safetensors": [safetensors_header],
    ".mp4": [mp4_box],
    ".wav": [wav_header],
    ".png": [png_chunk],
    ".jpg": [jpeg_segment],
}
"""Damages to the structure of files, by suffix."""


def damage(folder: Path, files: list[str], random: Random) -> tuple[str, list[str]]:
    """Damage one of the files, or swap two of them. Return a description and the names of the damaged files.

    Args:
        folder: the folder of the files.
        files: names of the files that may be damaged, relative to the folder.
        random: decides on everything.
    """
    name = random.choice(files)
    path = folder / name
    before = path.stat()
    what = random.random()
    others = [other for other in files if other != name and Path(other).suffix == path.suffix]
    if what < 0.06 and others:
        other = random.choice(others)
        stamp = (folder / other).stat()
        path.rename(folder / "swapped")
        (folder / other).rename(path)
        (folder / "swapped").rename(folder / other)
        if random.random() < 0.5:
            os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
            os.utime(folder / other, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))
        return f"swap with {other}", [name, other]
    if what < 0.16:
        change = random.choice(FILES)
        change(path)
        return change.__name__, [name]
    if what < 0.2:
        os.utime(path, ns=(before.st_mtime_ns + 10**9,) * 2)
        return "another mtime", [name]
    changes = STRUCTURES.get(path.suffix, []) if random.random() < 0.45 else []
    change = random.choice(changes or CONTENT)
    path.write_bytes(change(path.read_bytes(), random))
    keeps_time = random.random() < 0.5
    os.utime(path, ns=(before.st_mtime_ns + (0 if keeps_time else 10**9),) * 2)
    return f"{change.__name__}, {'old' if keeps_time else 'new'} mtime", [name]

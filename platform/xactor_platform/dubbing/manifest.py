"""Read the manifest: rows in JSON lines, CSV or Parquet, each with an image or a video, an audio file and options."""

import codecs
import csv
import io
import itertools
import json
import os
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from pyarrow import fs

from xactor.options import AnimateOptions, Recommended
from xactor_platform.dubbing.messages import Failed, Row
from xactor_platform.storage.location import child_uri, sibling_uri

# A file name may have 255 bytes on most filesystems, and temporary names are longer than the final ones.
_MAX_ID_CHARACTERS, _MAX_ID_BYTES = 128, 200
_TEXT_COLUMNS = ("id", "image", "video", "audio")


def read_manifest(
    uri: str, options: AnimateOptions, recommended: Recommended
) -> tuple[list[Row], list[Failed]]:
    """Read a manifest. Return its valid rows, and the failures of the invalid ones.

    A row is invalid if its id cannot name a file or belongs to an earlier row, if a file is not named, or if an option
    does not exist or is out of bounds. Relative paths start at the manifest's folder.

    Args:
        uri: path or URI of a .jsonl, .ndjson, .csv or .parquet file.
        options: options of rows that do not set their own.
        recommended: the model's recommended values for options that neither the row nor `options` sets.

    Raises:
        ValueError: the manifest cannot be read, has another format, or has no rows.
    """
    rows: list[Row] = []
    failed: list[Failed] = []
    seen: dict[str, int] = {}
    number = 0
    for number, cells in _cells(uri):
        try:
            row = _row(number, cells, options, recommended, uri)
            # Some filesystems distinguish neither upper and lower case nor the ways to encode an accent.
            before = seen.setdefault(unicodedata.normalize("NFC", row.id).casefold(), number)
            if before != number:
                raise ValueError(f"id {row.id!r} already belongs to row {before}")
            rows.append(row)
        except ValueError as error:
            found_id = cells.get("id") if isinstance(cells, dict) else None
            row_id = found_id if isinstance(found_id, str) else None
            message = f"row {number}: {error}"
            failed.append(Failed(number=number, id=row_id, code="bad_row", message=message))
    if not number:
        raise ValueError(f"{uri}: no rows")
    return rows, failed


def without_replacing(
    manifest: str, output: str, rows: list[Row], names: Sequence[str]
) -> tuple[list[Row], list[Failed]]:
    """Return the rows whose videos replace no file of the manifest, and the failures of the others.

    Args:
        manifest: path or URI of the manifest.
        output: folder or URI of the videos.
        rows: rows of the manifest.
        names: names of other files that the run writes to the output.

    Raises:
        ValueError: the run would replace the manifest, or one of the other files is an input.
    """
    sources = {_place(manifest): "the manifest"}
    for row in rows:
        for kind in ("image", "video", "audio"):
            if uri := getattr(row, kind):
                sources.setdefault(_place(uri), f"the {kind} of row {row.number}")
    for name in names:
        if (source := sources.get(_place(child_uri(output, name)))) is not None:
            raise ValueError(
                f"{child_uri(output, name)}: the run would replace {source}; choose another output"
            )
    kept, failed = [], []
    for row in rows:
        target = child_uri(output, f"{row.id}.mp4")
        if (source := sources.get(_place(target))) is None:
            kept.append(row)
        else:
            message = f"row {row.number}: {target}: the video would replace {source}"
            failed.append(Failed(number=row.number, id=row.id, code="bad_row", message=message))
    return kept, failed


def _place(uri: str) -> object:
    """Return a value that is equal for equal places of files: a URI without its options, or a file's identity."""
    uri = uri.removeprefix("file://")
    if "://" in uri:
        return posixpath.normpath(uri.partition("?")[0])
    path = os.path.realpath(os.path.expanduser(uri))
    try:
        # Two names may stand for one file, for example on a filesystem that does not distinguish upper and lower case.
        found = os.stat(path)
        return found.st_dev, found.st_ino
    except OSError:
        return path


def _row(number: int, cells: Any, options: AnimateOptions, recommended: Recommended, manifest: str) -> Row:
    """Return a row. Raise ValueError if it is invalid."""
    if isinstance(cells, ValueError):
        raise cells
    if not isinstance(cells, dict):
        raise ValueError(f"must be a JSON object, got {ascii(cells)[:40]}")
    cells = {name: value for name, value in cells.items() if value is not None}
    name, image, video, audio = (cells.pop(name, None) for name in _TEXT_COLUMNS)
    if not isinstance(name, str) or not _is_id(name):
        raise ValueError(
            f"id must be 1..{_MAX_ID_CHARACTERS} letters, digits, '.', '_' or '-' in at most {_MAX_ID_BYTES} bytes, "
            f"the first a letter or digit, got {str(name)[:200]!r}"
        )
    if (image is None) == (video is None):
        raise ValueError("must have either an image or a video")
    for kind, path in (("image", image), ("video", video), ("audio", audio)):
        if path is None and kind != "audio":
            continue
        if not isinstance(path, str) or not path or "\0" in path or not _is_unicode(path):
            raise ValueError(f"{kind} must be a path or URI, got {path!r}")
    chosen = options.with_row(cells).with_recommended(recommended)
    # Both raise ValueError for options out of bounds.
    chosen.sampling()
    chosen.rendering()
    return Row(
        number=number,
        id=name,
        image=None if image is None else _located(image, manifest),
        video=None if video is None else _located(video, manifest),
        audio=_located(audio, manifest),
        options=chosen,
    )


def _is_id(name: str) -> bool:
    """Return whether a name consists of letters of any script with their marks, digits, `.`, `_` and `-`."""
    # The first letter of a category: L for letters, M for marks such as accents and vowel signs, N for numbers.
    kinds = [unicodedata.category(character)[0] for character in name]
    return (
        0 < len(name) <= _MAX_ID_CHARACTERS
        and len(name.encode("utf-8", "replace")) <= _MAX_ID_BYTES
        and kinds[0] in "LN"
        and all(kind in "LMN" or character in "._-" for kind, character in zip(kinds, name, strict=True))
    )


def _is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, which no file can be named with and nobody can print."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _located(path: str, manifest: str) -> str:
    """Return a URI or an absolute path unchanged, and a relative path joined to the manifest's folder.

    A URI's query options, such as an endpoint, are those of the manifest.
    """
    return path if "://" in path or os.path.isabs(path) else sibling_uri(manifest, path)


def _cells(uri: str) -> Iterator[tuple[int, Any]]:
    """Yield the number of each row, from 1, and its content.

    The content is a dict of cells by column. For a faulty line of JSON it is another JSON value or a ValueError.
    """
    kind = os.path.splitext(uri.partition("?")[0])[1].lower()
    if kind not in (".jsonl", ".ndjson", ".csv", ".parquet"):
        raise ValueError(f"{uri}: a manifest must be .jsonl, .csv or .parquet, got {kind or 'no suffix'!r}")
    data = _read(uri)
    if kind == ".parquet":
        try:
            table = pyarrow.parquet.read_table(io.BytesIO(data))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{uri}: cannot be read ({error})") from error
        yield from enumerate(map(_without_decimals, table.to_pylist()), start=1)
    elif kind == ".csv":
        yield from _csv_rows(data, uri)
    else:
        yield from _json_lines(data, uri)


def _without_decimals(cells: dict[str, Any]) -> dict[str, Any]:
    """Return the cells of a row with decimal numbers as floating-point numbers."""
    return {name: float(value) if isinstance(value, Decimal) else value for name, value in cells.items()}


def _csv_rows(data: bytes, uri: str) -> Iterator[tuple[int, Any]]:
    """Yield rows as `_cells` does. The type of a cell depends on this cell alone."""
    # Bytes that are not UTF-8 become lone surrogates, so that they spoil their own row only.
    text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
    reader = csv.DictReader(text, delimiter=_delimiter(data), strict=True)
    if not {"id", "audio"} <= set(reader.fieldnames or ()):
        raise ValueError(
            f"{uri}: cannot be read (the first line must name the columns, among them id and audio)"
        )
    for number in itertools.count(1):
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield number, ValueError(f"not CSV ({error})")
            continue
        if cells is None:
            return
        if None in cells:
            yield (
                number,
                ValueError(f"has more cells than the first line has names, {len(reader.fieldnames or ())}"),
            )
        else:
            yield number, {name: _csv_value(name, cell) for name, cell in cells.items()}


def _csv_value(name: str, cell: str | None) -> Any:
    """Return the value of a cell: None for an empty cell, and a number or a bool for an option that looks like one."""
    if not cell:
        return None
    if name in _TEXT_COLUMNS:
        return cell
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(cell)
    return cell


def _delimiter(data: bytes) -> str:
    """Return the character that separates the cells of a CSV file: a comma, or what spreadsheets write in its place."""
    header = data.split(b"\n", 1)[0].decode("utf-8-sig", "replace").strip()
    for mark in ",;\t":
        if {"id", "audio"} <= {name.strip('"') for name in header.split(mark)}:
            return mark
    return ","


def _json_lines(data: bytes, uri: str) -> Iterator[tuple[int, Any]]:
    """Yield rows as `_cells` does. The number of a row is the number of its line."""
    # `splitlines` would also split at U+2028 and other characters that a JSON string may contain.
    is_first = True
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.decode())
        except UnicodeDecodeError as error:
            # The whole file is in another encoding.
            if is_first:
                raise ValueError(f"{uri}: not UTF-8 ({error})") from error
            yield number, ValueError(f"not UTF-8 ({error})")
        # Deeply nested JSON raises a RecursionError.
        except (ValueError, RecursionError) as error:
            yield number, ValueError(f"not JSON ({error})")
        is_first = False


def _read(uri: str) -> bytes:
    """Return a file's content. Raise ValueError if it cannot be read."""
    try:
        if "://" in uri:
            filesystem, path = fs.FileSystem.from_uri(uri)
        else:
            filesystem, path = fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
        with filesystem.open_input_stream(path) as stream:
            return stream.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{uri}: cannot be read ({error})") from error

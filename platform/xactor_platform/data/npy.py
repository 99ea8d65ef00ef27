"""Read .npy files, which may be damaged or foreign."""

import ast
import io
from functools import lru_cache
from tokenize import TokenError

import numpy as np


def parse_npy_header(head: bytes) -> tuple[int, str, bool, tuple[int, ...]]:
    """Parse the first bytes of a .npy file.

    Returns:
        the header's length in bytes, the dtype as the header writes it (such as `<f2`), whether the array is in Fortran
        order, and the shape.

    Raises:
        ValueError: the bytes are not the start of a .npy file.
    """
    if head[:6] != b"\x93NUMPY" or len(head) < 12:
        raise ValueError("no .npy magic")
    # The header's length is stored from byte 8 on: in 2 bytes in version 1, and in 4 bytes in later versions.
    start = 10 if head[6] == 1 else 12
    end = start + int.from_bytes(head[8:start], "little")
    if end > len(head):
        raise ValueError(f"the header needs {end} bytes, only {len(head)} were read")
    try:
        return end, *_parse_fields(head[start:end])
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"the header cannot be parsed: {error}") from error


@lru_cache(maxsize=4096)
def _parse_fields(text: bytes) -> tuple[str, bool, tuple[int, ...]]:
    fields = ast.literal_eval(text.decode("latin1"))
    return str(fields["descr"]), bool(fields["fortran_order"]), tuple(fields["shape"])


def read_numbers(name: str, data: bytes, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return the array of finite numbers in a .npy file.

    Args:
        name: name of the file.
        data: its content.
        shape: expected shape of the array, with None for an axis of any length.

    Raises:
        ValueError: the file is faulty.
    """
    try:
        # Unlike np.load, this function reads no other format.
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    # numpy raises errors of Python's parser too for a header that it cannot read.
    except (ValueError, EOFError, OSError, SyntaxError, TokenError, MemoryError, OverflowError) as error:
        raise ValueError(f"{name} is not an array: {error}") from None
    fits = array.ndim == len(shape) and all(b in (None, a) for a, b in zip(array.shape, shape, strict=True))
    if not fits or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        wanted = ", ".join("frames" if side is None else str(side) for side in shape)
        raise ValueError(f"{name} must be finite numbers [{wanted}], got {array.dtype} {list(array.shape)}")
    return array

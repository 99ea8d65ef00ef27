"""What users send, decoded in processes of their own: bounded in time and memory, away from whoever must go on."""

import multiprocessing
import os
import resource
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pebble import ProcessExpired, ProcessPool

from xactor.faces import CropBox
from xactor.media import TooLong, read_audio
from xactor.portrait import find_portrait, read_image, sized_for_video
from xactor.rates import SAMPLE_RATE_HZ, frame_count
from xactor.still import best_still

_MEMORY_BYTES = 3 * 2**30
T = TypeVar("T")


class Refused(ValueError):
    """Files that are not taken.

    Attributes:
        code: a word for programs, `bad_input` or `too_large`.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Face:
    """A portrait's.

    Attributes:
        square: uint8 [S, S, 3].
        picture, box: the whole portrait and the face's square in it, for pasting back; without it the picture is empty.
        notes: what the user should know of the picture.
    """

    square: np.ndarray
    picture: np.ndarray
    box: CropBox
    notes: tuple[str, ...]


class DecodingPool:
    """Processes, each for one file at a time.

    Args:
        processes: how many. timeout_s: for a file; what takes longer is killed.
    """

    def __init__(self, *, processes: int, timeout_s: float):
        # Not forked: the parent has threads, and what it holds is none of theirs.
        self._pool = ProcessPool(
            max_workers=processes,
            max_tasks=200,
            initializer=_bound,
            context=multiprocessing.get_context("spawn"),  # pyright: ignore
        )
        self._timeout_s = timeout_s
        self._pool.schedule(_bound)  # the first files shall not wait for a process to start

    def sound(self, audio: Path, *, max_seconds: float) -> Future[np.ndarray]:
        """Float32 [N], mono, 16 kHz."""
        return self._schedule(_sound, audio, max_seconds)

    def face(
        self, image: bytes | Path, *, size: int, paste_back: bool, from_video: bool = False
    ) -> Future[Face]:
        """
        Args:
            image: a picture, or with `from_video` a video whose best frame becomes the portrait.
            size: the square's side.
        """
        return self._schedule(_face, image, size, paste_back, from_video)

    def _schedule(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._pool.schedule(function, args=arguments, timeout=self._timeout_s)  # pyright: ignore

    def refusal(self, error: BaseException) -> Refused | None:
        """What a future's error says of the file; None where it is no fault of the file."""
        match error:
            case TooLong():
                return Refused("too_large", str(error))
            case ValueError():
                return Refused("bad_input", str(error))
            case TimeoutError():
                least = f"the file cannot be decoded within {self._timeout_s:g} s, which is the most"
                return Refused("bad_input", least)
            case MemoryError() | ProcessExpired():
                most = f"the file takes more than {_MEMORY_BYTES >> 30} GiB to decode, or worse"
                return Refused("bad_input", most)
        return None

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()


def _bound() -> None:
    """A new process of the pool; what it needs has been imported with this module."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries' own news; what is wrong is raised


def _sound(audio: Path, max_seconds: float) -> np.ndarray:
    """In a process of the pool. ValueError: naming the audio, and what is wrong with it."""
    samples = _named("audio", audio, lambda: read_audio(audio, max_seconds=max_seconds))
    if frame_count(len(samples)) < 1:
        raise ValueError(f"audio: {len(samples) / SAMPLE_RATE_HZ * 1000:.0f} ms of sound are too short")
    return samples


def _face(image: bytes | Path, size: int, paste_back: bool, from_video: bool) -> Face:
    """In a process of the pool. ValueError: naming the image, and what is wrong with it."""
    kind = "video" if from_video else "image"
    read = best_still if from_video else read_image
    picture = _named(kind, image, lambda: read(image))  # pyright: ignore
    if paste_back:
        picture = sized_for_video(picture)
    portrait = _named(kind, image, lambda: find_portrait(picture))
    return Face(
        square=portrait.box.cut(picture, size),
        picture=picture if paste_back else picture[:0],
        box=portrait.box,
        notes=portrait.notes,
    )


def _named(name: str, source: bytes | Path, read: Callable[[], T]) -> T:
    """What is read, or why not, by the name that the user knows and not by that of a file here."""

    def said(error: ValueError) -> str:
        why = str(error).removeprefix(f"{source}: ").removeprefix("the picture: ")
        return f"{name}: {why if isinstance(source, bytes) else why.replace(str(source), name)}"

    try:
        return read()
    except TooLong as error:
        raise TooLong(said(error)) from error
    except ValueError as error:
        raise ValueError(said(error)) from error

"""Decode users' pictures, videos and sound in sandboxed processes, separate from the process that serves."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from xactor.faces import CropBox
from xactor.media import Sound, TooLong, read_audio, write_sound
from xactor.portrait import find_portrait, read_image, sized_for_video
from xactor.rates import SAMPLE_RATE_HZ, frame_count
from xactor.sandbox import Sandbox, SandboxError
from xactor.still import best_still

# Maximum memory of one decoding process: 3 GiB.
_MEMORY_BYTES = 3 * 2**30
# Stereo of 16 bits at 48 kHz.
_MAX_TRACK_BYTES_PER_S = 48_000 * 2 * 2
# A process is replaced after this number of files, because codecs may leak memory.
_MAX_FILES = 200
T = TypeVar("T")


class Refused(ValueError):
    """Report a file that is not accepted.

    Attributes:
        code: Machine-readable reason, `bad_input` or `too_large`.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class FaceCrop:
    """Hold the face that was cut out of a portrait."""

    square: np.ndarray
    """The face's square, uint8 [S, S, 3] RGB."""
    picture: np.ndarray
    """The whole portrait, into which the animated face is pasted back, uint8 [H, W, 3] RGB. It is empty, [0, W, 3], if
    the face is not pasted back."""
    box: CropBox
    """The face's square in the portrait."""
    notes: tuple[str, ...]
    """Remarks on the portrait for the user."""


class DecodingPool:
    """Decode files in sandboxed processes. Each process decodes one file at a time.

    The methods return futures. A future raises ValueError if the file cannot be used. It raises SandboxError if the
    call takes too much time or memory, or kills its process. `refusal` converts these errors to `Refused`. A future
    raises ProcessLost if no process could decode the file, which is not the file's fault.

    Args:
        processes: Number of processes.
        timeout_s: Maximum time for one file. A process that takes longer is killed.
    """

    def __init__(self, *, processes: int, timeout_s: float):
        self._sandbox = Sandbox(processes=processes, memory_bytes=_MEMORY_BYTES, max_calls=_MAX_FILES)
        self._timeout_s = timeout_s

    @property
    def fault(self) -> str | None:
        """Return why no file can be decoded at present, because no process can start; None if files can."""
        return self._sandbox.fault

    def sound(self, audio: Path, *, track: Path, max_seconds: float) -> Future[np.ndarray]:
        """Decode sound to float32 [N], mono, 16 kHz, and write it for the video's audio track to a file of its own.

        So nobody else need open the original, which may be harmful.

        Args:
            audio: File with an audio track.
            track: File that `xactor.media.write_sound` writes.
            max_seconds: Maximum length of the sound. The future raises TooLong if the sound is longer, or if the track
                takes more bytes than stereo of this length at 48 kHz.
        """
        return self.submit(_sound, audio, track, max_seconds)

    def face(
        self, image: bytes | Path, *, size: int, paste_back: bool, from_video: bool = False
    ) -> Future[FaceCrop]:
        """Decode a picture and cut out its largest face.

        Args:
            image: A picture, or with `from_video` a video, whose best frame becomes the portrait.
            size: Side of the face's square in pixels.
            paste_back: Return the whole portrait too, at a size that h264 accepts.
            from_video: Treat `image` as a video.
        """
        return self.submit(_face, image, size, paste_back, from_video)

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a picklable function that reads files of users."""
        return self._sandbox.submit(function, *arguments, timeout_s=self._timeout_s)

    def refusal(self, error: BaseException) -> Refused | None:
        """Return why a file is refused, given the error of its future; None if the file did not cause the error."""
        match error:
            case TooLong():
                return Refused("too_large", str(error))
            case ValueError():
                return Refused("bad_input", str(error))
            case SandboxError():
                return Refused("bad_input", f"the file cannot be decoded: it {error}")
        return None

    def close(self) -> None:
        """Kill all processes and wait for their end."""
        self._sandbox.close()


def _sound(audio: Path, track: Path, max_seconds: float) -> np.ndarray:
    """Decode a sound in a process of the pool. Raises ValueError, whose message calls the file `audio`."""
    max_bytes = int(max_seconds * _MAX_TRACK_BYTES_PER_S)
    samples = _with_users_name("audio", audio, lambda: read_audio(audio, max_seconds=max_seconds))
    if frame_count(len(samples)) < 1:
        length_ms = len(samples) / SAMPLE_RATE_HZ * 1000
        raise ValueError(f"audio: {length_ms:.0f} ms of sound are too short, more than 20 ms are needed")
    _with_users_name("audio", audio, lambda: write_sound(track, Sound.of(audio), max_bytes=max_bytes))
    return samples


def _face(image: bytes | Path, size: int, paste_back: bool, from_video: bool) -> FaceCrop:
    """Cut out a face in a process of the pool. Raises ValueError, whose message calls the file `image` or `video`."""
    kind = "video" if from_video else "image"
    decode = best_still if from_video else read_image
    picture = _with_users_name(kind, image, lambda: decode(image))  # pyright: ignore
    if paste_back:
        picture = sized_for_video(picture)
    portrait = _with_users_name(kind, image, lambda: find_portrait(picture))
    return FaceCrop(
        square=portrait.box.cut(portrait.picture, size),
        picture=portrait.picture if paste_back else portrait.picture[:0],
        box=portrait.box,
        notes=portrait.notes,
    )


def _with_users_name(name: str, source: bytes | Path, read: Callable[[], T]) -> T:
    """Return the result of `read`. In the messages of its errors, replace the path of `source` by `name`.

    The user knows the file by `name`, such as `audio`, and does not know the local path.
    """

    def renamed(error: ValueError) -> str:
        # `read_image` calls a picture that is given as bytes "the picture".
        message = str(error).removeprefix(f"{source}: ").removeprefix("the picture: ")
        if not isinstance(source, bytes):
            message = message.replace(str(source), name)
        return f"{name}: {message}"

    try:
        return read()
    except TooLong as error:
        raise TooLong(renamed(error)) from error
    except ValueError as error:
        raise ValueError(renamed(error)) from error

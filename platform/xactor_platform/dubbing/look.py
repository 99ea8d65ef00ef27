"""Look at each row of the manifest before the work starts.

Compute the digest of everything that the row's video depends on, read the length of its audio, and find the video if it
exists.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TypeVar

import av
from av.container import InputContainer
from av.error import FFmpegError
from pyarrow import fs

from xactor.decoding import Refused
from xactor.provenance import made_from
from xactor.rates import FPS
from xactor_platform.bulk.stage import Stage
from xactor_platform.dubbing.dub_stage import DubStage
from xactor_platform.dubbing.messages import Done, Dub, Row
from xactor_platform.storage.files import file_digest, open_file
from xactor_platform.storage.location import Location

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Look(DubStage, Stage):
    """Read a row's files to compute its digest and its audio's length, and find its video if that already exists."""

    name = "look"
    node_group = "motion"

    output: str
    """Folder or URI of the videos."""
    model: str
    """Fingerprint of the model."""
    max_input_bytes: int
    """Maximum size of each file, in bytes."""

    def work(self, message: Row) -> Iterator[Dub | Done]:
        row = message
        # The digest covers everything that the video depends on.
        lead_frames = row.options.rendering().lead_frames
        dependencies = {"model": self.model, "options": asdict(row.options), "lead_frames": lead_frames}
        try:
            for kind in ("image", "video", "audio"):
                if uri := getattr(row, kind):
                    dependencies[kind] = _read(
                        kind, uri, lambda uri=uri: file_digest(uri, self.max_input_bytes)
                    )
            seconds = _read("audio", row.audio, lambda: _length_s(row.audio))
        except ValueError as error:
            raise Refused("bad_input", str(error)) from error
        digest = hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()
        existing = find_video(self.output, row, digest)
        yield existing or Dub(row=row, digest=digest, seconds=seconds)


def find_video(output: str, row: Row, digest: str) -> Done | None:
    """Return a row's video if it exists and its metadata state this digest. Return None if the video must be made."""
    place = Location.parse(output)
    path = f"{place.path}/{row.id}.mp4"
    if place.filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    with (
        suppress(FFmpegError, ValueError),
        place.open(f"{row.id}.mp4") as file,
        av.open(file, "r") as container,
    ):
        stream = container.streams.video[0]
        if made_from(container.metadata.get("comment", "")) == digest:
            return Done(row=row, frames=stream.frames, seconds=stream.frames / FPS, made=False)
    return None


def _length_s(uri: str) -> float:
    """Return the length of an audio file in seconds as its header states it, or 0 if the header states none.

    Decoding measures the exact length later.
    """
    filesystem, path, _ = open_file(uri)
    try:
        with filesystem.open_input_file(path) as file, av.open(file, "r") as container:
            # The mode "r" always gives an InputContainer, but the type annotations do not say so.
            assert isinstance(container, InputContainer)
            return (container.duration or 0) / av.time_base
    except (FFmpegError, ValueError) as error:
        raise ValueError(f"{uri}: cannot be decoded ({error})") from error


def _read(kind: str, uri: str, read: Callable[[], T]) -> T:
    """Return the result of `read`. If it fails, raise ValueError with the kind of the file before the message."""
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error
    except FFmpegError as error:
        raise ValueError(f"{kind}: {uri}: cannot be decoded ({error})") from error

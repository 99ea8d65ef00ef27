"""Look at each row of the manifest before the work starts.

Compute the digest of everything that the row's video depends on, read the length of its audio, and find the video if it
exists.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import TypeVar

import av
from av.error import FFmpegError
from pyarrow import fs

from xactor.decoding import Refused
from xactor.media.container import open_container
from xactor.provenance import made_from
from xactor.rates import FPS
from xactor_platform.bulk.stage import Stage
from xactor_platform.dubbing.dub_stage import DecodingStage
from xactor_platform.dubbing.messages import Done, Dub, Row
from xactor_platform.storage.files import file_digest, open_file
from xactor_platform.storage.location import Location

T = TypeVar("T")


class Look(DecodingStage, Stage):
    """Read a row's files to compute its digest and its audio's length, and find its video if that already exists.

    Args:
        output: folder or URI of the videos.
        model: fingerprint of the model.
        max_input_bytes: maximum size of each file, in bytes.
        decode_s: maximum seconds to read the length of an audio file, or to open a video.
    """

    name = "look"

    def __init__(self, *, output: str, model: str, max_input_bytes: int, decode_s: float):
        super().__init__(decode_s)
        self._output, self._model, self._max_input_bytes = output, model, max_input_bytes

    def work(self, message: Row) -> Iterator[Dub | Done]:
        row = message
        # The digest covers everything that the video depends on.
        lead_frames = row.options.rendering().lead_frames
        dependencies = {"model": self._model, "options": asdict(row.options), "lead_frames": lead_frames}
        try:
            for kind in ("image", "video", "audio"):
                if uri := getattr(row, kind):
                    dependencies[kind] = _read(kind, lambda uri=uri: file_digest(uri, self._max_input_bytes))
        except ValueError as error:
            raise Refused("bad_input", str(error)) from error
        seconds = self.decoded(self.pool.submit(_length_s, row.audio))
        digest = hashlib.sha256(json.dumps(dependencies, sort_keys=True).encode()).hexdigest()
        existing = self.decoded(self.pool.submit(find_video, self._output, row, digest))
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
        open_container(file) as container,
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
    with filesystem.open_input_file(path) as file:
        try:
            with open_container(file) as container:
                return (container.duration or 0) / av.time_base
        except ValueError as error:
            message = str(error).removeprefix(f"{file}: ")
            raise ValueError(f"audio: {uri}: {message}") from error


def _read(kind: str, read: Callable[[], T]) -> T:
    """Return the result of `read`. If it fails, raise ValueError with the kind of the file before the message."""
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error

"""The first look at a row: what it is made of, how long it will be, and whether its video is there already."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass

import av
from av.container import InputContainer
from av.error import FFmpegError
from pyarrow import fs

from xactor.decoding import Refused
from xactor.provenance import made_from
from xactor.rates import FPS
from xactor_platform.dubbing.stage import OneByOne
from xactor_platform.dubbing.work import Done, Dub, Row
from xactor_platform.storage.files import file_digest, open_file
from xactor_platform.storage.location import Location


@dataclass(frozen=True, kw_only=True)
class Look(OneByOne):
    """
    output: where the videos go. model: the model's fingerprint. most_bytes: of one file.
    """

    output: str
    model: str
    most_bytes: int
    name = "look"
    group = "motion"

    def work(self, work: Row) -> Iterator[Dub | Done]:
        row = work
        depends = {"model": self.model, "options": asdict(row.options)}
        try:
            for kind in ("image", "video", "audio"):
                if uri := getattr(row, kind):
                    depends[kind] = _named(kind, uri, lambda uri=uri: file_digest(uri, self.most_bytes))
            seconds = _named("audio", row.audio, lambda: _length_s(row.audio))
        except ValueError as error:
            raise Refused("bad_input", str(error)) from error
        digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
        made = video_of(self.output, row, digest)
        yield made or Dub(row=row, digest=digest, seconds=seconds)


def video_of(output: str, row: Row, digest: str) -> Done | None:
    """A row's video, where it is there and made from just this."""
    place = Location.parse(output)
    path = f"{place.path}/{row.id}.mp4"
    if place.filesystem.get_file_info(path).type != fs.FileType.File:
        return None
    with (
        suppress(FFmpegError, ValueError),
        place.open(f"{row.id}.mp4") as file,
        av.open(file, "r") as container,
    ):
        pictures = container.streams.video[0]
        if made_from(container.metadata.get("comment", "")) == digest:
            frames = pictures.frames
            return Done(row=row, frames=frames, seconds=frames / FPS, made=False)
    return None


def _length_s(uri: str) -> float:
    """As the header has it, 0 where it has none: what follows measures it truly."""
    filesystem, path, _ = open_file(uri)
    try:
        with filesystem.open_input_file(path) as file, av.open(file, "r") as container:
            assert isinstance(container, InputContainer)  # by its mode, which types do not see here
            return (container.duration or 0) / av.time_base
    except (FFmpegError, ValueError) as error:
        raise ValueError(f"{uri}: cannot be decoded ({error})") from error


def _named(kind: str, uri: str, read):
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error
    except FFmpegError as error:
        raise ValueError(f"{kind}: {uri}: cannot be decoded ({error})") from error

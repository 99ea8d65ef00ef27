"""Decode the files of a manifest's row in a child process, so that a bad file cannot kill the actor."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from xactor.decoding import Refused
from xactor_platform.bulk.stage import Stage
from xactor_platform.dubbing.dub_stage import DecodingStage
from xactor_platform.dubbing.messages import TRACK_FILE, Dub, Portrait
from xactor_platform.storage.files import local_file
from xactor_platform.storage.location import Location


class Decode(DecodingStage, Stage):
    """Decode a row's image or video to a face, and its audio to samples. Write its audio track to the output.

    Args:
        output: folder or URI of the videos.
        size: side of the face's square, in pixels.
        decode_s: maximum seconds to decode one file.
    """

    name = "decode"

    def __init__(self, *, output: str, size: int, decode_s: float):
        super().__init__(decode_s)
        self._output, self._size = Location.parse(output), size

    def work(self, message: Dub) -> Iterator[Portrait]:
        row = message.row
        with ExitStack() as files:
            folder = files.enter_context(tempfile.TemporaryDirectory(prefix="xactor-dub-"))
            track = Path(folder, TRACK_FILE)
            try:
                image = files.enter_context(local_file(row.image or row.video or ""))
                audio = files.enter_context(local_file(row.audio))
            except ValueError as error:
                raise Refused("bad_input", str(error)) from error
            options, from_video = row.options, row.video is not None
            samples = self.decoded(self.pool.sound(audio, track=track, max_seconds=options.max_seconds))
            face = self.decoded(
                self.pool.face(image, size=self._size, paste_back=options.paste_back, from_video=from_video)
            )
            name = f"{message.folder}/{TRACK_FILE}"
            with self._output.atomic_write(name) as target, track.open("rb") as source:
                shutil.copyfileobj(source, target, 1 << 20)
        yield Portrait(dub=message, square=face.square, samples=samples, picture=face.picture, box=face.box)

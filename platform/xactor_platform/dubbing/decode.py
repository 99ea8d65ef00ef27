"""Decode the files of a manifest's row in a child process, so that a bad file cannot kill the actor."""

import atexit
import os
from collections.abc import Iterator
from contextlib import ExitStack

from xactor.decoding import DecodingPool, Refused
from xactor_platform.bulk.stage import Stage
from xactor_platform.dubbing.dub_stage import DubStage
from xactor_platform.dubbing.messages import Dub, Portrait
from xactor_platform.storage.files import local_file


class Decode(DubStage, Stage):
    """Decode a row's image or video to a face, and its audio to samples.

    Args:
        size: side of the face's square, in pixels.
        decode_s: maximum seconds to decode one file.
    """

    name = "decode"
    node_group = "motion"

    def __init__(self, *, size: int, decode_s: float):
        self._size = size
        self._pool = DecodingPool(processes=1, timeout_s=decode_s)
        # Ray ends an actor's child processes before the actor. The actor would therefore print an error for each child
        # when it exits. To avoid this, the exiting actor redirects its stderr to /dev/null.
        atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)

    def work(self, message: Dub) -> Iterator[Portrait]:
        row = message.row
        with ExitStack() as files:
            try:
                image = files.enter_context(local_file(row.image or row.video or ""))
                audio = files.enter_context(local_file(row.audio))
            except ValueError as error:
                raise Refused("bad_input", str(error)) from error
            options, from_video = row.options, row.video is not None
            try:
                samples = self._pool.sound(audio, max_seconds=options.max_seconds).result()
                face = self._pool.face(
                    image, size=self._size, paste_back=options.paste_back, from_video=from_video
                ).result()
            except Exception as error:
                if refusal := self._pool.refusal(error):
                    raise refusal from error
                raise
        yield Portrait(dub=message, square=face.square, samples=samples, picture=face.picture, box=face.box)

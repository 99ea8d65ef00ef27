"""A video's parts and its sound to the video, whole or not at all."""

import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from xactor.media import Sound, join_videos
from xactor.provenance import ai_generated
from xactor.rates import FPS
from xactor_platform.dubbing.work import Done, Dub, part_name
from xactor_platform.storage.files import local_file
from xactor_platform.storage.location import Location


def write(output: str, dub: Dub, parts: int) -> Done:
    """Joins `parts` parts. OSError, ValueError: a file is gone or cannot be written."""
    place = Location.parse(output)
    with tempfile.TemporaryDirectory(prefix="xactor-dub-") as folder, local_file(dub.row.audio) as audio:
        local = []
        for number in range(parts):
            local.append(Path(folder, part_name(number)))
            with place.filesystem.open_input_stream(
                f"{place.path}/{dub.parts}/{part_name(number)}"
            ) as stream:
                local[-1].write_bytes(stream.read())
        video = Path(folder, "video.mp4")
        frames = join_videos(
            local, video, fps=FPS, samples=Sound.of(audio), metadata=ai_generated(made_from=dub.digest)
        )
        with place.atomic_write(f"{dub.row.id}.mp4") as target, video.open("rb") as source:
            while piece := source.read(1 << 20):
                target.write(piece)
    with suppress(OSError):
        place.filesystem.delete_dir(f"{place.path}/{dub.parts}")
    return Done(row=dub.row, frames=frames, seconds=frames / FPS, made=True)


class Writer:
    """Writes under one output, several videos at a time."""

    def __init__(self, output: str):
        self._output = output

    def write(self, dub: Dub, parts: int) -> Done:
        begun = time.perf_counter()
        done = write(self._output, dub, parts)
        return replace(done, spent={"write": time.perf_counter() - begun})

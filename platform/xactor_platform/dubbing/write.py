"""Join the rendered segments of a video, and add its sound."""

import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from xactor.media import Sound, join_videos
from xactor.provenance import ai_generated
from xactor.rates import FPS
from xactor_platform.dubbing.messages import TRACK_FILE, Done, Dub, segment_file_name
from xactor_platform.storage.location import Location

# Files are copied in blocks of this size, so that they need not fit into memory.
_BLOCK_BYTES = 1 << 20


def write(output: str, dub: Dub, segments: int) -> Done:
    """Write a video atomically from the files of its segments and its audio track, and then delete their folder.

    Args:
        output: folder or URI of the videos.
        dub: the video.
        segments: number of its segments.

    Raises:
        OSError, ValueError: a file is gone or cannot be written.
    """
    place = Location.parse(output)
    with tempfile.TemporaryDirectory(prefix="xactor-dub-") as folder:
        names = [segment_file_name(number) for number in range(segments)]
        for name in (*names, TRACK_FILE):
            with (
                place.filesystem.open_input_stream(f"{place.path}/{dub.folder}/{name}") as source,
                Path(folder, name).open("wb") as target,
            ):
                shutil.copyfileobj(source, target, _BLOCK_BYTES)
        video = Path(folder, "video.mp4")
        frames = join_videos(
            [Path(folder, name) for name in names],
            video,
            fps=FPS,
            samples=Sound.of(Path(folder, TRACK_FILE)),
            metadata=ai_generated(made_from=dub.digest),
        )
        with place.atomic_write(f"{dub.row.id}.mp4") as target, video.open("rb") as source:
            shutil.copyfileobj(source, target, _BLOCK_BYTES)
    with suppress(OSError):
        place.filesystem.delete_dir(f"{place.path}/{dub.folder}")
    return Done(row=dub.row, frames=frames, seconds=frames / FPS, made=True)


class Writer:
    """Write videos to one output folder. A Ray actor of this class takes several calls at a time.

    Args:
        output: folder or URI of the videos.
    """

    def __init__(self, output: str):
        self._output = output

    def write(self, dub: Dub, segments: int) -> Done:
        """Write one video with the function `write`, and add the seconds that this took to the result."""
        begun = time.perf_counter()
        done = write(self._output, dub, segments)
        return replace(done, stage_s={"write": time.perf_counter() - begun})

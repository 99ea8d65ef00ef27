"""Save the finished work on each video in the output folder, so that a later run continues after it.

The saved work is deleted when the clips are in shards. `<video>` and `<clip>` are keys.

.parts/<video>/refused.json           fate of a video that gives no clips (a row of the report, with the reason)
.parts/<video>/spans.json             frames of each piece that the video is cut into
.parts/<video>/0003.json              fates, prints and metadata of the clips of piece 3, saved after the clips
.parts/<video>/<clip>.mp4             a kept clip
.parts/<video>/<clip>.controls.npy    control track of the clip: the face's motion as 57 numbers per frame
.parts/<video>/<clip>.landmarks.npy   landmarks of the face in some frames of the clip
"""

import base64
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from xactor_platform.curation.messages import PRINT_TYPES, Ended, Fate, Prints
from xactor_platform.data.index import CONTROLS, LANDMARKS
from xactor_platform.storage.location import Location

PROGRESS_FOLDER = ".parts"
_REFUSED, _SPANS = "refused.json", "spans.json"


class VideoProgress:
    """Save and read the progress of one video.

    Args:
        output: folder or URI of the shards.
        key: key of the video.
    """

    def __init__(self, output: str, key: str):
        place = Location.parse(output)
        folder = f"{PROGRESS_FOLDER}/{key}"
        self._key = key
        self._place = Location(f"{output}/{folder}", place.filesystem, f"{place.path}/{folder}")

    def refuse(self, fate: Fate) -> Ended:
        """Save the fate of a video that gives no clips. Return the message that reports this fate."""
        self._write(_REFUSED, asdict(fate))
        return Ended(key=self._key, number=0, of=0, fates=(fate,), looked_s=fate.seconds)

    def refused(self) -> Ended | None:
        """Return the message that reports the fate saved by an earlier run's `refuse`, None if none is saved."""
        found = self._read(_REFUSED)
        if found is None:
            return None
        fate = Fate(**found)
        return Ended(key=self._key, number=0, of=0, fates=(fate,), looked_s=fate.seconds, earlier=True)

    def save_spans(self, spans: list[tuple[int, int]]) -> None:
        """Save the pieces of the video, each as its first frame and the frame after its last one."""
        self._write(_SPANS, spans)

    def spans(self) -> list[tuple[int, int]] | None:
        """Return the saved pieces, None if there are none."""
        found = self._read(_SPANS)
        return None if found is None else [(first, end) for first, end in found]

    def finish(self, ended: Ended, samples: Mapping[str, Mapping[str, Any]]) -> None:
        """Save a piece's clips and then its fates. The fates mark the piece as finished.

        Args:
            ended: the message that reports the piece.
            samples: by the key of each kept clip, the clip's members in a shard: mp4, metadata and tracks.
        """
        for key, members in samples.items():
            with self._place.atomic_write(f"{key}.mp4") as file:
                file.write(members["mp4"])
            for name in (CONTROLS, LANDMARKS):
                with self._place.atomic_write(f"{key}.{name}") as file:
                    np.save(file, members[name])
        metas = {key: members["json"] for key, members in samples.items()}
        fates = [asdict(fate) for fate in ended.fates]
        prints = {key: _encode(found) for key, found in ended.prints.items()}
        record = {"of": ended.of, "looked_s": ended.looked_s, "fates": fates, "samples": metas}
        record["prints"] = prints
        self._write(f"{ended.number:04d}.json", record)

    def finished(self, number: int) -> Ended | None:
        """Return the message that reports a finished piece, None if the piece is not finished."""
        found = self._read(f"{number:04d}.json")
        if found is None:
            return None
        return Ended(
            key=self._key,
            number=number,
            of=found["of"],
            fates=tuple(Fate(**fate) for fate in found["fates"]),
            prints={key: _decode(encoded) for key, encoded in found["prints"].items()},
            looked_s=found["looked_s"],
            earlier=True,
        )

    def all_results(self) -> tuple[list[Fate], list[tuple[str, dict[str, Any]]]]:
        """Return the fates of a finished video, and the key and the metadata of each kept clip, in order."""
        ended = self.refused()
        if ended:
            return [*ended.fates], []
        fates: list[Fate] = []
        samples: list[tuple[str, dict[str, Any]]] = []
        for name in sorted(self._names()):
            if name.endswith(".json") and name.removesuffix(".json").isdigit():
                found = self._read(name)
                assert found is not None
                fates += [Fate(**fate) for fate in found["fates"]]
                samples += found["samples"].items()
        return fates, samples

    def members(self, key: str) -> dict[str, Any]:
        """Return the mp4, the control track and the landmarks of a kept clip."""
        members: dict[str, Any] = {}
        with self._place.open(f"{key}.mp4") as video:
            members["mp4"] = video.read()
        for name in (CONTROLS, LANDMARKS):
            with self._place.open(f"{key}.{name}") as track:
                members[name] = np.load(io.BytesIO(track.read()), allow_pickle=False)
        return members

    def delete(self) -> None:
        """Delete the progress of the video."""
        with suppress(FileNotFoundError):
            self._place.filesystem.delete_dir(self._place.path)

    def _names(self) -> set[str]:
        try:
            return set(self._place.sizes())
        except FileNotFoundError:
            return set()

    def _write(self, name: str, value: Any) -> None:
        with self._place.atomic_write(name) as file:
            file.write(json.dumps(value, sort_keys=True).encode())

    def _read(self, name: str) -> Any:
        try:
            with self._place.filesystem.open_input_stream(f"{self._place.path}/{name}") as file:
                return json.loads(file.read())
        except FileNotFoundError:
            return None


def _encode(prints: Prints) -> dict[str, str | None]:
    """Return prints as values that JSON can hold."""
    return {
        name: None if array is None else base64.b64encode(array.tobytes()).decode()
        for name, array in vars(prints).items()
    }


def _decode(encoded: dict[str, str | None]) -> Prints:
    arrays: dict[str, Any] = {
        name: None if text is None else np.frombuffer(base64.b64decode(text), PRINT_TYPES[name])
        for name, text in encoded.items()
    }
    return Prints(**arrays)

"""What is finished of a video, written down beside the shards until they are made: a run that ends goes on from it.

.parts/<video>/refused.json     nothing comes of the video
.parts/<video>/spans.json       the pieces that it was cut into
.parts/<video>/0003.json        what became of a piece, once its clips are there
.parts/<video>/<clip>.mp4
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from xactor_platform.curation.work import Ended, Fate
from xactor_platform.storage.location import Location

PARTS = ".parts"
_REFUSED, _SPANS = "refused.json", "spans.json"


class Parts:
    """Of one video.

    Args:
        output: the folder or URI of the shards. key: the video's.
    """

    def __init__(self, output: str, key: str):
        place = Location.parse(output)
        self._key = key
        self._place = Location(f"{output}/{PARTS}/{key}", place.filesystem, f"{place.path}/{PARTS}/{key}")

    def names(self) -> set[str]:
        """Of its files."""
        try:
            return set(self._place.sizes())
        except FileNotFoundError:
            return set()

    def refuse(self, fate: Fate) -> Ended:
        """Writes down that nothing comes of the video."""
        self._write(_REFUSED, asdict(fate))
        return Ended(key=self._key, number=0, of=0, fates=(fate,), looked_s=fate.seconds)

    def refused(self) -> Ended | None:
        """What was written down, if it was."""
        found = self._read(_REFUSED)
        if found is None:
            return None
        fate = Fate(**found)
        return Ended(key=self._key, number=0, of=0, fates=(fate,), looked_s=fate.seconds, again=True)

    def cut(self, spans: list[tuple[int, int]]) -> None:
        self._write(_SPANS, spans)

    def spans(self) -> list[tuple[int, int]] | None:
        """Frames first..end of each piece, where they are known."""
        found = self._read(_SPANS)
        return None if found is None else [(first, end) for first, end in found]

    def finish(self, ended: Ended, samples: Mapping[str, tuple[bytes, dict[str, Any]]]) -> None:
        """Writes a piece's clips, and then its fates, with which it counts as finished.

        Args:
            samples: of kept clips by key: the mp4, and the json that stands beside it in a shard.
        """
        for key, (mp4, _) in samples.items():
            with self._place.atomic_write(f"{key}.mp4") as file:
                file.write(mp4)
        metas = {key: meta for key, (_, meta) in samples.items()}
        fates = [asdict(fate) for fate in ended.fates]
        record = {"of": ended.of, "looked_s": ended.looked_s, "fates": fates, "samples": metas}
        self._write(f"{ended.number:04d}.json", record)

    def finished(self, number: int) -> Ended | None:
        """A piece that is."""
        found = self._read(f"{number:04d}.json")
        return None if found is None else self._ended(number, found)

    def all(self) -> tuple[list[Fate], list[tuple[str, dict[str, Any]]]]:
        """Of a finished video: its fates, and the keys and json of its kept clips, in order."""
        ended = self.refused()
        if ended:
            return [*ended.fates], []
        fates: list[Fate] = []
        samples: list[tuple[str, dict[str, Any]]] = []
        for name in sorted(self.names()):
            if name[:-5].isdigit() and name.endswith(".json"):
                found = self._read(name)
                assert found is not None
                fates += [Fate(**fate) for fate in found["fates"]]
                samples += found["samples"].items()
        return fates, samples

    def mp4(self, key: str) -> bytes:
        with self._place.open(f"{key}.mp4") as file:
            return file.read()

    def forget(self) -> None:
        """What has become shards."""
        with suppress(FileNotFoundError):
            self._place.filesystem.delete_dir(self._place.path)

    def _ended(self, number: int, found: dict[str, Any]) -> Ended:
        fates = tuple(Fate(**fate) for fate in found["fates"])
        looked_s = found["looked_s"]
        return Ended(key=self._key, number=number, of=found["of"], fates=fates, looked_s=looked_s, again=True)

    def _write(self, name: str, value: Any) -> None:
        with self._place.atomic_write(name) as file:
            file.write(json.dumps(value, sort_keys=True).encode())

    def _read(self, name: str) -> Any:
        try:
            with self._place.filesystem.open_input_stream(f"{self._place.path}/{name}") as file:
                return json.loads(file.read())
        except FileNotFoundError:
            return None

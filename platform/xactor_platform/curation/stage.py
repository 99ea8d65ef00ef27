"""A stage's actors: they take one piece of work after another, and what fails is a clip's fate, not the job's end."""

import atexit
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import pyarrow as pa

from xactor.rates import FPS
from xactor.sandbox import Sandbox, SandboxError
from xactor_platform.bulk.pool import Spent, added, nothing, pack, unpack
from xactor_platform.curation.parts import Parts
from xactor_platform.curation.work import Clip, Ended, Fate, Piece, Probed, Video, fate_of

_sandboxed_work: Callable[[Any], Any]


class Bad(Exception):
    """A video or piece cannot be used.

    Attributes:
        reason: one word to count by.
        detail: one sentence.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Stage:
    """One actor of a stage, as Ray Data calls it: a table of work in, tables of one piece of work each out.

    Args:
        output: where what is finished is written down.
        patience, memory_gib: see `Bounds`.
        arguments: what the work is made with.
    """

    name: ClassVar[str]
    # Gives the work: from one piece of work to what comes of it. Called once, where the work is done.
    make: ClassVar[Callable[..., Callable[[Any], Any]]]
    guarded: ClassVar[bool] = True  # whether it decodes what strangers made

    def __init__(self, *, output: str, patience: float, memory_gib: float, **arguments: Any):
        self._output, self._patience = output, patience
        if self.guarded:
            # Ray ends an actor's children before the actor, which would report each of them as it exits.
            atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)
            self._sandbox = Sandbox(
                processes=1,
                memory_bytes=int(memory_gib * 2**30),
                prepare=partial(_prepare, type(self).make, arguments),
            )
        else:
            self._work = type(self).make(**arguments)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        for work in unpack(table):
            if isinstance(work, Ended):
                yield pack(work)
                continue
            for made in self.run(work):
                yield pack(made)
        if not table.num_rows:
            yield nothing()

    def run(self, work: Any) -> list[Any]:
        """What comes of one piece of work; the time it took is in the first of it."""
        begun = time.perf_counter()
        try:
            made = self.called(work)
        except Bad as error:
            made = [self.refused(work, error.reason, error.detail)]
        except SandboxError as error:
            made = [self.refused(work, error.reason, str(error))]
        except MemoryError:
            made = [self.refused(work, "too_much_memory", "takes more memory than there is")]
        except ValueError as error:
            made = [self.refused(work, "unreadable", str(error))]
        spent = added(self.spent(work), {self.name: time.perf_counter() - begun})
        return [replace(one, spent=spent if not n else {}) for n, one in enumerate(made)]

    def called(self, work: Any) -> list[Any]:
        """The work itself."""
        return self.sandboxed(work, self.patience_s(work)) if self.guarded else self._work(work)

    def sandboxed(self, work: Any, timeout_s: float) -> Any:
        """Do the work in the sandbox."""
        return self._sandbox.submit(_do, work, timeout_s=timeout_s).result()

    def spent(self, work: Any) -> Spent:
        """What earlier stages took for it."""
        return getattr(work, "spent", {})

    def patience_s(self, work: Video | Probed | Piece) -> float:
        """How long one piece of work may take."""
        seconds = (work.end - work.first) / FPS if isinstance(work, Piece) else 0.0
        if isinstance(work, Probed):
            seconds = work.facts.seconds
        return 60 + self._patience * seconds

    def refused(self, work: Video | Probed | Piece, reason: str, detail: str) -> Ended | Piece:
        """A video or piece that could not be worked on."""
        if isinstance(work, Piece):
            clips = tuple(
                clip if clip.status != "kept" else clip.dropped(reason, detail, "failed")
                for clip in work.clips or (Clip(first=work.first, end=work.end),)
            )
            return replace(work, clips=clips)
        video, facts = (work, None) if isinstance(work, Video) else (work.video, work.facts)
        detail = said(video, detail)
        status = "dropped" if reason in SEEN else "failed"
        fate = fate_of(
            video, facts, status, reason=reason, detail=detail, end_s=facts.seconds if facts else 0.0
        )
        return Parts(self._output, video.key).refuse(fate)


# Of a whole video: what is wrong with the video and not with its file.
SEEN = {"no_sound", "silent", "no_picture", "too_short"}


def clip_fate(piece: Piece, number: int, split: str) -> Fate:
    """Of a clip that has been through all stages, or dropped on the way."""
    clip = piece.clips[number]
    measures, lips = clip.measures, clip.lips
    more: dict[str, Any] = {}
    if measures:
        more |= {"crop_px": measures.crop_px, "blur": measures.blur, "occluded": measures.occluded}
        more["speech"] = measures.speech
    if lips:
        more |= {"sync_offset": lips.offset_frames, "sync_confidence": lips.confidence}
        more |= {"sync_distance": lips.distance, "syncnet": lips.weights}
    return fate_of(
        piece.video,
        piece.facts,
        clip.status,
        reason=clip.reason,
        detail=said(piece.video, clip.detail),
        clip=clip_key(piece, number),
        start_s=clip.first / FPS,
        end_s=clip.end / FPS,
        split=split,
        **more,
    )


def said(video: Video, detail: str) -> str:
    """In one line, and by the name that people know."""
    detail = detail.removeprefix(f"{video.uri}: ").replace(video.uri, video.name)
    return " ".join(detail.replace(f"{os.path.dirname(video.uri)}/", "").split())[:500]


def clip_key(piece: Piece, number: int) -> str:
    return f"{piece.video.key}-{piece.number:04d}-{number:02d}"


def _prepare(make: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any]) -> None:
    """Make the work once, in a process of the sandbox."""
    global _sandboxed_work
    os.environ["OMP_NUM_THREADS"] = "1"
    _sandboxed_work = make(**arguments)


def _do(work: Any) -> Any:
    """Do the prepared work, in a process of the sandbox."""
    return _sandboxed_work(work)

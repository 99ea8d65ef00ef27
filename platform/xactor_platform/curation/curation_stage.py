"""Run the work of curation stages in a sandbox, and turn errors of this work into fates of clips and videos.

A fate is a row of the report. It tells whether a clip was kept, and why not.
"""

import atexit
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any, ClassVar

from xactor.rates import FPS
from xactor.sandbox import Sandbox, SandboxError
from xactor_platform.bulk.message import Message
from xactor_platform.bulk.stage import Stage
from xactor_platform.curation.messages import Clip, Ended, Facts, Fate, Piece, Probed, Video, fate_of
from xactor_platform.curation.video_progress import VideoProgress

# Seconds that a stage may take for a message of any length.
_BASE_TIMEOUT_S = 60
# Reasons for refusing a file that can be read but has useless content. Such a video counts as dropped, not as failed.
_DROPPING_REASONS = {"no_sound", "silent", "no_picture", "too_short"}
# In a process of the sandbox: the function that does the stage's work. `_prepare` sets it.
_sandboxed_work: Callable[[Any], Any]


class Unusable(Exception):
    """Report that a video or piece cannot be used.

    Attributes:
        reason: the reason in one word, by which the report counts clips.
        detail: the reason in one sentence.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class CurationStage(Stage):
    """Process one video or piece at a time.

    Args:
        output: folder or URI of the shards, where finished pieces are saved.
        timeout_factor: see `Bounds`.
        memory_gib: see `Bounds`.
        arguments: arguments of `make`.

    Attributes:
        make: returns the function that processes one message. `make` is called once, in the process that does the work.
            Each subclass defines it.
        sandboxed: whether the work decodes untrusted files and therefore runs in a sandbox.
    """

    make: ClassVar[Callable[..., Callable[[Any], Any]]]
    sandboxed: ClassVar[bool] = True

    def __init__(self, *, output: str, timeout_factor: float, memory_gib: float, **arguments: Any):
        self._output, self._timeout_factor = output, timeout_factor
        if self.sandboxed:
            # Ray ends the processes of the sandbox before the actor that owns them. The exiting actor would print an
            # error for each of them, so the actor's stderr is redirected to /dev/null at its exit.
            atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)
            self._sandbox = Sandbox(
                processes=1,
                memory_bytes=int(memory_gib * 2**30),
                prepare=partial(_prepare, type(self).make, arguments),
            )
        else:
            self._function = type(self).make(**arguments)

    def work(self, message: Any) -> Iterable[Message]:
        return self.call(message, self.timeout_s(message))

    def call(self, argument: Any, timeout_s: float) -> Any:
        """Call the function that `make` returned, in the sandbox if the stage has one."""
        if not self.sandboxed:
            return self._function(argument)
        return self._sandbox.submit(_do, argument, timeout_s=timeout_s).result()

    def timeout_s(self, message: Video | Probed | Piece) -> float:
        """Return the seconds that the work on one message may take."""
        seconds = 0.0
        if isinstance(message, Piece):
            seconds = (message.end - message.first) / FPS
        if isinstance(message, Probed):
            seconds = message.facts.seconds
        return _BASE_TIMEOUT_S + self._timeout_factor * seconds

    def failed(self, message: Any, error: Exception) -> Ended | Piece:
        """Return the refusal of a message that caused the error, see `refused`.

        Any other error is raised again, so that the next pass over the videos retries the message.
        """
        if refusal := refusal_of(error):
            return self.refused(message, *refusal)
        raise error

    def refused(self, message: Video | Probed | Piece, reason: str, detail: str) -> Ended | Piece:
        """Return the result of a message whose work failed.

        A piece is returned as `failed_piece` makes it. For a video, the function saves the refusal, so that later runs
        do not examine the video again, and returns the message that reports it.

        Args:
            message: the message.
            reason: the reason in one word.
            detail: the reason in one sentence.
        """
        if isinstance(message, Piece):
            return failed_piece(message, reason, detail)
        video, facts = (message, None) if isinstance(message, Video) else (message.video, message.facts)
        return VideoProgress(self._output, video.key).refuse(refused_fate(video, facts, reason, detail))


def refusal_of(error: Exception) -> tuple[str, str] | None:
    """Return the reason (one word, and one sentence) for refusing a file that caused an error.

    Return None if the file did not cause the error.
    """
    match error:
        case Unusable():
            return error.reason, error.detail
        case SandboxError():
            return error.reason, str(error)
        case MemoryError():
            return "too_much_memory", "takes more memory than there is"
        case ValueError():
            return "unreadable", str(error)
    return None


def failed_piece(piece: Piece, reason: str, detail: str) -> Piece:
    """Return a piece whose kept clips are marked as failed. A piece without clips gets one failed clip of its length.

    Args:
        piece: the piece.
        reason: the reason in one word.
        detail: the reason in one sentence.
    """
    clips = piece.clips or (Clip(first=piece.first, end=piece.end),)
    failed = tuple(
        clip.dropped(reason, detail, "failed") if clip.status == "kept" else clip for clip in clips
    )
    return replace(piece, clips=failed)


def refused_fate(video: Video, facts: Facts | None, reason: str, detail: str) -> Fate:
    """Return the fate of a video that cannot be used as a whole.

    Args:
        video: the video.
        facts: facts of the video, None if it could not be probed.
        reason: the reason in one word.
        detail: the reason in one sentence.
    """
    status = "dropped" if reason in _DROPPING_REASONS else "failed"
    end_s = facts.seconds if facts else 0.0
    return fate_of(video, facts, status, reason=reason, detail=one_line(video, detail), end_s=end_s)


def clip_fate(piece: Piece, number: int) -> Fate:
    """Return the fate of a piece's clip.

    Args:
        piece: the piece, with its clips.
        number: number of the clip in the piece, from 0.
    """
    clip = piece.clips[number]
    more: dict[str, Any] = {}
    if measures := clip.measures:
        more |= asdict(measures)
    if sync := clip.sync:
        more |= {"sync_offset": sync.offset_frames, "sync_confidence": sync.confidence}
        more |= {"sync_distance": sync.distance, "syncnet": sync.weights}
    return fate_of(
        piece.video,
        piece.facts,
        clip.status,
        reason=clip.reason,
        detail=one_line(piece.video, clip.detail),
        clip=clip_key(piece, number),
        start_s=clip.first / FPS,
        end_s=clip.end / FPS,
        **more,
    )


def one_line(video: Video, detail: str) -> str:
    """Return a detail as one line of at most 500 characters, in which the video's name replaces its path or URI."""
    detail = detail.removeprefix(f"{video.uri}: ").replace(video.uri, video.name)
    return " ".join(detail.replace(f"{os.path.dirname(video.uri)}/", "").split())[:500]


def clip_key(piece: Piece, number: int) -> str:
    """Return the key of a piece's clip: the key of the video, the number of the piece, and the number of the clip."""
    return f"{piece.video.key}-{piece.number:04d}-{number:02d}"


def _prepare(make: Callable[..., Callable[[Any], Any]], arguments: dict[str, Any]) -> None:
    """Make the function that does a stage's work. The sandbox calls this once in each process that it starts.

    Args:
        make: see `CurationStage`.
        arguments: arguments of `make`.
    """
    global _sandboxed_work
    os.environ["OMP_NUM_THREADS"] = "1"
    _sandboxed_work = make(**arguments)


def _do(argument: Any) -> Any:
    """Call the function that `_prepare` made, in a process of the sandbox."""
    return _sandboxed_work(argument)

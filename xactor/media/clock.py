"""Give packets and frames the times at which a player presents them, also where the file's own clock jumps."""

import logging
from collections import Counter
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from xactor.rates import FPS

_log = logging.getLogger(__name__)

# FFmpeg's flags of formats without times, and of formats whose clock may jump, such as MPEG-TS.
_NO_TIMES, _MAY_JUMP = 0x80, 0x200
# A clock jumps if it goes back by more than this; a smaller step is an overlap. Where packets have no decoding time,
# FFmpeg gives the display time, which goes back too, by the codec's delay.
_MAX_BACK_S = 0.5
# In a format whose clock may jump, a clock that leaps further ahead than this has jumped, as in FFmpeg's own players.
# A smaller step is a gap.
_MAX_AHEAD_S = 10.0
_MAX_JUMPS = 1000
# A track with more packets than these, about a second, is not a remainder.
_MAX_FOLLOWING = 25


def packets(container: InputContainer, stream: Stream, source: object) -> Iterator[Packet]:
    """Yield the packets of one stream with the times at which a player presents them.

    Where the clock of a transport stream jumps, the next part is placed after the end of the last one. The tracks move
    together, so sound and pictures stay in sync although they are read separately.

    Args:
        container: The open file, at its beginning.
        stream: The audio or video stream to read.
        source: Path of the file, or the file, for messages.

    Raises:
        ValueError: The clock of a video goes back in a format whose clock must rise, or the clock jumps more than 1000
            times, or another track of the same type begins where this one ends.
    """
    clock = _Clock(container, source)
    tracks = _tracks(container, stream)
    others: list[Stream] = []
    if container.format.flags & _MAY_JUMP:
        others = [other for other in container.streams if other.type == stream.type and other not in tracks]
    # Where the track ends in the file, where the others begin, and how many packets they have.
    end, begins, counts = 0, {}, Counter()
    for packet in container.demux([*tracks, *others]):
        if packet.stream in others:
            begins.setdefault(packet.stream_index, packet.pos or 0)
            counts[packet.stream_index] += 1
            continue
        clock.correct(packet)
        if packet.stream_index == stream.index:
            end = max(end, packet.pos or 0)
            yield packet
    clock.note()
    if any(begins[index] > end and count > _MAX_FOLLOWING for index, count in counts.items()):
        raise ValueError(
            f"{source}: another {stream.type} track begins where this one ends, as in files that were joined byte by "
            "byte; join them with a tool that writes one track"
        )


def in_time(
    frames: Iterator[VideoFrame], container: InputContainer, stream: VideoStream
) -> Iterator[VideoFrame]:
    """Yield decoded pictures, and set the time of each. A picture without a time follows the one before it."""
    is_avi = container.format.name == "avi"
    delay, following = 0, stream.start_time or 0
    for number, frame in enumerate(frames):
        time_base = frame.time_base or stream.time_base
        assert time_base is not None
        length = frame.duration
        if is_avi:
            # AVI gives the times at which packets are decoded. Their display times are FFmpeg's guesses, which are
            # wrong for h264 with B-frames, except in a keyframe.
            if number == 0 and frame.pts is not None and frame.dts is not None:
                delay = frame.dts - frame.pts
            frame.pts = None if frame.dts is None else frame.dts - delay
            length = 0
        frame.pts, frame.time_base = following if frame.pts is None else frame.pts, time_base
        following = frame.pts + (length or round(usual_s(stream) / time_base))
        yield frame


def usual_s(stream: VideoStream, fps: float = FPS) -> float:
    """Return the duration in seconds that a frame is assumed to have if the file gives none for it.

    The value follows from the stream's average rate, or from `fps` if the stream has no average rate.
    """
    return float(1 / stream.average_rate) if stream.average_rate else 1 / fps


def can_seek(container: InputContainer) -> bool:
    """Return whether a time leads to one place in the file: its format has times, and they only rise."""
    return not container.format.flags & (_NO_TIMES | _MAY_JUMP)


def duration_s(container: InputContainer, source: object, max_s: float) -> float:
    """Return the length of a file in seconds, or any larger number than `max_s` if it is longer.

    The length is that in the header. A format whose clock may jump has none there, so all packets are read.

    Args:
        container: The open file, at its beginning.
        source: Path of the file, or the file, for messages.
        max_s: Maximum length that is of interest.

    Raises:
        ValueError: See `packets`.
    """
    if container.duration and not container.format.flags & _MAY_JUMP:
        return container.duration / av.time_base
    clock = _Clock(container, source)
    start_s = (container.start_time or 0) / av.time_base
    for packet in container.demux(_tracks(container)):
        clock.correct(packet)
        if clock.end_s - start_s > max_s:
            break
    return max(clock.end_s - start_s, 0.0)


class _Clock:
    """Correct the times of packets where the clock of a file jumps.

    The file consists of parts, and the times of a part are shifted by one number for all streams. At a jump, the
    packets of one stream may still belong to the old part while those of another already belong to the new one.

    Attributes:
        end_s: End of the packets so far in decoding order, in seconds.
    """

    def __init__(self, container: InputContainer, source: object):
        self.end_s = float("-inf")
        self._source, self._has_pictures = source, container.streams.best("video") is not None
        self._may_jump = bool(container.format.flags & _MAY_JUMP)
        # Seconds that are added to the times of each part.
        self._shifts = [0.0]
        # Of each stream: the number of its part, and the end of its last packet in decoding order.
        self._part: dict[int, int] = {}
        self._due_s: dict[int, float] = {}
        self._first_jump = ""

    def correct(self, packet: Packet) -> None:
        """Set the packet's times to those at which it is presented. Call it for the packets in the file's order."""
        if packet.time_base is None or (packet.pts is None and packet.dts is None):
            return
        stream = packet.stream
        tick_s = float(packet.time_base)
        length_s = (packet.duration or 0) * tick_s
        if not length_s and isinstance(stream, VideoStream):
            length_s = usual_s(stream)
        if packet.dts is not None:
            self._find_part(stream.index, packet.dts * tick_s)
        shift_s = self._shifts[self._part.get(stream.index, 0)]
        if shift_s:
            shift = round(shift_s / tick_s)
            packet.pts = None if packet.pts is None else packet.pts + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
        decoded = packet.pts if packet.dts is None else packet.dts
        assert decoded is not None
        if packet.dts is not None:
            self._due_s[stream.index] = decoded * tick_s + length_s
        self.end_s = max(self.end_s, decoded * tick_s + length_s)

    def _find_part(self, stream: int, decoded_s: float) -> None:
        """Find the part of a stream's next packet, and begin a new part if there is none.

        Args:
            stream: Index of the stream.
            decoded_s: Time at which the packet is decoded, on the file's own clock.
        """
        last = self._part.get(stream, 0)
        candidates = range(last, len(self._shifts))
        part = min(candidates, key=lambda number: abs(decoded_s + self._shifts[number] - self.end_s))
        placed_s = decoded_s + self._shifts[part]
        # In a part that another stream began, this stream may begin earlier, within the overlap of the streams.
        goes_back = part == last and placed_s < self._due_s.get(stream, placed_s) - _MAX_BACK_S
        leaps_ahead = self._may_jump and placed_s > self.end_s + _MAX_AHEAD_S and self._due_s
        if goes_back or leaps_ahead:
            part = self._other_part(last, decoded_s, self._due_s.get(stream, self.end_s))
        self._part[stream] = part

    def _other_part(self, last: int, decoded_s: float, due_s: float) -> int:
        """Return the part of a packet that does not follow the stream's last one.

        Args:
            last: Part of the stream's last packet.
            decoded_s: Time at which the packet is decoded, on the file's own clock.
            due_s: End of the stream's last packet.
        """
        # A damaged packet may have had a wrong time, and this one has a right one again.
        for number in range(last):
            if abs(decoded_s + self._shifts[number] - due_s) < _MAX_BACK_S:
                return number
        jump = f"from {due_s - self._shifts[last]:.2f} to {decoded_s:.2f} s"
        if not self._may_jump and self._has_pictures:
            # A seek would find the pictures of one part only.
            raise ValueError(
                f"{self._source}: the clock jumps {jump}, as in files that were joined byte by byte; "
                "join them with a tool that writes one clock"
            )
        if len(self._shifts) > _MAX_JUMPS:
            raise ValueError(f"{self._source}: the clock jumps more than {_MAX_JUMPS} times")
        self._first_jump = self._first_jump or jump
        self._shifts.append(self.end_s - decoded_s)
        return len(self._shifts) - 1

    def note(self) -> None:
        """Log that the clock jumped, if it did."""
        jumps = len(self._shifts) - 1
        if jumps:
            _log.warning(
                "%s: the clock jumps, first %s (jumps: %d): the parts are placed one after another",
                self._source,
                self._first_jump,
                jumps,
            )


def _tracks(container: InputContainer, stream: Stream | None = None) -> list[Stream]:
    """Return the tracks that a player plays, and `stream`."""
    tracks = [container.streams.best("video"), container.streams.best("audio"), stream]
    return list({track.index: track for track in tracks if track is not None}.values())

"""Sound and pictures in and out of files, through PyAV alone: no system ffmpeg is needed.

Time 0 is where a player would start the file, for sound and pictures alike, so that what is read stays in step
whichever of the two begins first.
"""

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame

_log = logging.getLogger(__name__)

# Sound that a file's clock jumps over is silence; smaller steps are rounding in the container.
_GAP_S = 0.05
# A damaged packet is a gap; more than so many of them (and 1 %) are a corrupt file.
_FORGIVEN_PACKETS = 3


def read_audio(source: str | Path, sample_rate_hz: int = 16_000) -> np.ndarray:
    """The sound of any file PyAV reads, video included: float32 [N], mono, in [-1, 1].

    Several channels are mixed down. Raises ValueError naming the file when it cannot be decoded, has no audio
    track, or holds no sound.
    """
    with _open(source) as container:
        if not container.streams.audio:
            raise ValueError(f"{source}: no audio track")
        resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate_hz)
        origin_s = _origin_s(container)
        pieces: list[np.ndarray] = []
        written = surplus = 0.0
        for frame in _decode(container, container.streams.audio[0], source):
            assert isinstance(frame, AudioFrame)
            if frame.time is not None:
                due = round((frame.time - origin_s) * sample_rate_hz)
                # The resampler holds some samples back: what it has taken in is what counts.
                behind = due - written
                if behind > _GAP_S * sample_rate_hz:
                    pieces += [_plane(out) for out in resampler.resample(None)]
                    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate_hz)
                    done = sum(map(len, pieces))
                    pieces.append(np.zeros(max(due - done, 0), np.float32))
                    written = max(due, done)
            written += frame.samples * sample_rate_hz / frame.sample_rate
            # Codecs fill their last block up; the container says how much of it is sound.
            length_s = (
                float(frame.duration * frame.time_base) if frame.duration and frame.time_base else np.inf
            )
            surplus = frame.samples / frame.sample_rate - length_s
            frame.pts = None
            pieces += [_plane(out) for out in resampler.resample(frame)]
        if not written:
            raise ValueError(f"{source}: the audio track is empty")
        pieces += [_plane(out) for out in resampler.resample(None)]
    samples = np.concatenate(pieces)
    if surplus > 1e-3:
        samples = samples[: max(len(samples) - round(surplus * sample_rate_hz), 1)]
    return np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0)


def read_frames(source: str | Path, fps: float = 25) -> Iterator[np.ndarray]:
    """The pictures of a video at a steady rate: frame n is the one nearest in time to n / fps, uint8 [H, W, 3] RGB.

    Whatever the source's rate, also a variable one; upright where the file says how it was held. The count is
    round(duration x fps). Raises ValueError naming the file when it cannot be decoded or has no pictures.
    """
    with _open(source) as container:
        if not container.streams.video:
            raise ValueError(f"{source}: no video track")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.thread_count = 1
        origin_s = _origin_s(container)
        usual_s = float(1 / stream.average_rate) if stream.average_rate else 1 / fps
        n = 0
        before: VideoFrame | None = None
        before_s = end_s = 0.0
        picture: np.ndarray | None = None
        for frame in _decode(container, stream, source):
            assert isinstance(frame, VideoFrame)
            now_s = end_s if frame.time is None else frame.time - origin_s
            # Until half way to this frame, the one before is nearer.
            while before is not None and n / fps < (before_s + now_s) / 2:
                picture = _upright(before) if picture is None else picture
                yield picture
                n += 1
            before, before_s, picture = frame, now_s, None
            length_s = (
                float(frame.duration * frame.time_base) if frame.duration and frame.time_base else usual_s
            )
            end_s = now_s + length_s
        if before is None:
            raise ValueError(f"{source}: the video track is empty")
        picture = _upright(before)
        while n < max(round(end_s * fps), 1):
            yield picture
            n += 1


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    *,
    fps: int = 25,
    samples: np.ndarray,
    sample_rate_hz: int = 16_000,
    crf: int = 18,
    preset: str = "veryfast",
    metadata: dict[str, str] | None = None,
) -> int:
    """Frames uint8 [H, W, 3] and sound float32 [N] mono to an h264 + aac mp4; returns the number of frames.

    The index stands in front (faststart). The file appears whole or not at all. One thread, so the same input
    gives the same bytes. H and W must be even (yuv420p). No samples give a video without an audio track.
    """
    path = Path(path)
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if samples.ndim != 1:
        raise ValueError(f"samples must be mono [N], got shape {samples.shape}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        written = _mux(partial, frames, fps, samples, sample_rate_hz, crf, preset, metadata or {})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return written


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Mono float32 [N] at one rate to [about N x to / from] at another."""
    if from_hz == to_hz or not samples.size:
        return np.asarray(samples, dtype=np.float32)
    resampler = av.AudioResampler(format="flt", layout="mono", rate=to_hz)
    frame = AudioFrame.from_ndarray(
        np.ascontiguousarray(samples, np.float32)[None], format="flt", layout="mono"
    )
    frame.sample_rate = from_hz
    return np.concatenate([_plane(out) for part in (frame, None) for out in resampler.resample(part)])


def _mux(partial, frames, fps, samples, sample_rate_hz, crf, preset, metadata) -> int:
    with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata.update(metadata)
        video = container.add_stream("libx264", rate=fps)
        video.pix_fmt = "yuv420p"
        video.options = {"crf": str(crf), "preset": preset, "threads": "1"}
        # Without sound there is no track for it: an empty one is no file that players like.
        audio = container.add_stream("aac", rate=sample_rate_hz, layout="mono") if len(samples) else None
        if audio is not None:
            assert isinstance(audio, AudioStream)
            audio.bit_rate = 64_000 if sample_rate_hz <= 24_000 else 128_000
            audio.codec_context.time_base = Fraction(1, sample_rate_hz)
        heard = 0

        def speak(until: int) -> None:
            nonlocal heard
            for start in range(heard, until, 1024):
                block = samples[start : min(start + 1024, len(samples))]
                sound = AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = (
                    sample_rate_hz,
                    start,
                    Fraction(1, sample_rate_hz),
                )
                assert audio is not None
                container.mux(audio.encode(sound))
                heard = start + len(block)

        count = 0
        for picture in frames:
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
                raise ValueError(f"a frame must be uint8 [H, W, 3], got {picture.dtype} {picture.shape}")
            height, width = picture.shape[:2]
            if count == 0:
                if height % 2 or width % 2:
                    raise ValueError(f"frames must have even height and width, got {height}x{width}")
                video.width, video.height = width, height
            elif (width, height) != (video.width, video.height):
                raise ValueError(
                    f"frame {count} is {height}x{width}, the first was {video.height}x{video.width}"
                )
            shot = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            shot.pts, shot.time_base = count, Fraction(1, fps)
            container.mux(video.encode(shot))
            count += 1
            # In step with the pictures, so that a player need not seek; whole blocks but for the last.
            speak(min(count * sample_rate_hz // fps, len(samples)) // 1024 * 1024)
        if not count:
            raise ValueError("a video needs at least one frame, got none")
        speak(len(samples))
        container.mux(video.encode(None))
        if audio is not None:
            container.mux(audio.encode(None))
    return count


@contextmanager
def _open(source: str | Path) -> Iterator[InputContainer]:
    try:
        container = av.open(str(source))
    except (FFmpegError, ValueError) as error:
        if not Path(source).exists():
            raise ValueError(f"{source}: no such file") from error
        empty = Path(source).is_file() and Path(source).stat().st_size == 0
        raise ValueError(
            f"{source}: {'the file is empty' if empty else f'cannot be decoded ({error})'}"
        ) from error
    with container:
        yield container


def _decode(container: InputContainer, stream, source) -> Iterator[AudioFrame | VideoFrame]:
    packets = bad = 0
    last: Exception | None = None
    try:
        for packet in container.demux(stream):  # the last one is empty and flushes the decoder
            packets += 1
            try:
                frames = packet.decode()
            except FFmpegError as error:
                bad, last = bad + 1, error
                continue
            yield from frames  # type: ignore[misc]
    except FFmpegError as error:
        raise ValueError(f"{source}: corrupt ({error})") from error
    if bad > max(_FORGIVEN_PACKETS, packets // 100) or (bad and bad >= packets - 1):
        raise ValueError(f"{source}: corrupt ({bad} of {packets} packets cannot be decoded: {last})")
    # An mp4's index tells how many packets there are to be.
    expected = stream.frames if "mp4" in container.format.name else 0
    if packets - 1 < 0.9 * expected:
        raise ValueError(f"{source}: truncated (it ends after {packets - 1} of {expected} packets)")
    if bad:
        _log.warning("%s: %d of %d packets could not be decoded and were left out", source, bad, packets)


def _origin_s(container: InputContainer) -> float:
    return (container.start_time or 0) / av.time_base


def _plane(frame: AudioFrame) -> np.ndarray:
    return frame.to_ndarray().reshape(-1)


def _upright(frame: VideoFrame) -> np.ndarray:
    picture = frame.to_ndarray(format="rgb24")  # [H, W, 3]
    turns = round(frame.rotation / 90) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture

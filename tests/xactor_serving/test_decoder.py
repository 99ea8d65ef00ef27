"""Test that uploads are decoded in separate processes, and that bad ones are refused."""

import asyncio
import re
import resource
import zlib
from multiprocessing import active_children

import av
import numpy as np
import pytest
from client import png, wav
from PIL import Image
from sounds import index_bomb, write_sound

from xactor.decoding import FaceCrop
from xactor.media import Sound
from xactor_serving.decoder import Decoder
from xactor_serving.errors import ServiceError


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder(processes=1, timeout_s=30)
    yield decoder
    decoder.close()


def face_of(decoder: Decoder, image: bytes, *, paste_back: bool = False) -> FaceCrop:
    return asyncio.run(decoder.face(image, size=64, paste_back=paste_back))


def sound_of(decoder: Decoder, folder, audio: bytes, *, max_seconds: float = 5) -> np.ndarray:
    (folder / "audio").write_bytes(audio)
    return asyncio.run(decoder.sound(folder / "audio", track=folder / "track", max_seconds=max_seconds))


def test_a_portrait_is_decoded(decoder, face):
    found = face_of(decoder, face, paste_back=True)
    assert found.square.shape == (64, 64, 3)
    assert found.picture.shape == (256, 256, 3)
    assert found.box.paste(found.picture, found.square).shape == (256, 256, 3)
    assert len(face_of(decoder, face).picture) == 0


def test_a_sound_is_decoded_at_16_khz(decoder, tmp_path):
    assert abs(len(sound_of(decoder, tmp_path, wav(1.5, 44_100))) - 24_000) < 20


def bomb() -> bytes:
    """Return a small PNG file whose header claims 30,000 x 30,000 px."""
    small = bytearray(png(np.zeros((1, 1, 3), np.uint8)))
    small[16:24] = (30_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


def flat() -> bytes:
    """Return a picture without a face."""
    return png(np.asarray(Image.new("RGB", (200, 200), "grey")))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "image: it is empty"),
        (b"no picture at all", "image: not a picture"),
        (bomb(), "image: .*megapixels"),
        (flat(), "image: no face is found"),
        (png(np.zeros((1, 1, 3), np.uint8)), "image: sides must be at least 32 px, got 1x1"),
    ],
    ids=["empty", "text", "bomb", "no face", "one pixel"],
)
def test_bad_pictures_are_refused(decoder, image, says):
    with pytest.raises(ServiceError) as error:
        face_of(decoder, image)
    assert error.value.status == 400
    assert error.value.code == "bad_input"
    assert re.search(says, error.value.message), error.value.message


@pytest.mark.parametrize(
    ("audio", "status", "says"),
    [
        (b"", 400, "audio: the file is empty"),
        (b"RIFFnothing", 400, "audio: cannot be decoded"),
        (wav(0.01), 400, "audio: 10 ms of sound are too short"),
        (wav(6), 413, "audio: longer than 5 s"),
    ],
    ids=["empty", "damaged", "short", "long"],
)
def test_bad_sounds_are_refused(decoder, tmp_path, audio, status, says):
    with pytest.raises(ServiceError) as error:
        sound_of(decoder, tmp_path, audio)
    assert error.value.status == status
    assert error.value.message.startswith(says)
    assert str(tmp_path) not in error.value.message


def test_a_bomb_costs_memory_in_the_decoding_process_only(decoder, tmp_path):
    """The sound of the bomb is good. So a video is made from it, but only of what the decoding process has written."""
    before = peak_mib()
    samples = sound_of(decoder, tmp_path, index_bomb())
    assert abs(len(samples) - 16_000) < 2000
    track = Sound.of(tmp_path / "track")
    assert abs(sum(map(len, track.blocks(16_000, "mono"))) - len(samples)) < 10
    assert peak_mib() - before < 200
    assert Sound.of(tmp_path / "audio").sample_rate_hz == 16_000
    # The bomb is one.
    assert peak_mib() - before > 200


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.mark.parametrize(
    ("layout", "rate_hz"), [("mono", 16_000), ("stereo", 44_100), ("3.0", 48_000), ("5.1", 48_000)]
)
def test_the_track_is_the_sound_itself(decoder, tmp_path, layout, rate_hz):
    path = write_sound(tmp_path / "sound.wav", 1, rate_hz=rate_hz, layout=layout)
    sound_of(decoder, tmp_path, path.read_bytes())
    track, sound = Sound.of(tmp_path / "track"), Sound.of(path)
    assert track.sample_rate_hz == rate_hz
    assert av.AudioLayout(track.layout).nb_channels == av.AudioLayout(layout).nb_channels
    ours, theirs = (np.concatenate([*one.blocks(rate_hz, layout)]) for one in (track, sound))
    np.testing.assert_array_equal(ours, theirs)


def test_a_track_larger_than_stereo_of_the_maximum_length_is_refused(decoder, tmp_path):
    """Silence of many channels is a small file that would fill the disk."""
    silence = np.zeros(5 * 96_000, np.float32)
    path = write_sound(tmp_path / "quiet.flac", rate_hz=96_000, layout="5.1", codec="flac", samples=silence)
    assert path.stat().st_size < 50_000
    with pytest.raises(ServiceError) as error:
        sound_of(decoder, tmp_path, path.read_bytes())
    assert (error.value.status, error.value.code) == (413, "too_large")
    assert error.value.message == "audio: 5.1 at 96000 Hz takes more than 0.9 MiB, the maximum"


def test_a_lost_process_is_the_services_fault(decoder, face):
    """Kill the idle process, as the kernel may if memory is short. A picture that comes next is decoded."""
    for _ in range(2):
        [process] = active_children()
        process.kill()
        assert face_of(decoder, face).square.shape == (64, 64, 3)
    decoder.check()

    async def decode_and_kill() -> None:
        """Kill every process that decodes the picture."""
        decoding = asyncio.ensure_future(decoder.face(face, size=64, paste_back=False))
        while not decoding.done():
            for process in active_children():
                process.kill()
            await asyncio.sleep(0.001)
        await decoding

    with pytest.raises(ServiceError) as error:
        asyncio.run(decode_and_kill())
    assert (error.value.status, error.value.code) == (503, "broken")
    assert error.value.headers()["Retry-After"]
    assert face_of(decoder, face).square.shape == (64, 64, 3)


def test_decoding_of_a_slow_file_is_stopped_and_the_next_file_is_decoded(face, tmp_path):
    decoder = Decoder(processes=1, timeout_s=0.001)
    try:
        with pytest.raises(ServiceError) as error:
            # To decode 900 s of sound takes seconds.
            sound_of(decoder, tmp_path, wav(900), max_seconds=1000)
        assert "takes longer than 0.001 s" in error.value.message
        decoder._pool._timeout_s = 60
        assert face_of(decoder, face).square.shape == (64, 64, 3)
    finally:
        decoder.close()

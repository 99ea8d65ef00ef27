"""Test that uploads are decoded in separate processes, and that bad ones are refused."""

import asyncio
import re
import zlib
from multiprocessing import active_children

import numpy as np
import pytest
from client import png, wav
from PIL import Image

from xactor.decoding import FaceCrop
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
    return asyncio.run(decoder.sound(folder / "audio", max_seconds=max_seconds))


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

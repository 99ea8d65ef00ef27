"""What users send is decoded elsewhere, and what cannot be is refused by name."""

import asyncio
import re
import zlib

import numpy as np
import pytest
from client import png, wav
from PIL import Image

from serving.decoding import Decoder
from serving.errors import ServiceError


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder(processes=1, timeout_s=30)
    yield decoder
    decoder.close()


def decode(decoder: Decoder, image: bytes, audio, **options):
    options = {"size": 64, "max_seconds": 5, "paste_back": False, **options}
    return asyncio.run(decoder.decode(image, audio, **options))


def test_a_portrait_and_a_sound(decoder, face, tmp_path):
    (tmp_path / "audio").write_bytes(wav(1.5, 44_100))
    found = decode(decoder, face, tmp_path / "audio", paste_back=True)
    assert found.square.shape == (64, 64, 3)
    assert abs(len(found.samples) - 24_000) < 20
    assert found.picture.shape == (256, 256, 3)
    assert found.box.paste(found.picture, found.square).shape == (256, 256, 3)


def test_without_sound(decoder, face):
    found = decode(decoder, face, None)
    assert len(found.samples) == 0
    assert len(found.picture) == 0


def bomb() -> bytes:
    """A png of 30,000 x 30,000 px in a few kilobytes."""
    small = bytearray(png(np.zeros((1, 1, 3), np.uint8)))
    small[16:24] = (30_000).to_bytes(4, "big") * 2
    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


def flat() -> bytes:
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
def test_bad_pictures(decoder, image, says):
    with pytest.raises(ServiceError) as error:
        decode(decoder, image, None)
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
def test_bad_sounds(decoder, face, tmp_path, audio, status, says):
    (tmp_path / "audio").write_bytes(audio)
    with pytest.raises(ServiceError) as error:
        decode(decoder, face, tmp_path / "audio")
    assert error.value.status == status
    assert error.value.message.startswith(says)
    assert str(tmp_path) not in error.value.message


def test_what_takes_too_long_is_killed_and_the_next_is_served(face, tmp_path):
    (tmp_path / "audio").write_bytes(wav(4))
    decoder = Decoder(processes=1, timeout_s=0.001)
    try:
        with pytest.raises(ServiceError) as error:
            decode(decoder, face, tmp_path / "audio")
        assert "within 0.001 s" in error.value.message
        decoder._pool._timeout_s = 60
        assert decode(decoder, face, None).square.shape == (64, 64, 3)
    finally:
        decoder.close()

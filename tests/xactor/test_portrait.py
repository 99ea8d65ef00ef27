"""Test that pictures of every kind are read and that their faces are found, on a real photograph."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageCms

from xactor.controls import CONTROL_COUNT
from xactor.faces import CropBox, FaceLandmarker, crop_box
from xactor.faces.follower import _square_corners
from xactor.portrait import find_portrait, read_image
from xactor_platform.demo_corpus.identity import render_frame, training_identities

# Rows and columns of the photograph that show the head and its surroundings.
HEAD = slice(0, 256), slice(96, 352)


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="module")
def landmarker() -> FaceLandmarker:
    return FaceLandmarker(max_faces=5)


@pytest.fixture(scope="module")
def head(astronaut) -> Image.Image:
    return Image.fromarray(astronaut[HEAD])


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


class TestReading:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG"])
    def test_every_format_is_read(self, head, kind):
        assert difference(read_image(encoded(head, kind)), np.asarray(head)) < 4

    @pytest.mark.parametrize("source", ["path", "str", "bytes", "image"])
    def test_every_kind_of_source_is_read(self, head, tmp_path, source):
        path = tmp_path / "face.png"
        head.save(path)
        given = {"path": path, "str": str(path), "bytes": path.read_bytes(), "image": head}[source]
        read = read_image(given)
        assert read.dtype == np.uint8
        assert np.array_equal(read, np.asarray(head))

    def test_colours_come_back_from_cmyk_and_palettes(self, head):
        cmyk = read_image(encoded(head.convert("CMYK"), "JPEG", quality=95))
        assert difference(cmyk, np.asarray(head)) < 4
        palette = read_image(encoded(head.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"))
        assert difference(palette, np.asarray(head)) < 6

    def test_sixteen_bits_and_fractions_become_eight_bits(self, head):
        grey = np.asarray(head.convert("L"))
        deep = Image.fromarray(grey.astype(np.uint16) * 257)
        assert deep.mode == "I;16"
        for kind in ("PNG", "TIFF"):
            assert np.array_equal(read_image(encoded(deep, kind))[..., 1], grey)
        for values in (grey / np.float32(255), grey.astype(np.float32)):
            assert np.array_equal(read_image(encoded(Image.fromarray(values), "TIFF"))[..., 2], grey)

    def test_transparency_is_blended_with_white(self, head):
        see_through = head.copy()
        see_through.putalpha(Image.linear_gradient("L"))  # transparent at the top, opaque at the bottom
        read = read_image(encoded(see_through, "PNG"))
        assert read[0].min() == 255
        assert np.array_equal(read[-1], np.asarray(head)[-1])
        assert difference(read[128], (np.asarray(head)[128].astype(int) + 255) / 2) < 2
        palette = head.quantize(16)
        clear = palette.getpixel((5, 5))
        assert tuple(read_image(encoded(palette, "PNG", transparency=clear))[5, 5]) == (255, 255, 255)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_pictures_are_turned_upright(self, head, orientation):
        # The turn that undoes each orientation of EXIF.
        undo = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        stored = head.transpose(undo[orientation]) if orientation in undo else head
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert np.array_equal(read_image(encoded(stored, "PNG", exif=exif)), np.asarray(head))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_colours_of_another_space_become_srgb(self, head, kind):
        """Read a picture in a colour space in which red and green have changed places."""
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        swapped = (
            profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)
        )
        swapped = swapped.replace("sRGB".encode("utf-16-be"), "sGRB".encode("utf-16-be"))
        options = {"lossless": True} if kind == "WEBP" else {}
        found = read_image(encoded(head, kind, icc_profile=swapped, **options))
        assert difference(found, np.asarray(head)[..., [1, 0, 2]]) < 6
        for unchanged in (profile, b"damaged" * 30):
            found = read_image(encoded(head, kind, icc_profile=unchanged, **options))
            assert np.array_equal(found, read_image(encoded(head, kind, **options)))
        if kind == "PNG":
            see_through = head.copy()
            see_through.putalpha(Image.linear_gradient("L").resize(head.size))
            blended = read_image(encoded(see_through, kind, icc_profile=swapped))
            assert difference(blended, read_image(encoded(see_through, kind))[..., [1, 0, 2]]) < 6

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
    def test_the_first_frame_of_an_animation_is_used(self, head, kind):
        black = Image.new("RGB", head.size)
        data = encoded(head, kind, save_all=True, append_images=[black, black])
        assert Image.open(io.BytesIO(data)).n_frames > 1
        assert difference(read_image(data), np.asarray(head)) < 8

    def test_long_sides_are_reduced(self, tmp_path):
        path = tmp_path / "wide.png"
        Image.linear_gradient("L").resize((20_000, 400)).save(path)
        assert read_image(path).shape == (82, 4096, 3)

    def test_too_many_pixels_are_refused_before_they_are_decoded(self, tmp_path):
        path = tmp_path / "bomb.png"
        data = bytearray(encoded(Image.new("L", (64, 64)), "PNG"))
        for side in (9_500, 20_000):  # false sizes in the header; Pillow itself refuses the second
            data[16:24] = struct.pack(">II", side, side)
            path.write_bytes(data)
            _correct_checksum(path)
            with pytest.raises(ValueError, match=r"bomb\.png: .*89 megapixels"):
                read_image(path)
        with pytest.raises(ValueError, match="10000x9000 px are more than 89 megapixels"):
            read_image(Image.new("1", (10_000, 9_000)))

    def test_a_too_small_picture_is_refused(self, tmp_path):
        path = tmp_path / "dot.png"
        Image.new("RGB", (1, 1)).save(path)
        with pytest.raises(ValueError, match=r"dot\.png: sides must be at least 32 px, got 1x1"):
            read_image(path)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
    def test_a_truncated_picture_is_named(self, head, tmp_path, kind):
        whole = encoded(head, kind)
        path = tmp_path / f"half.{kind.lower()}"
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"half\.\w+: "):
            read_image(path)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("empty.jpg", b"", "it is empty"),
            ("noise.jpg", b"\x93noise" * 99, "not a picture of any format"),
            ("missing.jpg", None, "no such file"),
        ],
    )
    def test_files_that_are_not_pictures_are_named(self, tmp_path, name, content, message):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: {message}"):
            read_image(path)

    def test_a_picture_of_an_iphone_is_read(self, tmp_path):
        """drawn.heic shows a drawn person with a neutral face, in 128 x 128 px."""
        file = Path(__file__).with_name("drawn.heic")
        truth = render_frame(training_identities(4)[0], np.zeros(CONTROL_COUNT, np.float32), 128)
        for source in (file, file.read_bytes()):
            assert np.abs(read_image(source).astype(int) - truth).mean() < 4
        (tmp_path / "cut.heic").write_bytes(file.read_bytes()[:1500])
        with pytest.raises(ValueError, match=r"cut\.heic: damaged or truncated|cut\.heic: not a picture"):
            read_image(tmp_path / "cut.heic")

    @pytest.mark.parametrize("kind", ["EPS", "PCD", "SUN"])
    def test_formats_that_are_not_listed_are_refused(self, head, monkeypatch, kind):
        """For EPS, Pillow would start Ghostscript on the file, where it is installed."""
        started = []
        monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: started.append(1))
        heads = {"PCD": b"PCD_" * 1000, "SUN": b"\x59\xa6\x6a\x95" + bytes(4000)}
        content = heads.get(kind) or encoded(head, kind)
        with pytest.raises(ValueError, match="not a picture of any format that is read: AVIF, BMP, "):
            read_image(content)
        assert not started

    def test_a_folder_in_place_of_a_picture_is_named(self, tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            read_image(tmp_path)

    def test_a_raw_file_is_not_mistaken_for_its_preview(self, head, tmp_path):
        path = tmp_path / "shot.dng"
        path.write_bytes(encoded(head, "TIFF", tiffinfo={254: 1}))
        with pytest.raises(ValueError, match=r"shot\.dng: a camera's raw file"):
            read_image(path)


def _correct_checksum(path: Path) -> None:
    """Correct the checksum of a PNG's first chunk."""
    import zlib

    data = bytearray(path.read_bytes())
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


class TestPortrait:
    def test_the_face_of_a_photograph_is_found(self, astronaut, landmarker):
        found = find_portrait(astronaut, landmarker)
        assert found.notes == ()
        middle = found.box.left + found.box.side / 2, found.box.top + found.box.side / 2
        assert middle == pytest.approx((225, 124), abs=6)
        assert found.box.side == pytest.approx(180, abs=12)

    def test_a_picture_without_a_face_is_refused(self, landmarker):
        with pytest.raises(ValueError, match="no face is found in the picture of 300x200 px"):
            find_portrait(np.full((200, 300, 3), 128, np.uint8), landmarker)

    def test_the_larger_of_two_faces_is_used(self, head, landmarker):
        both = np.full((300, 480, 3), 200, np.uint8)
        both[20:276, 200:456] = head
        both[60:220, 10:170] = head.resize((160, 160))
        found = find_portrait(both, landmarker)
        assert found.box.left > 190
        assert found.notes == ("2 faces are found, the largest is used",)

    @pytest.mark.parametrize(("turns", "degrees"), [(1, 90), (2, 180), (3, 90)])
    def test_a_turned_picture_is_turned_upright(self, astronaut, landmarker, turns, degrees):
        found = find_portrait(np.ascontiguousarray(np.rot90(astronaut, turns)), landmarker)
        assert np.array_equal(found.picture, astronaut)
        assert found.notes == (f"the picture is turned by {degrees} degrees, so that the face is upright",)

    def test_a_face_at_the_border_is_noted(self, astronaut, landmarker):
        cut = np.ascontiguousarray(astronaut[:, 205:])  # at her right eye
        found = find_portrait(cut, landmarker)
        assert "past the picture's border" in found.notes[0]
        assert found.box.left < 0
        patch = found.box.cut(cut, 64)
        assert np.array_equal(patch[:, 0], patch[:, 5])  # the edge, repeated

    @pytest.mark.parametrize(
        ("height", "width", "side"), [(1080, 1920, 960), (700, 1000, 500), (300, 300, 400)]
    )
    def test_squares_of_a_search_cover_the_picture(self, height, width, side):
        covered = np.zeros((height, width), bool)
        for top, left in _square_corners(covered, side):
            covered[top : top + side, left : left + side] = True
        assert covered.all()

    @pytest.mark.slow
    @pytest.mark.parametrize("place", [(900, 1400), (1500, 100), (260, 700)])
    def test_a_small_face_in_a_large_picture_is_found(self, head, landmarker, place):
        large = np.full((1800, 2400, 3), 160, np.uint8)
        top, left = place
        large[top : top + 256, left : left + 256] = head
        box = find_portrait(large, landmarker).box
        near = find_portrait(np.asarray(head), landmarker).box
        expected = (near.left + left, near.top + top, near.side)
        assert (box.left, box.top, box.side) == pytest.approx(expected, abs=14)


class TestCropBox:
    def test_a_clip_has_one_steady_box(self, astronaut, landmarker):
        frames = [np.roll(astronaut, (step, -step), (0, 1)) for step in (0, 4, 40)]
        faces = [landmarker.detect(frame)[0] for frame in frames]
        alone = [crop_box(face) for face in faces]
        steady = crop_box(faces)
        assert alone[0].top < alone[1].top < alone[2].top
        assert (steady.left, steady.top) == pytest.approx((alone[1].left, alone[1].top), abs=2)
        with pytest.raises(ValueError, match="no faces"):
            crop_box([])

    def test_whole_pixels_are_cut_unchanged(self, astronaut):
        assert np.array_equal(CropBox(left=96, top=0, side=256).cut(astronaut, 256), astronaut[HEAD])

    @pytest.mark.parametrize("size", [16, 37, 64])
    def test_shrinking_averages_and_keeps_its_place(self, size):
        x = np.linspace(0, 255, 200)
        ramp = np.repeat(np.broadcast_to(x, (200, 200))[..., None], 3, 2)
        noisy = (
            np.rint(ramp + np.random.default_rng(0).normal(0, 20, ramp.shape)).clip(0, 255).astype(np.uint8)
        )
        small = CropBox(left=20, top=20, side=160).cut(noisy, size).astype(float)
        expected = np.interp(20 + (np.arange(size) + 0.5) * 160 / size - 0.5, np.arange(200), x)
        middle = slice(size // 4, -size // 4)
        assert abs((small.mean(axis=(0, 2)) - expected)[middle].mean()) < 0.4
        # Averaging over (160 / size)^2 pixels divides the noise, whose deviation is 20, by 160 / size.
        assert (small - expected[None, :, None])[:, middle].std() < 20 / (160 / size) * 1.6

    def test_a_cut_square_pasted_back_gives_the_picture(self, astronaut):
        for box in (CropBox(left=120, top=40, side=201), CropBox(left=-60, top=-40, side=301)):
            patch = box.cut(astronaut, box.side)
            assert np.array_equal(box.paste(astronaut, patch), astronaut)

    def test_a_patch_fades_into_the_picture(self):
        picture, patch = np.zeros((100, 120, 3), np.uint8), np.full((32, 32, 3), 200, np.uint8)
        pasted = CropBox(left=20, top=10, side=60).paste(picture, patch)
        assert not picture.any()
        assert (pasted[30:50, 40:60] == 200).all()
        edge = pasted[40, 20:26, 0].astype(int)
        assert (np.diff(edge) > 0).all()
        assert edge[0] < 40
        pasted[10:70, 20:80] = 0
        assert not pasted.any()

    @pytest.mark.parametrize("corner", [(-30, -30), (90, 70), (-200, 0), (300, 300)])
    def test_a_box_may_reach_past_the_border(self, corner):
        picture = np.random.default_rng(1).integers(0, 255, (100, 120, 3), np.uint8)
        box = CropBox(left=corner[0], top=corner[1], side=60)
        assert box.cut(picture, 32).shape == (32, 32, 3)
        assert box.paste(picture, np.zeros((32, 32, 3), np.uint8)).shape == picture.shape

    def test_a_box_is_scaled_with_its_picture(self):
        assert CropBox(left=-8, top=20, side=100).scaled(0.5) == CropBox(left=-4, top=10, side=50)

    def test_a_side_below_1_is_refused(self):
        with pytest.raises(ValueError, match="side must be >= 1, got 0"):
            CropBox(left=0, top=0, side=0)

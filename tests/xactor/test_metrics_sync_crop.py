"""Test the crop that SyncNet sees: the reference's margin and border, and a steady track."""

import numpy as np
import pytest

from xactor.faces import MARGIN, CropBox
from xactor.metrics.sync_crop import face_in_crop, steady_boxes, sync_crop


def numbered(height: int, width: int) -> np.ndarray:
    """Return a picture whose red is the column and whose green is the row."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


def test_the_crop_has_the_references_margin():
    # The face is 80 px wide and 100 px high, and its middle is (100, 90). Half of its larger side is 50 px, so the crop
    # reaches 70 px to the left and right, 50 px up and 90 px down.
    crop = sync_crop(numbered(200, 200), (60, 40, 140, 140), 140)
    assert crop.shape == (140, 140, 3)
    assert crop[0, 0].tolist() == [30, 40, 0]
    assert crop[-1, -1].tolist() == [169, 179, 0]
    assert sync_crop(numbered(200, 200), (60, 40, 140, 140)).shape == (224, 224, 3)


def test_the_crop_is_grey_beyond_the_border():
    crop = sync_crop(numbered(120, 120), (0, 0, 100, 100), 140)
    assert crop[0, 0].tolist() == [110, 110, 110]  # 20 px to the left of the picture
    assert crop[0, 20].tolist() == [0, 0, 0]
    assert crop[119, 139].tolist() == [119, 119, 0]
    assert crop[120, 139].tolist() == [110, 110, 110]


def test_the_crop_of_our_own_crop_equals_the_direct_one(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    picture = np.kron(picture, np.ones((20, 20, 1), np.uint8))
    face = (120.0, 110.0, 280.0, 270.0)
    side = round(160 * MARGIN)
    own = CropBox(left=200 - side // 2, top=190 - side // 2, side=side).cut(picture, 512)
    direct = sync_crop(picture, face).astype(int)
    through = sync_crop(own, face_in_crop(512)).astype(int)
    # The lowest rows reach past our own crop. The median ignores the blocks' edges, which are blurred differently.
    assert np.median(np.abs(direct - through)[:210]) <= 1


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((50, 50, 50, 90), "left < right"),
        ((50, np.nan, 80, 90), "left < right"),
        ((500, 500, 550, 550), "must meet the picture of 100x100 px"),
    ],
)
def test_a_box_without_a_face_is_refused(box, reason):
    with pytest.raises(ValueError, match=reason):
        sync_crop(numbered(100, 100), box)


def test_one_bad_detection_does_not_move_a_track():
    boxes = np.tile([10.0, 20.0, 50.0, 80.0], (30, 1))
    boxes[7] = [200, 200, 204, 204]
    boxes[0] = [0, 0, 1, 1]
    np.testing.assert_allclose(steady_boxes(boxes), np.tile([0, 20, 60, 80], (30, 1)))
    with pytest.raises(ValueError, match=r"boxes must be \[T, 4\]"):
        steady_boxes(np.zeros((0, 4)))

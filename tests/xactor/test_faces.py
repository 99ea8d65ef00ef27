"""Test faces in real pictures, and control tracks made from faces."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from xactor.controls import BLENDSHAPES, INDEX
from xactor.faces import CropBox, Face, FaceFollower, FaceLandmarker, control_track
from xactor.faces.landmarks import (
    INNER_LIPS,
    LANDMARKS,
    MEAN_LANDMARKS,
    MIRRORED,
    find_landmarks,
    landmark_track,
)
from xactor.media import write_video
from xactor.still import best_still


def face(jaw: float = 0.0, matrix: np.ndarray | None = None) -> Face:
    shapes = np.zeros(len(BLENDSHAPES), np.float32)
    shapes[INDEX["jawOpen"]] = jaw
    place = np.eye(4, dtype=np.float32)
    place[2, 3] = -40
    return Face(
        points=np.zeros((478, 3), np.float32), blendshapes=shapes, matrix=place if matrix is None else matrix
    )


def turned(axis: int, angle: float) -> np.ndarray:
    """Return the matrix of a face turned about x, y or z, which point right, up and towards the viewer."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.eye(4, dtype=np.float32)
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    matrix[a, a] = matrix[b, b] = cos
    matrix[a, b], matrix[b, a] = -sin, sin
    matrix[2, 3] = -40
    return matrix


def test_short_gaps_are_interpolated_linearly():
    track = control_track([face(0.0), None, None, face(0.3), None])
    assert track.shape == (5, 57)
    assert track.dtype == np.float32
    assert track[:, INDEX["jawOpen"]] == pytest.approx([0, 0.1, 0.2, 0.3, 0.3])


@pytest.mark.parametrize(
    ("faces", "reason"),
    [
        ([], "no frames"),
        ([None] * 9, "no face in any frame"),
        ([face()] * 3 + [None] * 6 + [face()], "no face in frames 3 to 8 of 10"),
        ([None] * 6 + [face()], "no face in frames 0 to 5 of 7"),
        ([face()] + [None] * 6, "no face in frames 1 to 6 of 7"),
    ],
)
def test_longer_gaps_are_refused(faces, reason):
    with pytest.raises(ValueError, match=reason):
        control_track(faces)


def test_pose_has_the_documented_signs():
    # A positive turn about x, which points right, moves the nose down. One about y, which points up, moves the nose to
    # the right. A negative turn about z, which points at the viewer, turns the face clockwise.
    for axis, angle, name in ((0, 0.2, "headPitch"), (1, 0.3, "headYaw"), (2, -0.1, "headRoll")):
        row = control_track([face(matrix=turned(axis, angle))])[0]
        assert row[INDEX[name]] == pytest.approx(abs(angle), abs=1e-5)
        others = [n for n in ("headPitch", "headYaw", "headRoll") if n != name]
        assert [row[INDEX[n]] for n in others] == pytest.approx([0, 0], abs=1e-5)


def test_place_and_size_are_relative_to_the_clip():
    near = np.eye(4, dtype=np.float32)
    near[:3, 3] = (7, -7, -20)
    track = control_track([face(), face(), face(matrix=near)])
    assert track[0, INDEX["headX"] :] == pytest.approx([0, 0, 0])
    assert track[2, INDEX["headX"] :] == pytest.approx([0.5, 0.5, np.log(2)])


def test_a_missing_mediapipe_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    monkeypatch.setitem(sys.modules, "mediapipe.tasks.python", None)
    with pytest.raises(ValueError, match="run pip install mediapipe"):
        FaceLandmarker()


def test_an_invalid_landmark_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such landmark model"):
        FaceLandmarker(tmp_path / "missing.task")
    (tmp_path / "bad.task").write_bytes(b"not a bundle")
    with pytest.raises(ValueError, match=r"bad\.task: not a face landmark model"):
        FaceLandmarker(tmp_path / "bad.task").detect(np.zeros((64, 64, 3), np.uint8))


def test_a_face_is_found_in_a_photograph_and_none_on_a_wall():
    astronaut = pytest.importorskip("skimage.data").astronaut()
    landmarker = FaceLandmarker()
    faces = landmarker.detect(astronaut)
    assert len(faces) == 1
    left, top, right, bottom = faces[0].box
    assert 160 < left < 200
    assert 250 < right < 290
    assert 50 < top < 90
    assert 160 < bottom < 195
    assert faces[0].points.shape == (478, 3)
    assert landmarker.detect(np.full((200, 200, 3), 128, np.uint8)) == []


def test_landmarks_of_a_mirrored_face_are_its_mirror_image():
    picture = pytest.importorskip("skimage.data").astronaut()[33:213, 135:315]
    found, mirrored = find_landmarks(picture), find_landmarks(np.ascontiguousarray(picture[:, ::-1]))
    assert np.abs(mirrored[MIRRORED] * [-1, 1] - found).max() < 0.06
    assert np.array_equal(MIRRORED[MIRRORED], np.arange(len(LANDMARKS)))
    np.testing.assert_array_equal(MEAN_LANDMARKS[MIRRORED] * np.float32([-1, 1]), MEAN_LANDMARKS)
    # The average face resembles a real one.
    assert np.abs(MEAN_LANDMARKS - find_landmarks(picture)).mean() < 0.2
    # The ring of the lips is a ring: neighbours are near each other.
    lips = found[INNER_LIPS]
    steps = np.linalg.norm(lips - np.roll(lips, 1, axis=0), axis=1)
    assert steps.max() < 0.3 * np.ptp(lips[:, 0])


def test_a_face_that_is_not_found_gets_average_landmarks(caplog):
    wall = np.full((64, 64, 3), 128, np.uint8)
    np.testing.assert_array_equal(find_landmarks(wall), MEAN_LANDMARKS)
    assert "an average face's landmarks are used" in caplog.text


def test_frames_without_a_face_get_the_landmarks_of_the_nearest_one():
    faces: list[Face | None] = [None] * 10
    for number in (2, 7):
        points = np.full((478, 3), 10.0 * number, np.float32)
        faces[number] = replace(face(), points=points)
    track = landmark_track(faces, CropBox(left=20, top=0, side=100))
    assert track.shape == (10, 165, 2)
    # 20 px from the crop's left edge are (20 - 20) / 50 - 1, and 70 px are (70 - 20) / 50 - 1.
    np.testing.assert_allclose(track[:, 0, 0], [-1.0] * 5 + [0.0] * 5)
    np.testing.assert_allclose(track[:, 0, 1], [-0.6] * 5 + [0.4] * 5, atol=1e-6)
    with pytest.raises(ValueError, match="no face in any frame"):
        landmark_track([None], CropBox(left=0, top=0, side=1))


def test_the_largest_of_several_faces_is_followed():
    cv2 = pytest.importorskip("cv2")
    astronaut = pytest.importorskip("skimage.data").astronaut()[0:220, 110:330]
    picture = np.full((480, 640, 3), 200, np.uint8)
    picture[20:460, 180:620] = cv2.resize(astronaut, (440, 440))
    picture[0:160, 0:160] = cv2.resize(astronaut, (160, 160))
    seen = list(FaceLandmarker().follow([picture] * 3))
    assert all(found is not None and found.box[0] > 180 for found in seen)


@pytest.fixture(scope="module")
def far_away() -> list[np.ndarray]:
    """Return frames of a wide picture, without a face at first, in which a small face moves to the right."""
    cv2 = pytest.importorskip("cv2")
    astronaut = pytest.importorskip("skimage.data").astronaut()[20:210, 130:320]
    frames = []
    for number in range(12):
        picture = np.full((720, 1280, 3), 200, np.uint8)
        if number >= 5:
            left = 900 + 4 * number
            picture[500:600, left : left + 100] = cv2.resize(
                astronaut, (100, 100), interpolation=cv2.INTER_AREA
            )
        frames.append(picture)
    return frames


def test_a_small_face_is_followed_where_the_landmark_model_alone_finds_none(far_away):
    assert not any(FaceLandmarker(max_faces=1).follow(far_away))
    found = list(FaceFollower().follow(iter(far_away)))
    assert [face is not None for face in found] == [False] * 5 + [True] * 7
    middles = [(face.box[0] + face.box[2]) / 2 for face in found if face is not None]
    assert middles == sorted(middles)
    assert middles[0] == pytest.approx(900 + 20 + 50, abs=15)


def test_a_small_face_in_a_video_becomes_the_portrait(far_away, tmp_path):
    # Of a video at 25 fps, two frames per second are searched.
    write_video(tmp_path / "v.mp4", far_away[5:7] * 13, samples=np.zeros(0, np.float32))
    still = best_still(tmp_path / "v.mp4")
    assert still.shape == (720, 1280, 3)
    write_video(tmp_path / "wall.mp4", far_away[:2], samples=np.zeros(0, np.float32))
    with pytest.raises(ValueError, match=r"wall\.mp4: no face is found in 2 frames per second"):
        best_still(tmp_path / "wall.mp4")


def test_a_square_is_moved_into_the_picture():
    box = CropBox(left=-20, top=30, side=100)
    assert box.outside(120, 160) == pytest.approx(1 - 80 * 90 / 100**2)
    assert box.inside(120, 160) == CropBox(left=0, top=20, side=100)
    assert box.inside(120, 160).outside(120, 160) == 0
    # A square that is larger than the picture is reduced.
    assert CropBox(left=10, top=-30, side=200).inside(120, 160) == CropBox(left=40, top=0, side=120)
    assert CropBox(left=500, top=0, side=10).outside(120, 160) == 1

"""Test that controls change the right parts of a still face, and that stills become people of a corpus."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from acting import controls
from PIL import Image

from xactor.faces import Face, FaceLandmarker
from xactor_platform.demo_corpus.identity import (
    held_out_identities,
    render_frame,
    split_stills,
    training_identities,
)
from xactor_platform.demo_corpus.puppet import Puppet

SIDE = 256


@pytest.fixture(scope="module")
def landmarker() -> FaceLandmarker:
    return FaceLandmarker(max_faces=1)


@pytest.fixture(scope="module")
def still() -> np.ndarray:
    """Return a square around the face of a real photograph, uint8 [360, 360, 3]."""
    astronaut = pytest.importorskip("skimage.data").astronaut()
    return cv2.resize(astronaut[33:213, 135:315], (360, 360), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def face(still, landmarker) -> Face:
    [found] = landmarker.detect(still)
    return found


@pytest.fixture(scope="module")
def puppet(still, face) -> Puppet:
    return Puppet(still, face, SIDE)


def measured(picture: np.ndarray, landmarker: FaceLandmarker) -> dict[str, float]:
    """Return what the landmark model sees, relative to the width of the face."""
    [found] = landmarker.detect(picture)
    p = found.points[:, :2]
    width = np.linalg.norm(p[454] - p[234])
    return {
        "lips": float(np.linalg.norm(p[14] - p[13]) / width),
        "eyes": float((np.linalg.norm(p[145] - p[159]) + np.linalg.norm(p[374] - p[386])) / 2 / width),
        "brows": float((p[159][1] - p[105][1] + p[386][1] - p[334][1]) / 2 / width),
        "mouth_width": float(np.linalg.norm(p[291] - p[61]) / width),
        "nose": float((p[1][0] - (p[234][0] + p[454][0]) / 2) / width),
    }


def test_the_landmark_model_sees_what_a_puppet_acts(puppet, landmarker):
    rest = measured(puppet.render(controls()), landmarker)
    assert rest["lips"] < 0.05
    opened = [measured(puppet.render(controls(jawOpen=jaw)), landmarker)["lips"] for jaw in (0.15, 0.35, 0.6)]
    assert rest["lips"] + 0.02 < opened[0] < opened[1] < opened[2]
    closed = measured(puppet.render(controls(eyeBlinkLeft=1, eyeBlinkRight=1)), landmarker)
    assert closed["eyes"] < 0.6 * rest["eyes"]
    assert abs(closed["lips"] - rest["lips"]) < 0.02
    raised = controls(browInnerUp=0.8, browOuterUpLeft=0.8, browOuterUpRight=0.8)
    assert measured(puppet.render(raised), landmarker)["brows"] > rest["brows"] + 0.01
    pursed = measured(puppet.render(controls(mouthPucker=0.8)), landmarker)
    assert pursed["mouth_width"] < 0.9 * rest["mouth_width"]
    turned = [measured(puppet.render(controls(headYaw=yaw)), landmarker)["nose"] for yaw in (-0.25, 0.25)]
    assert turned[0] < rest["nose"] - 0.03
    assert turned[1] > rest["nose"] + 0.03


def test_an_expression_leaves_the_rest_of_the_picture_as_it_is(puppet):
    rest = puppet.render(controls()).astype(int)
    opened = puppet.render(controls(jawOpen=0.6)).astype(int)
    changed = np.abs(opened - rest).max(axis=2) > 2
    assert not changed[: SIDE // 2].any()
    assert not changed[:, : SIDE // 5].any()
    assert not changed[:, -SIDE // 5 :].any()
    assert changed.any()


def test_a_tilted_still_is_turned_upright(still, landmarker):
    turn = cv2.getRotationMatrix2D((180.0, 180.0), 20.0, 1.0)
    tilted = cv2.warpAffine(still, turn, (360, 360), borderMode=cv2.BORDER_REFLECT)
    [found] = landmarker.detect(tilted)
    [upright] = landmarker.detect(Puppet(tilted, found, SIDE).render(controls()))
    eyes = upright.points[263, :2] - upright.points[33, :2]
    assert abs(np.degrees(np.arctan2(eyes[1], eyes[0]))) < 3


def test_stills_that_cannot_be_animated_are_named(still, face):
    with pytest.raises(ValueError, match="must be square, got 360x300"):
        Puppet(still[:300], face)
    turned = face.matrix.copy()
    turned[0, 2], turned[2, 2] = np.sin(0.6), np.cos(0.6)
    with pytest.raises(ValueError, match="the head must be turned by at most 23 degrees, got 34"):
        Puppet(still, replace(face, matrix=turned))
    points = face.points.copy()
    points[[14, 87, 317, 17], 1] += 60
    with pytest.raises(
        ValueError, match="the mouth must be open by at most 9 units .a face is 94 units wide., got"
    ):
        Puppet(still, replace(face, points=points))


def test_stills_become_people_and_every_sixth_is_held_out(still, tmp_path: Path):
    for number in range(7):
        Image.fromarray(still).save(tmp_path / f"face-{number}.png")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "wall.png")
    lines: list[str] = []
    train, held_out = split_stills(tmp_path, lines.append)
    assert [path.stem for path in held_out] == ["face-5"]
    assert len(train) == 6
    assert len(lines) == 1
    assert "wall.png: no face is found" in lines[0]
    people = training_identities(4, train)
    assert [person.name for person in people] == ["still-face-0", "drawn-000", "still-face-1", "drawn-001"]
    assert [person.name for person in held_out_identities(held_out)] == [
        "drawn-007",
        "astronaut",
        "still-face-5",
    ]
    assert render_frame(people[0], controls(), 64).shape == (64, 64, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no face .* that can be animated, of 0 pictures"):
        split_stills(tmp_path / "empty", lines.append)

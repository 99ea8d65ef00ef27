"""Test identity: alignment to ArcFace's template, a user's own models, and dlib's model on real faces."""

import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xactor.faces import Face, FaceLandmarker
from xactor.media import read_frames
from xactor.metrics.identity import (
    ARCFACE_SIDE_PX,
    ARCFACE_TEMPLATE,
    ArcFaceModel,
    DlibModel,
    aligned,
    five_points,
    identity_similarity,
    similarity,
)

REAL = Path(os.environ.get("XACTOR_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def moved(points: np.ndarray, scale: float, angle: float, shift: tuple[float, float]) -> np.ndarray:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return points @ turn.T + shift


def face(scale: float = 1.0, angle: float = 0.0, shift: tuple[float, float] = (0, 0)) -> Face:
    """Return a face whose five points are the template's, moved."""
    points = np.zeros((478, 3), np.float32)
    eyes, rest = np.repeat(ARCFACE_TEMPLATE[:2], 2, axis=0), ARCFACE_TEMPLATE[2:]
    eyes[:, 0] += [-7, 7, -7, 7]  # an eye's corners
    points[[33, 133, 362, 263, 1, 61, 291], :2] = moved(np.concatenate([eyes, rest]), scale, angle, shift)
    return Face(points=points, blendshapes=np.zeros(51, np.float32), matrix=np.eye(4, dtype=np.float32))


@pytest.mark.parametrize(("scale", "angle"), [(0.3, 0.0), (1.0, 0.7), (4.0, -2.9)])
def test_similarity_moves_a_face_back_to_the_template(scale, angle):
    found = similarity(five_points(face(scale, angle, (40, -9))), ARCFACE_TEMPLATE)
    back = five_points(face(scale, angle, (40, -9))) @ found[:, :2].T + found[:, 2]
    np.testing.assert_allclose(back, ARCFACE_TEMPLATE, atol=1e-4)


def test_the_similarity_is_the_nearest_and_never_mirrors():
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.uniform(0, 100, (5, 2))  # some of them are nearer to the template's mirror image
        best = similarity(points, ARCFACE_TEMPLATE)
        assert np.linalg.det(best[:, :2]) > 0
        np.testing.assert_allclose(best[:, 0], [best[1, 1], -best[0, 1]])

        def error(a: float, b: float, x: float, y: float, points: np.ndarray = points) -> float:
            return ((points @ [[a, b], [-b, a]] + [x, y] - ARCFACE_TEMPLATE) ** 2).sum()

        parameters = np.array([best[0, 0], best[1, 0], *best[:, 2]])
        min_error = error(*parameters)
        for step in rng.normal(0, [0.05, 0.05, 1, 1], (30, 4)):
            assert error(*(parameters + step)) > min_error


def test_landmarks_in_one_place_are_refused():
    with pytest.raises(ValueError, match="must not all be in one place"):
        similarity(np.ones((5, 2)), ARCFACE_TEMPLATE)


@pytest.mark.parametrize(("scale", "shift"), [(0.7, (20, 10)), (1.3, (30, 5)), (6.0, (40, -30))])
def test_a_chip_shows_the_right_place_of_the_frame(scale, shift):
    """The red and green of a frame's pixel are its coordinates. A large frame is averaged before it is sampled."""
    side = round(150 * max(scale, 1))
    y, x = np.mgrid[:side, :side] * (250 / side)
    frame = np.stack([x, y, np.full_like(x, 7)], axis=-1).round().astype(np.uint8)
    chip = aligned(frame, five_points(face(scale, 0.3, shift)), ARCFACE_TEMPLATE, ARCFACE_SIDE_PX)
    assert chip.shape == (112, 112, 3)
    v, u = np.mgrid[:112, :112]
    place = moved(np.stack([u, v], axis=-1), scale, 0.3, shift)
    inside = ((place > 8) & (place < side - 9)).all(axis=-1)
    assert inside.sum() > 5000
    apart = chip[inside][:, :2] - place[inside] * (250 / side)
    assert np.abs(apart).max() < 1.6  # both pictures are rounded
    np.testing.assert_allclose(apart.mean(axis=0), 0, atol=0.1)  # not shifted by any part of a pixel
    outside = ((place < -8) | (place > side + 8)).any(axis=-1)
    assert not chip[outside].any()


def test_a_real_faces_points_are_near_the_template(portrait_file):
    frame = np.asarray(Image.open(portrait_file))
    (found,) = FaceLandmarker(max_faces=1).detect(frame)
    points = five_points(found)
    transform = similarity(points, ARCFACE_TEMPLATE)
    apart = np.linalg.norm(points @ transform[:, :2].T + transform[:, 2] - ARCFACE_TEMPLATE, axis=1)
    assert apart.max() < 10  # px of 112: this face is turned and smiles, the template does neither
    assert transform[0, 0] > 0  # upright


def test_frames_may_be_views_of_others_and_read_only():
    picture = np.random.default_rng(1).integers(0, 256, (120, 130, 3), np.uint8)
    mirrored = picture[:, ::-1]
    mirrored.flags.writeable = False
    chips = [
        aligned(frame, five_points(face()), ARCFACE_TEMPLATE, 112) for frame in (mirrored, mirrored.copy())
    ]
    np.testing.assert_array_equal(*chips)


class Colours(nn.Module):
    """Return the aligned face's mean colours."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 112, 112)
        return x.mean((2, 3))


def coloured(*colours: tuple[int, int, int] | None) -> Iterator[tuple[np.ndarray, Face | None]]:
    """Yield a frame of each colour with its face. The colour None gives a black frame without a face."""
    for colour in colours:
        yield np.full((112, 112, 3), colour or 0, np.uint8), face() if colour else None


@pytest.fixture(scope="module")
def arcface(tmp_path_factory) -> ArcFaceModel:
    path = tmp_path_factory.mktemp("arcface") / "arcface.pt"
    torch.jit.script(Colours()).save(str(path))
    return ArcFaceModel(path)


def test_a_users_own_model_is_given_rgb_from_minus_1_to_1(arcface):
    (frame, found) = next(coloured((255, 0, 102)))
    assert found is not None
    embedding = arcface.embed(arcface.align(frame, found)[None])
    assert embedding[0].tolist() == pytest.approx([1, -1, -0.2], abs=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_score_is_the_mean_cosine_of_frames_with_faces(arcface, batch):
    (portrait,) = coloured((255, 0, 0))  # (1, -1, -1)
    # The embeddings are the portrait's, its negative, and (1, 1, -1).
    frames = [(255, 0, 0), None, (0, 255, 255), (255, 255, 0), None]
    score = identity_similarity(arcface, portrait, coloured(*frames), batch_frames=batch)
    assert score.value == pytest.approx((1 - 1 + 1 / 3) / 3, abs=1e-6)
    assert score.count == 3
    assert score.note == "2 of 5 frames without a face excluded"
    assert score.weights.startswith("arcface.pt (sha256 ")


def test_videos_without_faces_are_refused(arcface):
    (portrait,) = coloured((255, 0, 0))
    for frames in ([], [None] * 3):
        with pytest.raises(ValueError, match=f"no face in any of the video's {len(frames)} frames"):
            identity_similarity(arcface, portrait, coloured(*frames))
    with pytest.raises(ValueError, match="batch_frames must be >= 1, got 0"):
        identity_similarity(arcface, portrait, coloured((1, 2, 3)), batch_frames=0)


def dlib_model() -> DlibModel:
    try:
        return DlibModel()
    except ValueError as error:
        pytest.skip(str(error))


def test_bad_dlib_weights_are_named(tmp_path):
    pytest.importorskip("dlib")
    with pytest.raises(ValueError, match="none.dat: no such weights"):
        DlibModel(tmp_path / "none.dat")
    (tmp_path / "bad.dat").write_bytes(b"text")
    with pytest.raises(ValueError, match="bad.dat: not dlib's face recognition weights"):
        DlibModel(tmp_path / "bad.dat")


def test_a_missing_dlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(ValueError, match=r"needs dlib: run pip install '\.\[identity\]'"):
        DlibModel()


def test_dlib_recognises_a_face_at_another_size_and_angle(portrait_file):
    model, landmarker = dlib_model(), FaceLandmarker(max_faces=1)
    assert model.weights == "dlib face recognition v1"
    photograph = Image.open(portrait_file)
    other = photograph.crop((0, 0, 400, 400)).rotate(20, Image.Resampling.BICUBIC).resize((300, 300))
    seen = [np.asarray(photograph), np.asarray(other)]
    pairs = [(frame, landmarker.detect(frame)[0]) for frame in seen]
    chips = np.stack([model.align(*pair) for pair in pairs])
    assert chips.shape == (2, 150, 150, 3)
    (again,) = landmarker.detect(chips[0])
    # The outer eye corners and the lower end of the nose in dlib's template.
    wanted = [(37, 46), (111, 46), (74, 88)]
    np.testing.assert_allclose(again.points[[33, 263, 2], :2], wanted, atol=8)
    score = identity_similarity(model, pairs[0], [pairs[1]])
    assert score.value > 0.97
    # dlib's own criterion: two faces with a distance below 0.6 belong to one person.
    first, second = model.embed(chips)
    assert torch.dist(first, second) < 0.4


@pytest.mark.skipif(not (REAL / "talking").is_dir(), reason=f"no real clips in {REAL} (XACTOR_REAL_DATA)")
def test_dlib_finds_a_persons_frames_nearer_than_those_of_others():
    model, landmarker = dlib_model(), FaceLandmarker(max_faces=1)
    clips = []
    for clip in sorted((REAL / "talking").glob("*.mp4"))[:5]:
        frames = islice(read_frames(clip), 0, 200, 60)
        clips.append([(frame, landmarker.detect(frame)[0]) for frame in frames])
    scores = np.array([[identity_similarity(model, a[0], b[1:]).value for b in clips] for a in clips])
    own = scores.diagonal()
    others = scores[~np.eye(len(clips), dtype=bool)]
    assert own.min() > others.max() + 0.01

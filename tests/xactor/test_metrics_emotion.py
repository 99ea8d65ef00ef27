"""Test DEmo: EMONet compared with the published code, its checkpoints' layout, the crop and the difference."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from xactor.faces import Face, FaceLandmarker
from xactor.metrics.emotion import (
    EmoNet,
    EmoNetVectors,
    emotion_difference,
    emotion_picture,
    emotion_vectors,
    load_emonet,
)
from xactor.metrics.weights import ScriptedModel

# SHA-256 of the published code's state dict: its 682 sorted lines "name [shape]", by the number of expressions.
LAYOUTS = {
    8: "6435af884301484bd84883d0e10f45bc9688d53f5287883d7a25b22976393753",
    5: "fefd3e08650a78140f953b27c182a269113a15077d6752e22caac75d6211ef00",
}
# Outputs of the published code for `picture()` with `random_state()`: expressions, valence, arousal.
PUBLISHED = {
    8: [-0.9249, 2.11007, 0.46404, 0.54117, -0.35469, -0.10698, 0.39895, -0.31035, -1.42054, 1.63567],
    5: [-0.1346, -0.05921, -0.16363, -0.41939, 0.13917, -0.29271, 1.0665],
}


def random_state(expressions: int = 8) -> dict[str, Tensor]:
    """Return reproducible numbers under the published names."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, like in sorted(EmoNet(expressions).state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        x = torch.randn(like.shape, generator=generator)
        if name.endswith("running_var"):
            x = 1 + 0.3 * x.tanh()
        elif like.dim() > 1:
            x = 0.5 * x / like[0].numel() ** 0.5
        else:
            x = 0.3 * x + (1.0 if name.endswith("weight") else 0.0)
        state[name] = x
    return state


def picture() -> Tensor:
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    return torch.stack([(torch.sin(x / (9 + c) + y / (13 - c)) + 1) / 2 for c in range(3)])[None]


def save(path: Path, state: dict) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=False)  # as PyTorch did in 2020
    return path


@pytest.fixture(scope="module")
def emonet_file(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("emonet") / "emonet_8.pth", random_state())


@pytest.mark.parametrize("expressions", [8, 5])
def test_parameters_have_the_published_names_and_shapes(expressions):
    lines = sorted(f"{name} {list(x.shape)}" for name, x in EmoNet(expressions).state_dict().items())
    assert len(lines) == 682
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == LAYOUTS[expressions]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("expressions", [8, 5])
def test_emonet_equals_the_published_code(tmp_path, expressions, prefix):
    state = {prefix + name: value for name, value in random_state(expressions).items()}
    model = load_emonet(save(tmp_path / "emonet.pth", state))
    with torch.inference_mode():
        out = model(picture())
    made = [*out.expression[0].tolist(), out.valence.item(), out.arousal.item()]
    assert made == pytest.approx(PUBLISHED[expressions], abs=1e-4)
    assert out.heatmap.shape == (1, 68, 64, 64)
    vectors = EmoNetVectors(model)(picture())[0]
    assert vectors[:-2].tolist() == pytest.approx(torch.tensor(made[:-2]).softmax(0).tolist(), abs=1e-4)
    assert vectors[-2:].tolist() == pytest.approx([max(min(x, 1), -1) for x in made[-2:]], abs=1e-4)


def test_weights_and_unused_entries_are_named(tmp_path, emonet_file):
    digest = hashlib.sha256(emonet_file.read_bytes()).hexdigest()[:12]
    assert load_emonet(emonet_file).weights == f"EMONet, emonet_8.pth (sha256 {digest})"
    more = save(tmp_path / "more.pth", random_state() | {"emo_fc.0.weight": torch.zeros(3)})
    assert load_emonet(more).weights.endswith("), 1 further entries unused")
    assert EmoNet().weights == "random weights"


def without(name: str) -> dict:
    state = random_state()
    del state[name]
    return state


@pytest.mark.parametrize(
    ("saved", "reason"),
    [
        (
            lambda: without("m1.b2_plus_1.conv2.weight"),
            "1 of EMONet's parameters are missing, m1.b2_plus_1.conv2.weight",
        ),
        (lambda: without("emo_fc_2.3.weight"), r"emo_fc_2.3.weight must be \[E \+ 2, 128\]"),
        (lambda: random_state() | {"al0.bias": torch.zeros(3)}, "other shapes than EMONet's .*al0.bias"),
        (lambda: {"state_dict": random_state()}, "not a state dict of tensors, it holds a dict"),
        (lambda: nn.Linear(1, 1), "not a PyTorch state dict"),  # a pickled module, whose code would run
    ],
)
def test_other_checkpoints_are_refused(tmp_path, saved, reason):
    with pytest.raises(ValueError, match=f"emonet.pth: .*{reason}") as refusal:
        load_emonet(save(tmp_path / "emonet.pth", saved()))
    assert "\n" not in str(refusal.value)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="emonet.pth: no such weights"):
        load_emonet(tmp_path / "emonet.pth")
    # torch raises an error without a message for an empty file.
    for content in (b"\x80\x02text", b""):
        (tmp_path / "emonet.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"emonet.pth: not a PyTorch state dict \(.+\)"):
            load_emonet(tmp_path / "emonet.pth")


def face(left: float, top: float, side: float) -> Face:
    """Return a face with all points on the rim of a square, whose corners bound the crop."""
    points = np.full((478, 3), (left + side / 2, top + side / 2, 0), np.float32)
    points[[234, 70, 454, 152], :2] = [
        (left, top),
        (left, top),
        (left + side, top),
        (left + side, top + side),
    ]
    points[10, 1] = top - 100  # the hairline, which is not among EMONet's 68 landmarks
    return Face(points=points, blendshapes=np.zeros(51, np.float32), matrix=np.eye(4, dtype=np.float32))


def test_the_crop_equals_emonets():
    """The crop has the middle of the landmarks' box. Its side is the box's width plus its height, divided by 1.1."""
    y, x = np.mgrid[:256, :256].astype(np.uint8)
    frame = np.stack([x, y, x], axis=-1)
    made = emotion_picture(frame, face(left=100, top=80, side=44))
    assert made.shape == (256, 256, 3)
    # The square is 80 px about (122, 102): from 82 to 162, and from 62 to 142.
    assert made[0, 0, :2].tolist() == [82, 62]
    assert made[-1, -1, :2].tolist() == [161, 141]


def test_the_crop_of_a_real_face_shows_all_of_it(portrait_file):
    frame = np.asarray(Image.open(portrait_file))
    (found,) = FaceLandmarker(max_faces=1).detect(frame)
    made = emotion_picture(frame, found)
    (again,) = FaceLandmarker(max_faces=1).detect(made)
    left, top, right, bottom = again.box
    assert min(left, top) > 10
    assert max(right, bottom) < 246
    assert 110 < right - left < 190


class OwnModel(nn.Module):
    """Stand in for a user's own model: return the mean of each colour, twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)).repeat(1, 2)


class OneNumberModel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))


class InfiniteModel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) / 0


def scripted(path: Path, model: nn.Module) -> ScriptedModel:
    torch.jit.script(model).save(str(path))
    return ScriptedModel(path)


def grey(*levels: int | None) -> Iterator[tuple[np.ndarray, Face | None]]:
    """Yield a frame of each grey level with its face. The level None gives a black frame without a face."""
    for level in levels:
        frame = np.full((64, 64, 3), level or 0, np.uint8)
        yield frame, None if level is None else face(left=20, top=20, side=20)


def test_a_users_own_model_sees_frames_in_order_for_any_batch_size(tmp_path):
    model = scripted(tmp_path / "own.pt", OwnModel())
    assert model.weights.startswith("own.pt (sha256 ")
    levels = [0, 51, None, 102, None, None, 153, 255]
    for batch in (1, 2, 3, 8):
        vectors = emotion_vectors(model, grey(*levels), batch_frames=batch)
        assert vectors.shape == (8, 6)
        wanted = [np.nan if level is None else level / 255 for level in levels]
        np.testing.assert_allclose(vectors, np.tile(np.array(wanted)[:, None], 6), atol=1e-6)
    with pytest.raises(ValueError, match="no face in any of the video's 2 frames"):
        emotion_vectors(model, grey(None, None))
    with pytest.raises(ValueError, match="no face in any of the video's 0 frames"):
        emotion_vectors(model, grey())
    with pytest.raises(ValueError, match="batch_frames must be >= 1, got 0"):
        emotion_vectors(model, grey(1), batch_frames=0)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (OneNumberModel(), r"must return vectors \[1, K\], got \[1\]"),
        (InfiniteModel(), "returned NaN or infinite numbers"),
        (nn.Linear(7, 2), r"does not accept pictures \[1, 3, 256, 256\]"),
    ],
)
def test_a_users_own_model_that_does_not_fit_is_named(tmp_path, model, reason):
    with pytest.raises(ValueError, match=rf"own.pt: {reason}") as refusal:
        emotion_vectors(scripted(tmp_path / "own.pt", model), grey(100))
    assert "\n" not in str(refusal.value)


def test_missing_and_invalid_model_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"own.pt: no such model"):
        ScriptedModel(tmp_path / "own.pt")
    (tmp_path / "own.pt").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"own.pt: not a TorchScript file") as refusal:
        ScriptedModel(tmp_path / "own.pt")
    assert "\n" not in str(refusal.value)


def test_the_difference_is_the_mean_l1_norm_of_frames_where_both_have_faces():
    true = np.array([[0.0, 1.0], [np.nan, np.nan], [0.5, 0.5], [1.0, -1.0]])
    made = np.array([[0.0, 0.5], [0.0, 0.0], [np.nan, np.nan], [-1.0, 0.0]])
    score = emotion_difference(made, true, weights="some")
    assert score.value == pytest.approx((0.5 + 3) / 2)
    assert (score.count, score.weights) == (2, "some")
    assert score.note == "2 of 4 frames without a face excluded"
    late = np.roll(true, 1, axis=0)
    assert emotion_difference(true, true, weights="some").value == 0
    assert emotion_difference(late, true, weights="some").value > 0
    with pytest.raises(ValueError, match=r"must be \[T, K\] alike, got \[3, 2\] generated and \[4, 2\] true"):
        emotion_difference(made[:3], true, weights="some")
    with pytest.raises(ValueError, match="in none of 1 frames"):
        emotion_difference(made[2:3], true[2:3], weights="some")

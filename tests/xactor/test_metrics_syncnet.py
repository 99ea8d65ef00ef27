"""SyncNet: the published layout, the reference's cepstra, offsets with the right sign, and streams equal to wholes."""

import math
import os
import sys
import types

import numpy as np
import pytest
import torch
from sounds import voice
from torch import nn
from torch.nn.functional import pad, pairwise_distance

from xactor.cli import main
from xactor.faces import MARGIN, CropBox
from xactor.media import write_video
from xactor.metrics.mfcc import mfcc, row_count
from xactor.metrics.sync import MOST_SHIFT, cepstra_windows, frames_to_model, sync
from xactor.metrics.sync_crop import face_in_crop, steady_boxes, sync_crop
from xactor.metrics.syncnet import SyncNet, SyncNetConfig, load_published, small_config
from xactor.metrics.syncnet_selfcheck import Figure, as_the_reference_reads

# The reference's, layer by layer: what has a bias and, of the batch normalisations, running statistics.
LAYERS = {
    "netcnnaud.0": [64, 1, 3, 3],
    "netcnnaud.4": [192, 64, 3, 3],
    "netcnnaud.8": [384, 192, 3, 3],
    "netcnnaud.11": [256, 384, 3, 3],
    "netcnnaud.14": [256, 256, 3, 3],
    "netcnnaud.18": [512, 256, 5, 4],
    "netfcaud.0": [512, 512],
    "netfcaud.3": [1024, 512],
    "netcnnlip.0": [96, 3, 5, 7, 7],
    "netcnnlip.4": [256, 96, 1, 5, 5],
    "netcnnlip.8": [256, 256, 1, 3, 3],
    "netcnnlip.11": [256, 256, 1, 3, 3],
    "netcnnlip.14": [256, 256, 1, 3, 3],
    "netcnnlip.18": [512, 256, 1, 6, 6],
    "netfclip.0": [512, 512],
    "netfclip.3": [1024, 512],
}
NORMS = {
    "netcnnaud.1": 64,
    "netcnnaud.5": 192,
    "netcnnaud.9": 384,
    "netcnnaud.12": 256,
    "netcnnaud.15": 256,
    "netcnnaud.19": 512,
    "netfcaud.1": 512,
    "netcnnlip.1": 96,
    "netcnnlip.5": 256,
    "netcnnlip.9": 256,
    "netcnnlip.12": 256,
    "netcnnlip.15": 256,
    "netcnnlip.19": 512,
    "netfclip.1": 512,
}


def published_state() -> dict[str, torch.Tensor]:
    """Random tensors of the published names and shapes, as a file older than batch counts has them."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in LAYERS.items():
        fan_in = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        state[f"{name}.bias"] = torch.zeros(shape[0])
    for name, width in NORMS.items():
        state |= {
            f"{name}.weight": torch.ones(width),
            f"{name}.bias": torch.zeros(width),
            f"{name}.running_mean": torch.zeros(width),
            f"{name}.running_var": torch.ones(width),
        }
    return state


@pytest.fixture(scope="session")
def published_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(published_state(), path)
    return path


@pytest.fixture(scope="module")
def small() -> SyncNet:
    """Random, but with statistics of its inputs, so that different windows are told apart."""
    torch.manual_seed(0)
    model = SyncNet(small_config())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        model.see(frames_to_model(crops(24))[None])
        model.hear(torch.from_numpy(cepstra_windows(sound(24), 0, 18)))
    return model.eval()


def crops(frames: int, seed: int = 0, side: int = 64) -> np.ndarray:
    """Patches whose colours change from frame to frame: uint8 [frames, side, side, 3]."""
    patches = np.random.default_rng(seed).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    return np.kron(patches, np.ones((1, side // 8, side // 8, 1), np.uint8))


def sound(frames: int, seed: int = 1) -> np.ndarray:
    """Noise whose loudness changes all the time: float32 [640 frames]."""
    generator = np.random.default_rng(seed)
    loudness = np.repeat(generator.uniform(0.01, 0.3, 4 * frames), 160)
    return (loudness * generator.standard_normal(640 * frames)).astype(np.float32)


# --- the network and its files


def test_names_and_shapes_are_the_published_ones():
    state = SyncNet().state_dict()
    wanted = {f"{name}.weight": shape for name, shape in LAYERS.items()}
    wanted |= {f"{name}.bias": shape[:1] for name, shape in LAYERS.items()}
    for name, width in NORMS.items():
        wanted |= {f"{name}.{part}": [width] for part in ("weight", "bias", "running_mean", "running_var")}
        wanted[f"{name}.num_batches_tracked"] = []
    assert {name: list(value.shape) for name, value in state.items()} == wanted


def test_a_file_of_the_published_layout_loads_whole(published_file):
    model = load_published(published_file)
    state, saved = model.state_dict(), published_state()
    assert all(torch.equal(state[name], value) for name, value in saved.items())
    assert not model.training
    assert model.weights.startswith("syncnet_v2.model (sha256 ")
    seen = model.see(torch.zeros(1, 3, 6, 224, 224))
    assert seen.shape == (1, 2, 1024)
    assert model.hear(torch.zeros(3, 13, 20)).shape == (3, 1024)


class S(nn.Module):
    """As the reference's class, which a whole pickled module names."""

    def __init__(self):
        super().__init__()
        made = SyncNet()
        for name in ("netcnnaud", "netfcaud", "netcnnlip", "netfclip"):
            setattr(self, name, getattr(made, name))


def test_a_module_that_was_saved_whole_loads_too(tmp_path, monkeypatch):
    room = types.ModuleType("SyncNetModel")
    monkeypatch.setattr(S, "__module__", "SyncNetModel")
    room.S = S  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "SyncNetModel", room)
    whole = S()
    torch.save(whole, tmp_path / "whole.model")
    monkeypatch.delitem(sys.modules, "SyncNetModel")  # not there where it is read
    loaded = load_published(tmp_path / "whole.model").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in whole.state_dict().items())


class Runs:
    """Makes a folder when it is unpickled by anyone who trusts it."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    torch.save({**published_state(), "more": Runs(tmp_path / "made")}, tmp_path / "bad.model")
    with pytest.raises(ValueError, match=r"bad.model: not a state dict or module that torch loads safely"):
        load_published(tmp_path / "bad.model")
    assert not (tmp_path / "made").exists()


def renamed(state):
    state["netcnnlip.0.kernel"] = state.pop("netcnnlip.0.weight")


def reshaped(state):
    state["netfclip.3.weight"] = torch.zeros(512, 512)


def poisoned(state):
    state["netfcaud.0.bias"][3] = torch.nan


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, r"1 missing: netcnnlip.0.weight; 1 unknown: netcnnlip.0.kernel"),
        (reshaped, r"1 of another shape: netfclip.3.weight \[512, 512\] for \[1024, 512\]"),
        (poisoned, r"netfcaud.0.bias holds NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, reason):
    state = published_state()
    change(state)
    torch.save(state, tmp_path / "a.model")
    with pytest.raises(ValueError, match=reason):
        load_published(tmp_path / "a.model")


def test_what_is_no_file_of_weights_is_said_in_one_line(tmp_path):
    (tmp_path / "page.model").write_text("<html>404</html>")
    torch.save([1, 2], tmp_path / "list.model")
    for name, reason in (("none", "no such file"), ("page", "not a state dict"), ("list", "got list")):
        with pytest.raises(ValueError, match=rf"{name}.model: .*{reason}") as caught:
            load_published(tmp_path / f"{name}.model")
        assert "\n" not in str(caught.value)


def test_a_saved_folder_gives_the_same_model(tmp_path, small):
    small.save_pretrained(tmp_path / "a")
    loaded = SyncNet.from_pretrained(tmp_path / "a")
    assert (loaded.config, loaded.weights, loaded.training) == (small.config, "random weights", False)
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), small.state_dict().values(), strict=True)
    )


def test_the_small_one_sees_the_mouth_alone(small):
    pictures = crops(5)
    elsewhere = pictures.copy()
    elsewhere[:, :20], elsewhere[:, 52:], elsewhere[:, :, :16], elsewhere[:, :, 48:] = 0, 0, 0, 0
    seen, same = (small.see(frames_to_model(given)[None]) for given in (pictures, elsewhere))
    assert torch.equal(seen, same)
    elsewhere[:, 40, 32] ^= 255
    assert not torch.equal(seen, small.see(frames_to_model(elsewhere)[None]))


def test_a_folder_that_is_no_syncnet_is_named(tmp_path, small):
    with pytest.raises(FileNotFoundError, match=r"holds no config.json"):
        SyncNet.from_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"embedding": 64', '"embedding": 32'))
    with pytest.raises(ValueError, match=r"2 of another shape|4 of another shape"):
        SyncNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config.replace("syncnet", "wav2vec2"))
    with pytest.raises(ValueError, match="model_type must be 'syncnet', got 'wav2vec2'"):
        SyncNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"image_size": 40}, "image_size or mouth_px is too small for stem_stride 2: 40"),
        ({"mouth_px": 225}, "mouth_px must be within 0..224, got 225"),
        ({"embedding": 0}, "embedding must be >= 1, got 0"),
        ({"lip_channels": (4, 4)}, "lip_channels must be 6 numbers"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, reason):
    with pytest.raises(ValueError, match=reason):
        SyncNetConfig(**sizes)


# --- cepstra


def cepstra_by_definition(pcm: np.ndarray, row: int) -> np.ndarray:
    """One row, term by term from the formulas: windows of 25 ms, a plain Fourier sum, triangles, a plain cosine sum."""
    sharp = [pcm[n] - 0.97 * pcm[n - 1] if n else pcm[0] for n in range(160 * row, 160 * row + 400)]
    n = np.arange(400)
    power = [abs(np.sum(sharp * np.exp(-2j * np.pi * k * n / 512))) ** 2 / 512 for k in range(257)]
    mels = [i / 27 * 2595 * math.log10(1 + 8000 / 700) for i in range(28)]
    edges = [math.floor(513 * 700 * (10 ** (mel / 2595) - 1) / 16000) for mel in mels]
    logs = []
    for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
        rising = sum(power[k] * (k - low) / (middle - low) for k in range(low, middle))
        logs.append(
            math.log(rising + sum(power[k] * (high - k) / (high - middle) for k in range(middle, high)))
        )
    cepstra = []
    for c in range(13):
        total = sum(value * math.cos(math.pi * c * (2 * j + 1) / 52) for j, value in enumerate(logs))
        cepstra.append(total * math.sqrt(2 / 26) * (1 + 11 * math.sin(math.pi * c / 22)))
    cepstra[0] = math.log(sum(power))
    return np.array(cepstra)


def test_cepstra_are_what_their_formulas_say():
    samples = sound(4) + 0.3 * voice(0.16)
    pcm = np.rint(samples * 32768).astype(np.float64)
    made = mfcc(samples)
    assert made.shape == (row_count(len(samples)), 13)
    for row in (0, 7):
        np.testing.assert_allclose(made[row], cepstra_by_definition(pcm, row), atol=1e-4)


@pytest.mark.parametrize("samples", [1, 400, 401, 560, 561, 16_123])
def test_cepstra_are_those_of_python_speech_features(samples):
    theirs = pytest.importorskip("python_speech_features")
    given = sound(26)[:samples].clip(-1, 1)
    given[4000:9000] = 0  # silence: what is not there gets a logarithm too
    pcm = np.rint(given * 32768).astype(np.int16)
    np.testing.assert_allclose(mfcc(given), theirs.mfcc(pcm, 16_000), atol=1e-4)


def test_cepstra_in_pieces_are_those_of_the_whole():
    samples = sound(10)
    whole = mfcc(samples)
    pieces = [mfcc(samples, first, min(7, len(whole) - first)) for first in range(0, len(whole), 7)]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)
    windows = cepstra_windows(samples, 2, 3)
    np.testing.assert_allclose(windows, [whole[4 * i : 4 * i + 20].T for i in (2, 3, 4)], atol=1e-5)


def test_rows_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"rows must be within 0..3, got 2 to 4"):
        mfcc(np.ones(600, np.float32), 2, 2)
    with pytest.raises(ValueError, match=r"samples must be mono \[N\] with N >= 1, got shape \[0\]"):
        mfcc(np.zeros(0, np.float32))


# --- the score


class Loudness(SyncNet):
    """Sees how bright five frames are and hears how loud 0.2 s is: knows when they fit, with nothing learned."""

    def __init__(self):
        super().__init__(small_config(), weights="by construction")

    def see(self, frames):
        return _twice(frames.mean(dim=(1, 3, 4)).unfold(1, 5, 1).mean(-1) / 10)

    def hear(self, cepstra):
        return _twice(cepstra[:, 0].mean(-1) - 5)


def _twice(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, -x], dim=-1)


def bright_and_loud(frames: int, ahead: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A clip whose brightness follows its loudness, in a curve that is never twice the same, its sound `ahead`."""
    level = np.random.default_rng(3).uniform(3, 14, frames + 64)  # of the energy's logarithm
    seen = np.rint((level[32 : frames + 32] - 5) * 10).clip(0, 255).astype(np.uint8)
    spoken = level[32 + ahead : frames + 32 + ahead]
    # Of white noise, pre-emphasised: 400 samples, 257 of 512 powers, each a 512th.
    loudness = np.exp(spoken / 2) / np.sqrt(200 * (1 + 0.97**2))
    noise = np.random.default_rng(4).standard_normal(640 * frames)
    samples = (np.repeat(loudness, 640) * noise / 32768).astype(np.float32)
    return np.broadcast_to(seen[:, None, None, None], (frames, 64, 64, 3)), samples


@pytest.mark.parametrize("ahead", [-9, -1, 0, 4, 15])
def test_sound_that_runs_ahead_has_a_positive_offset(ahead):
    pictures, samples = bright_and_loud(140, ahead)
    score = sync(Loudness(), pictures, samples)
    assert score.offset_frames == ahead
    assert score.weights == "by construction"
    assert score.windows == 135
    assert len(score.curve) == 31
    assert score.distance == min(score.curve) == score.curve[MOST_SHIFT + ahead]
    assert score.confidence == pytest.approx(sorted(score.curve)[15] - score.distance)
    assert score.confidence > 0.8


def by_the_reference(model: SyncNet, pictures: np.ndarray, samples: np.ndarray) -> list[float]:
    """The curve, each window by itself and all distances in one matrix: from the least offset to the greatest."""
    windows = min(len(pictures), len(samples) // 640) - 5
    rows = mfcc(samples)
    seen = [model.see(frames_to_model(pictures[i : i + 5])[None])[0, 0] for i in range(windows)]
    heard = [model.hear(torch.from_numpy(rows[4 * i : 4 * i + 20].T.copy())[None])[0] for i in range(windows)]
    padded = pad(torch.stack(heard), (0, 0, MOST_SHIFT, MOST_SHIFT))
    offsets = range(2 * MOST_SHIFT, -1, -1)
    return [pairwise_distance(torch.stack(seen), padded[j : j + windows]).mean().item() for j in offsets]


@torch.no_grad()
def test_a_stream_of_batches_is_the_whole_by_definition(small):
    pictures, samples = crops(52), sound(60)[:-77]
    curve = by_the_reference(small, pictures, samples)
    assert max(curve) - min(curve) > 0.01
    for batch in (1, 7, 20, 500):
        score = sync(small, iter(pictures), samples, batch_windows=batch)
        np.testing.assert_allclose(score.curve, curve, rtol=1e-4)
        assert score.windows == 47
    # What one of the two has beyond the other is left out.
    longer = sync(small, pictures, samples[: 640 * 40 + 639])
    np.testing.assert_allclose(
        longer.curve, by_the_reference(small, pictures[:40], samples[: 640 * 40]), rtol=1e-4
    )


def test_a_clip_is_read_no_further_than_it_is_scored(small):
    taken = []

    def pictures():
        for number, picture in enumerate(crops(60)):
            taken.append(number)
            yield picture

    sync(small, pictures(), sound(30))
    assert taken[-1] == 29


def test_bad_input_is_named(small):
    pictures, samples = crops(30), sound(30)
    for given, heard, reason in (
        (pictures[:20], samples, r"frames with sound must be >= 21 .*, got 20"),
        (pictures, samples[: 640 * 21 - 1], r"frames with sound must be >= 21 .*, got 20"),
        ([], samples, r"frames with sound must be >= 21 .*, got fewer than 6"),
        (pictures, samples[:0], r"no sound: the loudest of 0 samples"),
        (pictures, np.zeros(30 * 640, np.float32), r"no sound: .* must be >= 0.001, got 0"),
        (pictures, samples[None], r"samples must be mono \[N\], got shape \[1, 19200\]"),
        (pictures, np.full_like(samples, np.nan), r"samples hold NaN"),
        (crops(30, side=56), samples, r"frame 0 must be uint8 \[64, 64, 3\], got uint8 \[56, 56, 3\]"),
        (pictures / 255, samples, r"frame 0 must be uint8 \[64, 64, 3\], got float64"),
    ):
        with pytest.raises(ValueError, match=reason):
            sync(small, given, heard)
    with pytest.raises(ValueError, match="batch_windows must be >= 1, got 0"):
        sync(small, pictures, samples, batch_windows=0)
    assert sync(small, pictures[:21], samples).windows == 16


def test_scoring_leaves_the_model_as_it_was(small):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    small.train()
    trained = sync(small, crops(30), sound(30))
    assert small.training
    small.eval()
    assert sync(small, crops(30), sound(30)) == trained
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())


# --- the crop


def numbered(height: int, width: int) -> np.ndarray:
    """A picture whose red is the column and whose green is the row."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)


def test_the_crop_has_the_references_margin():
    # A face 80 wide and 100 high at (100, 90): half is 50, so 70 px to each side, 50 above and 90 below.
    crop = sync_crop(numbered(200, 200), (60, 40, 140, 140), 140)
    assert crop.shape == (140, 140, 3)
    assert crop[0, 0].tolist() == [30, 40, 0]
    assert crop[-1, -1].tolist() == [169, 179, 0]
    assert sync_crop(numbered(200, 200), (60, 40, 140, 140)).shape == (224, 224, 3)


def test_beyond_the_border_it_is_grey():
    crop = sync_crop(numbered(120, 120), (0, 0, 100, 100), 140)
    assert crop[0, 0].tolist() == [110, 110, 110]  # 20 px to the left of the picture
    assert crop[0, 20].tolist() == [0, 0, 0]
    assert crop[119, 139].tolist() == [119, 119, 0]
    assert crop[120, 139].tolist() == [110, 110, 110]


def test_our_own_crops_show_the_same(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    picture = np.kron(picture, np.ones((20, 20, 1), np.uint8))
    face = (120.0, 110.0, 280.0, 270.0)
    side = round(160 * MARGIN)
    own = CropBox(left=200 - side // 2, top=190 - side // 2, side=side).cut(picture, 512)
    direct = sync_crop(picture, face).astype(int)
    through = sync_crop(own, face_in_crop(512)).astype(int)
    # All but the lowest rows, which reach past our square; the blocks' edges are blurred otherwise.
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


# --- the self-check


def test_the_selfcheck_reports_disagreement(published_file, tmp_path, capsys):
    video = tmp_path / "example.mp4"
    write_video(video, crops(24, side=224), samples=sound(24))
    with pytest.raises(SystemExit) as ended:
        main(["selfcheck", "syncnet", "--weights", str(published_file), "--video", str(video)])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert "syncnet_v2.model (sha256 " in lines[0]
    assert [line.split()[-3:-2] for line in lines[2:]] == [["3.000"], ["5.353"], ["10.021"]]
    assert sum("DISAGREES" in line for line in lines) >= 2


def test_the_selfcheck_says_what_it_cannot_use(published_file, tmp_path, capsys):
    video = tmp_path / "example.mp4"
    write_video(video, crops(24), samples=sound(24))
    for weights, reason in (
        (published_file, "example.mp4: frame 0 must be uint8 [224, 224, 3], got uint8 [64, 64, 3]"),
        (tmp_path / "none.model", "none.model: no such file of weights"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["selfcheck", "syncnet", "--weights", str(weights), "--video", str(video)])
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err


def test_a_figure_agrees_within_its_tolerance():
    figure = Figure(name="min distance", measured=5.1, published=5.353, tolerance=0.25)
    assert not figure.agrees
    assert Figure(**{**vars(figure), "measured": 5.12}).agrees


def test_the_references_jpegs_change_little_and_keep_the_place():
    y, x = np.mgrid[:64, :64]
    pictures = [np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)] * 5
    seen = list(as_the_reference_reads(pictures))
    assert len(seen) == 5
    assert not np.array_equal(seen[4], pictures[4])
    assert np.abs(seen[4].astype(int) - pictures[4]).mean() < 6

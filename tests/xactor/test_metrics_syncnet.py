"""Test SyncNet: the published layout, signs of offsets, streams compared with whole clips, and the self-check."""

import os
import sys
import types

import numpy as np
import pytest
import torch
from published_syncnet import LAYERS, NORMS, published_state
from sounds import sound
from torch import nn
from torch.nn.functional import pad, pairwise_distance

from xactor.cli import main
from xactor.media import write_video
from xactor.metrics.mfcc import mfcc
from xactor.metrics.sync import MAX_SHIFT_FRAMES, cepstra_windows, frames_to_model, sync
from xactor.metrics.syncnet import SyncNet, SyncNetConfig, load_published, small_config
from xactor.metrics.syncnet_selfcheck import Figure, compressed_as_in_the_reference


@pytest.fixture(scope="session")
def published_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("syncnet") / "syncnet_v2.model"
    torch.save(published_state(), path)
    return path


@pytest.fixture(scope="module")
def small() -> SyncNet:
    """Return a random model whose batch normalisations know the statistics of its inputs.

    Without the statistics it would hardly distinguish windows.
    """
    torch.manual_seed(0)
    model = SyncNet(small_config())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0  # one batch replaces the statistics
    with torch.no_grad():
        model.see(frames_to_model(crops(24))[None])
        model.hear(torch.from_numpy(cepstra_windows(sound(24), 0, 18)))
    return model.eval()


def crops(frames: int, seed: int = 0, side: int = 64) -> np.ndarray:
    """Return patches whose colours change from frame to frame: uint8 [frames, side, side, 3]."""
    patches = np.random.default_rng(seed).integers(0, 256, (frames, 8, 8, 3), dtype=np.uint8)
    return np.kron(patches, np.ones((1, side // 8, side // 8, 1), np.uint8))


# --- the network and its files


def test_names_and_shapes_are_the_published_ones():
    state = SyncNet().state_dict()
    wanted = {f"{name}.weight": shape for name, shape in LAYERS.items()}
    wanted |= {f"{name}.bias": shape[:1] for name, shape in LAYERS.items()}
    for name, width in NORMS.items():
        wanted |= {f"{name}.{part}": [width] for part in ("weight", "bias", "running_mean", "running_var")}
        wanted[f"{name}.num_batches_tracked"] = []
    assert {name: list(value.shape) for name, value in state.items()} == wanted


def test_a_file_of_the_published_layout_loads_completely(published_file):
    model = load_published(published_file)
    state, saved = model.state_dict(), published_state()
    assert all(torch.equal(state[name], value) for name, value in saved.items())
    assert not model.training
    assert model.weights.startswith("syncnet_v2.model (sha256 ")
    seen = model.see(torch.zeros(1, 3, 6, 224, 224))
    assert seen.shape == (1, 2, 1024)
    assert model.hear(torch.zeros(3, 13, 20)).shape == (3, 1024)


class S(nn.Module):
    """Stand in for the reference's class S, which is named in the pickle of a whole module."""

    def __init__(self):
        super().__init__()
        made = SyncNet()
        for name in ("netcnnaud", "netfcaud", "netcnnlip", "netfclip"):
            setattr(self, name, getattr(made, name))


def test_a_module_that_was_saved_whole_loads_too(tmp_path, monkeypatch):
    module = types.ModuleType("SyncNetModel")
    monkeypatch.setattr(S, "__module__", "SyncNetModel")
    module.S = S  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "SyncNetModel", module)
    whole = S()
    torch.save(whole, tmp_path / "whole.model")
    monkeypatch.delitem(sys.modules, "SyncNetModel")  # our code does not have the reference's module
    loaded = load_published(tmp_path / "whole.model").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in whole.state_dict().items())


class FolderMaker:
    """Make a folder when an unsafe unpickler loads it."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({**published_state(), "more": FolderMaker(tmp_path / "made")}, tmp_path / "bad.model")
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
        (poisoned, r"netfcaud.0.bias contains NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, reason):
    state = published_state()
    change(state)
    torch.save(state, tmp_path / "a.model")
    with pytest.raises(ValueError, match=reason):
        load_published(tmp_path / "a.model")


def test_other_files_are_named_in_one_line(tmp_path):
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


def test_the_small_model_sees_only_the_mouth(small):
    pictures = crops(5)
    elsewhere = pictures.copy()
    elsewhere[:, :20] = 0  # above the mouth, below it, and to its left and right
    elsewhere[:, 52:] = 0
    elsewhere[:, :, :16] = 0
    elsewhere[:, :, 48:] = 0
    seen, same = (small.see(frames_to_model(given)[None]) for given in (pictures, elsewhere))
    assert torch.equal(seen, same)
    elsewhere[:, 40, 32] ^= 255  # a pixel of the mouth
    assert not torch.equal(seen, small.see(frames_to_model(elsewhere)[None]))


def test_an_invalid_syncnet_folder_is_refused(tmp_path, small):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
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
def test_impossible_sizes_are_refused(sizes, reason):
    with pytest.raises(ValueError, match=reason):
        SyncNetConfig(**sizes)


# --- the score


class Loudness(SyncNet):
    """Embed the brightness of five frames, and the loudness of 0.2 s, without training."""

    def __init__(self):
        super().__init__(small_config(), weights="by construction")

    def see(self, frames):
        return _with_negative(frames.mean(dim=(1, 3, 4)).unfold(1, 5, 1).mean(-1) / 10)

    def hear(self, cepstra):
        return _with_negative(cepstra[:, 0].mean(-1) - 5)


def _with_negative(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, -x], dim=-1)


def bright_and_loud(frames: int, ahead: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a clip whose brightness follows its loudness, with the sound `ahead` frames early.

    The loudness never repeats.
    """
    level = np.random.default_rng(3).uniform(3, 14, frames + 64)  # logarithm of the energy
    seen = np.rint((level[32 : frames + 32] - 5) * 10).clip(0, 255).astype(np.uint8)
    spoken = level[32 + ahead : frames + 32 + ahead]
    # The energy of pre-emphasised white noise is 200 (1 + 0.97^2) times that of a sample: of the 512 powers of 400
    # samples, each divided by 512, 257 are summed.
    loudness = np.exp(spoken / 2) / np.sqrt(200 * (1 + 0.97**2))
    noise = np.random.default_rng(4).standard_normal(640 * frames)
    samples = (np.repeat(loudness, 640) * noise / 32768).astype(np.float32)
    return np.broadcast_to(seen[:, None, None, None], (frames, 64, 64, 3)), samples


@pytest.mark.parametrize("ahead", [-9, -1, 0, 4, 15])
def test_sound_that_is_ahead_has_a_positive_offset(ahead):
    pictures, samples = bright_and_loud(140, ahead)
    score = sync(Loudness(), pictures, samples)
    assert score.offset_frames == ahead
    assert score.weights == "by construction"
    assert score.windows == 135
    assert len(score.curve) == 31
    assert score.distance == min(score.curve)
    assert score.distance == score.curve[MAX_SHIFT_FRAMES + ahead]
    assert score.confidence == pytest.approx(sorted(score.curve)[15] - score.distance)
    assert score.confidence > 0.8


def by_the_reference(model: SyncNet, pictures: np.ndarray, samples: np.ndarray) -> list[float]:
    """Compute the curve of distances as the reference does, from separate windows and for all offsets at once.

    The curve begins with the smallest offset.
    """
    windows = min(len(pictures), len(samples) // 640) - 5
    rows = mfcc(samples)
    seen = [model.see(frames_to_model(pictures[i : i + 5])[None])[0, 0] for i in range(windows)]
    heard = [model.hear(torch.from_numpy(rows[4 * i : 4 * i + 20].T.copy())[None])[0] for i in range(windows)]
    padded = pad(torch.stack(heard), (0, 0, MAX_SHIFT_FRAMES, MAX_SHIFT_FRAMES))
    offsets = range(2 * MAX_SHIFT_FRAMES, -1, -1)
    return [pairwise_distance(torch.stack(seen), padded[j : j + windows]).mean().item() for j in offsets]


@torch.no_grad()
def test_a_stream_of_batches_equals_the_definition(small):
    pictures, samples = crops(52), sound(60)[:-77]
    curve = by_the_reference(small, pictures, samples)
    assert max(curve) - min(curve) > 0.01
    for batch in (1, 7, 20, 500):
        score = sync(small, iter(pictures), samples, batch_windows=batch)
        np.testing.assert_allclose(score.curve, curve, rtol=1e-4)
        assert score.windows == 47
    # Frames without sound and sound without frames are ignored.
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
        (pictures, np.full_like(samples, np.nan), r"samples contain NaN"),
        (crops(30, side=56), samples, r"frame 0 must be uint8 \[64, 64, 3\], got uint8 \[56, 56, 3\]"),
        (pictures / 255, samples, r"frame 0 must be uint8 \[64, 64, 3\], got float64"),
    ):
        with pytest.raises(ValueError, match=reason):
            sync(small, given, heard)
    with pytest.raises(ValueError, match="batch_windows must be >= 1, got 0"):
        sync(small, pictures, samples, batch_windows=0)
    assert sync(small, pictures[:21], samples).windows == 16


def test_scoring_leaves_the_model_unchanged(small):
    before = {name: value.clone() for name, value in small.state_dict().items()}
    small.train()
    trained = sync(small, crops(30), sound(30))
    assert small.training
    small.eval()
    assert sync(small, crops(30), sound(30)) == trained
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())


# --- the self-check


def test_the_selfcheck_reports_disagreement(published_file, tmp_path, capsys):
    video = tmp_path / "example.mp4"
    write_video(video, crops(24, side=224), samples=sound(24))
    with pytest.raises(SystemExit) as ended:
        main(["selfcheck", "syncnet", "--weights", str(published_file), "--video", str(video)])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 1
    assert "syncnet_v2.model (sha256 " in lines[0]
    # The third word from the end is the published figure.
    assert [line.split()[-3:-2] for line in lines[2:]] == [["3.000"], ["5.353"], ["10.021"]]
    assert sum("DISAGREES" in line for line in lines) >= 2


def test_the_selfcheck_names_unusable_input(published_file, tmp_path, capsys):
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


def test_the_references_jpegs_change_pictures_little_and_do_not_shift_them():
    y, x = np.mgrid[:64, :64]
    pictures = [np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)] * 5
    seen = list(compressed_as_in_the_reference(pictures))
    assert len(seen) == 5
    assert not np.array_equal(seen[4], pictures[4])
    assert np.abs(seen[4].astype(int) - pictures[4]).mean() < 6

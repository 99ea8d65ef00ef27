"""Test that a training can start from a model that is already trained, in both stages."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from motion_models import QWEN, small_model
from render_models import published, small_components
from transformers import Qwen2Config, Qwen2Model

from xactor.motion import MotionScheduler
from xactor.motion.forcing_config import ForcingConfig
from xactor.render import Renderer
from xactor_platform.data.index import CorpusShape
from xactor_platform.training.stage1 import build_components
from xactor_platform.training.stage1 import build_objective as stage1_objective
from xactor_platform.training.stage1_config import RendererConfig, Stage1Config, Stage1TrainConfig
from xactor_platform.training.stage2 import build_model
from xactor_platform.training.stage2 import build_objective as stage2_objective
from xactor_platform.training.stage2_config import MotionConfig, Stage2Config

SHAPE = CorpusShape(
    latent_width=32, audio_layers=1, audio_width=64, motion_dtype="float32", audio_dtype="float32"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Return a folder with both models. The motion model has 8 frames a chunk and 32 in all."""
    folder = tmp_path_factory.mktemp("model")
    Renderer(**vars(small_components())).save_pretrained(folder)
    motion = small_model(latent_dim=32, audio_layers=1, audio_dim=64)
    motion.set_latent_statistics(torch.full((32,), 0.5), torch.full((32,), 2.0))
    motion.save_pretrained(folder / "motion")
    MotionScheduler().save_pretrained(folder / "motion_scheduler")
    return folder


def test_stage_1_starts_from_all_weights_and_sizes_of_a_model(model):
    config = Stage1Config(model=RendererConfig(start=str(model), image_size=32))
    objective = stage1_objective(config)
    assert objective.training
    saved = Renderer.from_pretrained(model).components
    for name in ("motion_encoder", "unet", "reference_unet", "vae"):
        found, wanted = (vars(c)[name] if c is saved else getattr(c, name) for c in (objective, saved))
        assert found.state_dict().keys() == wanted.state_dict().keys()
        assert all(torch.equal(w, found.state_dict()[n]) for n, w in wanted.state_dict().items())
    assert not any(p.requires_grad for p in objective.vae.parameters())


def test_stage_2_starts_from_the_weights_and_moments_of_a_model(model):
    motion = small_model(latent_dim=32, audio_layers=1, audio_dim=64).config
    sizes = {"chunk_frames": motion.chunk_frames, "context_frames": motion.context_frames}
    config = Stage2Config(model=MotionConfig(start=str(model), **sizes))
    objective = stage2_objective(config, SHAPE, ([0.0] * 32, [1.0] * 32))
    assert objective.model.training
    assert torch.equal(objective.model.latent_std, torch.full((32,), 2.0))
    assert objective.model.config.chunk_lengths == [motion.chunk_frames]
    shorter = replace(config, forcing=ForcingConfig(chunk_lengths=(motion.chunk_frames, 4)))
    objective = stage2_objective(shorter, SHAPE, ([0.0] * 32, [1.0] * 32))
    assert objective.model.config.chunk_lengths == [4, motion.chunk_frames]
    other = Stage2Config(
        model=MotionConfig(start=str(model), **{**sizes, "context_frames": 10 * motion.context_frames})
    )
    message = f"{model} has context_frames {motion.context_frames}, this training needs {10 * motion.context_frames}"
    with pytest.raises(ValueError, match=re.escape(message)):
        stage2_objective(other, SHAPE, ([0.0] * 32, [1.0] * 32))


def test_a_start_that_does_not_fit_is_named(model):
    with pytest.raises(ValueError, match=r"model\.image_size must be 32, as in .*, got 64"):
        stage1_objective(Stage1Config(model=RendererConfig(start=str(model))))
    with pytest.raises(ValueError, match="start replaces sd15 and vae: give one or the other, got start x"):
        RendererConfig(start="x", sd15="y")
    with pytest.raises(ValueError, match="start replaces backbone: give one or the other, got start x"):
        MotionConfig(start="x", backbone="y")
    with pytest.raises(ValueError, match="a VAE that is given is not trained: vae_steps must be 0, got 5"):
        Stage1Config(model=RendererConfig(start="x"), train=Stage1TrainConfig(vae_steps=5))


def test_weights_at_uris_are_the_same_as_in_folders(model, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = stage1_objective(Stage1Config(model=RendererConfig(start=model.as_uri(), image_size=32)))
    wanted = Renderer.from_pretrained(model).components.unet.state_dict()
    assert all(torch.equal(w, wanted[n]) for n, w in found.unet.state_dict().items())
    folder = published(tmp_path / "published")
    given = {"sd15": (folder / "sd15").as_uri(), "animatediff": (folder / "animatediff").as_uri()}
    config = RendererConfig(**given, vae=(folder / "sd15" / "vae").as_uri(), image_size=16, guess=False)
    assert [Path(uri).name for uri in config.published_folders] == ["unet", "animatediff", "vae"]
    components, local = (
        build_components(config, seed=0),
        build_components(
            RendererConfig(
                sd15=str(folder / "sd15"), animatediff=str(folder / "animatediff"), image_size=16, guess=False
            ),
            seed=0,
        ),
    )
    for name in ("unet", "vae"):
        wanted = getattr(local, name).state_dict()
        assert all(torch.equal(w, wanted[n]) for n, w in getattr(components, name).state_dict().items())
    qwen = {**QWEN, "hidden_size": 32, "num_hidden_layers": 2}
    Qwen2Model(Qwen2Config(**qwen, vocab_size=8)).save_pretrained(tmp_path / "qwen")
    sizes = {"chunk_frames": 8, "context_frames": 32}
    motion = [
        build_model(MotionConfig(backbone=place, **sizes), SHAPE, seed=0).state_dict()
        for place in (str(tmp_path / "qwen"), (tmp_path / "qwen").as_uri())
    ]
    assert all(torch.equal(w, motion[1][n]) for n, w in motion[0].items())

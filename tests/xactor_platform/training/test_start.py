"""Test that a training can start from a model that is already trained, in both stages."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from motion_models import small_model
from render_models import small_components

from xactor.motion import MotionScheduler
from xactor.motion.forcing_config import ForcingConfig
from xactor.render import Renderer
from xactor_platform.data.index import CorpusShape
from xactor_platform.training.stage1 import build_objective as stage1_objective
from xactor_platform.training.stage1_config import RendererConfig, Stage1Config, Stage1TrainConfig
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

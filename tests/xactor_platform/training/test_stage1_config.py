"""Check stage 1's presets, its phases, and what its config refuses."""

import inspect
import json
from dataclasses import fields, replace

import pytest

from xactor.render import PHASES, random_components
from xactor_platform.data.index_file import load_index
from xactor_platform.training.stage1_config import (
    RendererConfig,
    Stage1Config,
    Stage1TrainConfig,
    paper,
    small,
    tiny,
)
from xactor_platform.training.train_config import as_dict, refuse_changes


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Stage1TrainConfig(stills=0), "stills must be >= 1, got 0"),
        (lambda: Stage1TrainConfig(vae_learning_rate=0), "vae_learning_rate must be > 0, got 0"),
        (lambda: Stage1TrainConfig(ema_decay=1), "ema_decay must be >= 0 and < 1, got 1"),
        (lambda: RendererConfig(animatediff="x"), "animatediff goes with sd15, which is not given"),
        (lambda: RendererConfig(window_frames=0), "window_frames must be >= 1, got 0"),
        (lambda: Stage1Config(), "vae_steps must be >= 1 if the VAE starts from random weights, got 0"),
        (
            lambda: Stage1Config(model=RendererConfig(sd15="x"), train=Stage1TrainConfig(vae_steps=5)),
            "a VAE that is given is not trained: vae_steps must be 0, got 5",
        ),
        (
            lambda: Stage1Config(
                model=RendererConfig(guess=False), train=Stage1TrainConfig(vae_steps=5, motion_steps=9)
            ),
            r"motion_steps must be 0 without model\.guess, which that phase trains, got 9",
        ),
        (
            lambda: replace(
                tiny(),
                model=RendererConfig(guess=False),
                train=replace(tiny().train, motion_steps=0),
            ),
            "encoder_learning_rate must be > 0 without a motion phase, got 0",
        ),
        (
            lambda: Stage1Config(train=Stage1TrainConfig(vae_steps=5, stills=17)),
            r"stills must be <= window_frames \(16\), got 17",
        ),
        (
            lambda: Stage1Config(train=Stage1TrainConfig(vae_steps=5, budget_frames=15)),
            r"budget_frames must be >= .*16.*got 15",
        ),
    ],
)
def test_a_config_that_cannot_work_is_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize("preset", [tiny, small, paper])
def test_presets_survive_json(preset):
    config = preset()
    saved = as_dict(config)
    assert Stage1Config.from_dict(json.loads(json.dumps(saved))) == config
    refuse_changes(saved, replace(config, train=replace(config.train, steps=10**6)), "runs/x")
    with pytest.raises(ValueError, match=r"train\.frames_steps was .* now 7"):
        refuse_changes(saved, replace(config, train=replace(config.train, frames_steps=7)), "runs/x")


def test_sizes_of_a_new_renderer_are_the_defaults_of_random_components():
    defaults = {f.name: f.default for f in fields(RendererConfig)}
    random_defaults = {
        n: p.default for n, p in inspect.signature(random_components).parameters.items() if n in defaults
    }
    assert len(random_defaults) == 15
    assert {n: defaults[n] for n in random_defaults} == {**random_defaults, "window_frames": 16}


def test_the_paper_preset_has_the_papers_figures():
    config = paper()
    assert (config.train.steps, config.scale.ranks, config.train.micro_batches) == (120_000, 8, 8)
    assert config.model.image_size == 512
    assert config.train.budget_frames == config.model.window_frames


@pytest.mark.parametrize("preset", [small, paper])
def test_renderers_from_published_weights_have_no_guess_and_no_motion_phase(preset):
    config = preset()
    assert not config.model.guess
    assert config.train.span("motion") == (0, 0)
    assert config.train.peaks("frames")["motion"] > 0


def test_phases_do_not_depend_on_the_number_of_steps():
    train = Stage1TrainConfig(steps=10, vae_steps=2, motion_steps=1, frames_steps=4, stills=2)
    phases = [train.phase(step) for step in range(10)]
    assert phases == ["vae"] * 2 + ["motion"] + ["frames"] * 4 + ["temporal"] * 3
    assert [replace(train, steps=30).phase(step) for step in range(10)] == phases
    assert [train.span(phase) for phase in PHASES] == [(0, 2), (2, 3), (3, 7), (7, 10)]
    assert [train.stills_of(step) for step in (0, 6, 7)] == [2, 2, None]


@pytest.mark.parametrize("member", ["controls.npy", "landmarks.npy"])
def test_tracks_in_some_samples_only_are_refused(video_corpus, member):
    folder, _ = video_corpus([30, 40], tracks=True)
    index = load_index(folder)
    config = Stage1Config(train=Stage1TrainConfig(vae_steps=1, stills=1))
    index.offset[member][0] = -1
    with pytest.raises(ValueError, match=rf"{member} must be in all samples or in none, got 1 of 2"):
        config.prepare(index, None)
    without = replace(config, model=RendererConfig(guess=False))
    without.prepare(index, None)

"""Test the options of an animation: what a model recommends, and what overrides it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xactor import model_folder as folders
from xactor.motion import SamplingConfig
from xactor.options import PAPER, QUALITIES, AnimateOptions, Recommended, read_recommended, recommended
from xactor.pipeline import XActorPipeline
from xactor.render import RenderConfig

DRAFT = {**PAPER, "motion_steps": 1, "audio_cfg": 1.0, "render_steps": 1, "render_cfg": 1.0}
GOOD = {**DRAFT, "motion_steps": 2, "relative_motion": False}
FILE = {"default": "good", "draft": DRAFT, "good": GOOD, "best": PAPER}


def test_without_a_recommendation_the_papers_options_apply(tmp_path):
    papers = Recommended.of(tmp_path)
    assert not papers.from_model
    options = AnimateOptions().with_recommended(papers)
    assert (options.sampling(), options.rendering()) == (SamplingConfig(), RenderConfig())


def test_options_override_the_quality_and_the_quality_overrides_the_default():
    models = Recommended.parse(FILE)
    assert AnimateOptions().with_recommended(models).motion_steps == 2
    assert AnimateOptions(quality="best").with_recommended(models).motion_steps == 50
    chosen = AnimateOptions(quality="draft", motion_steps=7, relative_motion=False)
    chosen = chosen.with_recommended(models)
    assert chosen.sampling() == SamplingConfig(steps=7, audio_cfg=1.0)
    assert chosen.rendering() == RenderConfig(steps=1, cfg=1.0, relative_motion=False)


def test_the_recommendation_is_saved_with_the_model_and_read_from_an_object_store(
    model_folder, tmp_path, bucket
):
    pipeline = XActorPipeline.from_pretrained(model_folder)
    assert not pipeline.recommended.from_model
    pipeline.recommended = Recommended.parse(FILE)
    pipeline.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "recommended.json").read_text()) == FILE
    assert XActorPipeline.from_pretrained(tmp_path / "model").recommended == pipeline.recommended
    assert recommended(tmp_path / "model") == pipeline.recommended

    from pyarrow import fs

    uri = bucket.format("models")
    store, path = fs.FileSystem.from_uri(uri)
    assert recommended(uri) == Recommended()
    fs.copy_files(str(tmp_path / "model"), path, destination_filesystem=store)
    assert recommended(uri) == pipeline.recommended


def test_a_pipeline_follows_its_models_recommendation(model_folder):
    pipeline = XActorPipeline.from_pretrained(model_folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.recommended = Recommended.parse(FILE)
    face = Image.fromarray(pytest.importorskip("skimage.data").astronaut())
    sound = np.random.default_rng(0).normal(size=6400).astype(np.float32) * 0.1

    def frames(**configs):
        return np.stack(list(pipeline(face, sound, **configs).frames))

    wanted = frames(
        motion=SamplingConfig(steps=2, audio_cfg=1.0),
        render=RenderConfig(steps=1, cfg=1.0, relative_motion=False),
    )
    np.testing.assert_array_equal(frames(), wanted)
    assert (frames(motion=SamplingConfig(steps=1, audio_cfg=1.0)) != wanted).any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], r"must be an object with best, default, draft, good$"),
        ({**FILE, "fast": DRAFT}, r"must be an object with best, default, draft, good$"),
        ({**FILE, "default": "fast"}, r"default must be one of draft, good, best, got 'fast'"),
        (
            {**FILE, "best": {"motion_steps": 1}},
            r"best must be an object with motion_steps, audio_cfg, history, ",
        ),
        (
            {**FILE, "good": {**GOOD, "render_steps": -1}},
            r"good: render steps must be within 0\.\.1000, got -1",
        ),
        (
            {**FILE, "good": {**GOOD, "relative_motion": 1}},
            r"good: relative_motion must be of type bool, got 1",
        ),
        ({**FILE, "draft": {**DRAFT, "history": "long"}}, r"draft: history must be one of .*, got 'long'"),
    ],
)
def test_a_wrong_recommendation_is_named(tmp_path, values, message):
    path = tmp_path / "recommended.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as error:
        Recommended.of(tmp_path)
    assert str(error.value).startswith(f"{path}: ")


def test_files_that_are_no_json_or_missing_are_named(tmp_path):
    for name, text in (("not.json", "{"), ("missing.json", None)):
        if text:
            (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            read_recommended(tmp_path / name)


@pytest.mark.parametrize("quality", ["fast", ""])
def test_an_unknown_quality_is_refused(quality):
    with pytest.raises(ValueError, match=f"quality must be one of {', '.join(QUALITIES)}, got {quality!r}"):
        AnimateOptions(quality=quality)


def test_the_name_box_is_the_packages_own_model_and_no_other_name_is():
    assert folders.located("./box") == "./box"
    own = Path(folders.__file__).with_name("box")
    if (own / "model_index.json").is_file():
        assert folders.located("box") == str(own)
    else:
        with pytest.raises(
            ValueError, match="this installation has no model in the box; give a model folder"
        ):
            folders.located("box")

"""Test that the report on stage 1 compares errors with those of the still picture, and probes the latents."""

import json

import numpy as np
import pytest
from PIL import Image
from render_models import small_components, without_zero_weights

from xactor.faces import region_pixels
from xactor.render import RenderConfig, Renderer
from xactor_platform.demo_corpus.corpus import make_demo_corpus
from xactor_platform.evaluation.render_report import _gain, _named, _true_colours, report_render, sheet


def test_a_probe_names_people_only_if_their_latents_differ():
    rng = np.random.default_rng(0)
    motion = rng.normal(size=(1, 60, 16))
    people = 3 * rng.normal(size=(4, 1, 16))
    own = 0.1 * rng.normal(size=(4, 60, 16))
    assert _named(motion + people + own, 30) > 0.95
    assert _named(motion + own, 30) < 0.5
    # The change since the first frame is the same for all four people, so every name is a guess.
    z = motion + people
    assert _named(z - z[:, :1], 30) == pytest.approx(0.25, abs=0.1)


def test_the_gain_is_relative_to_the_still_pictures_error():
    # Squared errors of two windows: of the generated and of the still mouth, of the generated and of the still face;
    # and the share of true colours.
    gain = _gain([(1.0, 4.0, 3.0, 3.0, 0.5), (1.0, 4.0, 9.0, 3.0, 1.0)])
    assert (gain.mouth, gain.face, gain.mouth_colours) == (0.75, -1.0, 0.75)


def test_a_blob_in_the_mouth_has_no_true_colours():
    true = np.random.default_rng(0).integers(60, 180, (3, 32, 32, 3)).astype(np.uint8)
    blob = true.copy()
    blob[:, 20:26, 12:20] = (255, 180, 220)
    region = (0.4, 0.9, 0.2, 0.8)
    rows, columns = region_pixels(region, 32)
    assert _true_colours(true, true, region) == 1.0
    share = 6 * 8 / (len(range(*rows.indices(32))) * len(range(*columns.indices(32))))
    assert _true_colours(blob, true, region) == pytest.approx(1 - share)


def test_a_renderer_of_an_encoders_latents_is_not_shown_those_of_controls(tmp_path, video_corpus):
    videos, _ = video_corpus([30], split="test", tracks=True)
    components = small_components()
    for model in (components.motion_encoder, components.unet):
        model.register_to_config(latent_origin="motion-encoder-0")
    Renderer(**vars(components)).save_pretrained(tmp_path / "model")
    message = f"{tmp_path}/model/unet works with those of motion-encoder-0, {videos} with those of controls-1"
    with pytest.raises(ValueError, match=message):
        report_render(str(tmp_path / "model"), videos, tmp_path / "report", latents="controls")


@pytest.mark.slow
def test_the_report_covers_held_out_people(tmp_path):
    corpus = make_demo_corpus(
        tmp_path / "corpus",
        minutes=0.1,
        held_out_minutes=0.2,
        identities=1,
        size_px=64,
        crop_px=32,
        workers=1,
    )
    Renderer(**vars(small_components())).save_pretrained(tmp_path / "model")
    Renderer(**vars(without_zero_weights(small_components()))).save_pretrained(tmp_path / "moving")
    config = RenderConfig(steps=1, cfg=1, window_frames=4, overlap_frames=0)
    report = report_render(
        str(tmp_path / "model"), str(corpus.videos), tmp_path / "report", config=config, max_clips=2
    )
    assert "drawn-007" in report.speakers
    for gain in report.speakers.values():
        assert 0 <= gain.mouth_colours <= 1
        assert -5 < gain.mouth < 1
        assert -5 < gain.face < 1
    # A model from random weights does not move yet. In one that does, the source of the latents makes a difference.
    moving = [
        report_render(
            str(tmp_path / "moving"),
            str(corpus.videos),
            tmp_path / source,
            config=config,
            latents=source,
            max_clips=1,
        )
        for source in ("encoder", "controls")
    ]
    assert moving[0].speakers != moving[1].speakers
    latents = report.latents
    assert latents is not None
    assert (latents.people, latents.chance) == (8, 1 / 8)
    assert 0 <= latents.identity_of_change <= 1
    assert 0 <= latents.identity_accuracy <= 1
    assert "of z's changes" in report.table()
    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["latents"]["identity_of_change"] == latents.identity_of_change
    with Image.open(tmp_path / "report" / "faces.png") as picture:
        assert picture.size[1] == 2 * 96 * len(report.clips)
    for tar in corpus.videos.glob("test-*"):
        tar.unlink()
    (corpus.videos / "index.parquet").unlink()
    with pytest.raises(ValueError, match="no held-out shards"):
        report_render(str(tmp_path / "model"), str(corpus.videos), tmp_path / "none", config=config)
    assert not (tmp_path / "none").exists()


def test_a_sheet_holds_rows_of_different_lengths():
    frame = np.full((8, 8, 3), 200, np.uint8)
    assert sheet([[frame] * 3, [frame]]).size == (3 * 96, 2 * 96)

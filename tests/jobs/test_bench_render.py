"""Test that the bench of the renderer measures every kind of case and whole videos."""

import numpy as np
import pytest
from benches.render import Case, Measured, measure, measure_lengths, run_case
from PIL import Image
from pipelines import small_pipeline

from xactor.controls import CONTROL_COUNT
from xactor_platform.demo_corpus.identity import held_out_identities, render_frame


@pytest.mark.slow
def test_more_steps_take_longer_and_each_kind_runs():
    few, many = (
        run_case(Case(size="tiny", image_size=64, window_frames=4, steps=steps, rounds=2)) for steps in (1, 8)
    )
    assert few.frames_per_s > 1.5 * many.frames_per_s
    assert isinstance(
        run_case(Case(size="tiny", image_size=64, window_frames=2, steps=1, kind="uncached")), Measured
    )


@pytest.mark.slow
def test_diffusers_pipeline_is_measured_in_a_process_of_its_own():
    (row,) = measure(
        [Case(size="tiny", image_size=64, window_frames=2, steps=2, kind="animatediff", rounds=1)]
    )
    assert row["kind"] == "animatediff"
    assert row["frames_per_s"] > 0
    assert 100 < row["peak_mb"] < 4000


@pytest.mark.slow
def test_a_whole_video_is_measured_with_its_seams(tmp_path):
    model, image = tmp_path / "model", tmp_path / "face.png"
    small_pipeline().save_pretrained(model)
    Image.fromarray(render_frame(held_out_identities()[0], np.zeros(CONTROL_COUNT, np.float32), 256)).save(
        image
    )
    (row,) = measure_lengths(str(model), str(image), [1.5], steps=1)
    assert row["frames_per_s"] > 0
    assert 100 < row["peak_mb"] < 4000
    assert 0 < row["at_seams"] < 255
    assert 0 < row["elsewhere"] < 255

"""The renderer's benchmark: it measures what it says."""

from xactor_platform.bench_render import Case, Measured, measure, run_case


def test_more_steps_take_longer_and_each_kind_runs():
    few, many = (
        run_case(Case(size="tiny", image_size=64, window_frames=4, steps=steps, rounds=2)) for steps in (1, 8)
    )
    assert few.frames_per_s > 1.5 * many.frames_per_s
    assert isinstance(
        run_case(Case(size="tiny", image_size=64, window_frames=2, steps=1, kind="uncached")), Measured
    )


def test_diffusers_pipeline_is_measured_beside_in_a_process_of_its_own():
    (row,) = measure(
        [Case(size="tiny", image_size=64, window_frames=2, steps=2, kind="animatediff", rounds=1)]
    )
    assert row["kind"] == "animatediff"
    assert row["frames_per_s"] > 0
    assert 100 < row["peak_mb"] < 4000

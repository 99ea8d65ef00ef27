"""Check that the demo's steps hide library messages, show progress and estimate the remaining time."""

import sys
from pathlib import Path

import _steps
import pytest
from _steps import Step, Steps

NOISE = (
    "import sys, time\n"
    "print('W0000 00:00:1.2  42 inference_feedback_manager.cc:121] Feedback manager', file=sys.stderr)\n"
    "print('\\x1b[36m(RayTrainWorker pid=7)\\x1b[0m Cluster resources are not enough')\n"
    "print('\\x1b[36m(RayTrainWorker pid=7)\\x1b[0m step 1/4  loss 1.0  86:44 left')\n"
    "print('INFO: Created TensorFlow Lite XNNPACK delegate for CPU.')\n"
    "time.sleep(0.4)\n"
    "print('\\x1b[36m(RayTrainWorker pid=7)\\x1b[0m step 4/4  loss 0.5  0:00 left')\n"
    "print('done: step 4')\n"
)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch) -> Steps:
    monkeypatch.setattr(_steps, "MAX_SILENCE_S", 0.1)
    both = [Step(title="Training stage 1", expected_s=60), Step(title="Rendering", expected_s=240)]
    return Steps(both, tmp_path / "demo.log")


def test_output_shows_titles_progress_and_results_but_no_library_messages(steps, tmp_path, capsys):
    steps.next()
    assert steps.run([sys.executable, "-c", NOISE]) == 0
    printed = capsys.readouterr().out
    assert "Training stage 1 (1 of 2), about 5 min left" in printed
    assert "  step 4/4  loss 0.5  " in printed
    assert "  done: step 4" in printed
    for noise in ("Feedback manager", "Cluster resources", "INFO", "pid=7", "86:44"):
        assert noise not in printed
    assert "Feedback manager" in (tmp_path / "demo.log").read_text()


def test_output_that_is_not_text_ends_no_step(steps, capsys):
    steps.next()
    code = r"import sys; sys.stdout.buffer.write(b'\xff\n'); print('done: step 4')"
    assert steps.run([sys.executable, "-c", code]) == 0
    assert "done: step 4" in capsys.readouterr().out


def test_results_are_shown_without_library_messages(steps, capsys):
    steps.next()
    code = "print('WARNING: x'); print('Latents of 8 people'); import sys; print('hidden', file=sys.stderr)"
    assert steps.run([sys.executable, "-c", code], results=True) == 0
    printed = capsys.readouterr().out
    assert "Latents of 8 people" in printed
    assert "WARNING" not in printed
    assert "hidden" not in printed


def test_silent_command_still_shows_progress(steps, capsys):
    steps.next()
    steps.run([sys.executable, "-c", "import time; time.sleep(0.6)"])
    assert capsys.readouterr().out.count("working") >= 2


def test_failed_command_shows_its_last_lines(steps, capsys):
    steps.next()
    code = "import sys; print('cannot read x', file=sys.stderr); sys.exit(3)"
    assert steps.run([sys.executable, "-c", code]) == 3
    assert "cannot read x" in capsys.readouterr().out


def test_estimate_follows_progress_and_finished_steps(steps, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(_steps.time, "monotonic", lambda: now[0])
    steps._started = 0.0
    assert steps.left_s() == 300
    steps.next()
    now[0], steps._fraction = 60.0, 0.5
    assert steps.left_s() == 60 + 240
    now[0] = 120.0
    steps.next()
    # The first step took twice the expected time.
    assert steps.left_s() == 480


def test_skipped_step_does_not_count_as_fast(steps, monkeypatch, capsys):
    steps.next()
    steps.skip()
    steps.next()
    assert steps.left_s() == pytest.approx(240, abs=1)
    assert "exists already" in capsys.readouterr().out

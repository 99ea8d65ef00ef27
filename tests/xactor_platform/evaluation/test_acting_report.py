"""Test the report on acting, and with it the model in the box: what it renders must speak what it hears."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import xactor_serving
from xactor import XActorPipeline
from xactor.faces import FaceLandmarker
from xactor.media import read_audio
from xactor.rates import FPS, SAMPLES_PER_FRAME
from xactor_platform.demo_corpus.corpus import make_demo_corpus
from xactor_platform.evaluation.acting_report import read_lips, report_acting

EXAMPLES = Path(xactor_serving.__file__).parent / "page" / "examples"


@pytest.mark.slow
def test_the_model_in_the_box_speaks_what_it_hears(tmp_path):
    corpus = make_demo_corpus(
        tmp_path / "corpus", minutes=0.05, held_out_minutes=0.15, identities=1, crop_px=32, workers=2
    )
    clips = corpus.folder / "clips" / "test"
    report = report_acting("box", clips, tmp_path / "report", max_seconds=5)
    assert sorted(report.clips) == sorted(clip.stem for clip in clips.glob("*.mp4"))
    for clip in report.clips.values():
        # The reader itself must read true clips.
        assert clip.true_read > 0.8
        assert clip.generated > 0.5
        assert clip.generated > clip.shuffled + 0.3
        assert 0.4 < clip.opening < 1.6
    assert (
        json.loads((tmp_path / "report" / "report.json").read_text())["clips"].keys() == report.clips.keys()
    )
    assert all(key in report.table() for key in report.clips)
    with Image.open(tmp_path / "report" / "acting.png") as picture:
        assert picture.size == (16 * 96, 3 * 96 * len(report.clips))


@pytest.mark.slow
def test_speech_may_begin_inside_a_vowel():
    """The mouth opens as far as in the same speech after a pause."""
    pipeline = XActorPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    samples = read_audio(EXAMPLES / "good-news.m4a")[: 3 * FPS * SAMPLES_PER_FRAME]
    loudest = int(np.square(samples).reshape(-1, SAMPLES_PER_FRAME).mean(1).argmax()) * SAMPLES_PER_FRAME
    vowel = samples[loudest : loudest + 2 * FPS * SAMPLES_PER_FRAME]
    landmarker = FaceLandmarker(max_faces=1)
    at_once, after_pause = (
        read_lips(
            landmarker,
            pipeline(EXAMPLES / "man-with-glasses.png", np.pad(vowel, (pause * SAMPLES_PER_FRAME, 0))).frames,
        )[pause:]
        for pause in (0, FPS)
    )
    assert after_pause.std() > 0.1
    assert 0.7 < at_once.std() / after_pause.std() < 1.4
    assert np.corrcoef(at_once, after_pause)[0, 1] > 0.8


def test_a_folder_without_control_tracks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no clips with control tracks"):
        report_acting("box", tmp_path, tmp_path / "report")
    assert not (tmp_path / "report").exists()

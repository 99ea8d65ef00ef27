"""Test the page in Chromium: from a portrait to a video that plays, by keyboard, and its error messages."""

import io
import re
import shutil
from collections.abc import Iterator

import pytest
from client import FAST, png, wav

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (Debian: apt-get install chromium)"),
]
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, service):
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    outside: list[str] = []

    def note_outside(request) -> None:
        if not request.url.startswith((service.url, "blob:", "data:")):
            outside.append(request.url)

    page.on("request", note_outside)
    page.set_default_timeout(60_000)
    page.goto(service.url + "/")
    yield page
    page.close()
    assert not problems
    assert not outside


def choose(page, face: bytes, sound: bytes | None) -> None:
    page.get_by_label("Portrait").set_input_files(
        {"name": "face.png", "mimeType": "image/png", "buffer": face}
    )
    if sound:
        file = {"name": "speech.wav", "mimeType": "audio/wav", "buffer": sound}
        page.get_by_label("Speech", exact=False).first.set_input_files(file)
    set_fast(page)


def set_fast(page) -> None:
    page.get_by_text("More options").click()
    for name, value in FAST.items():
        page.locator(f"#{name}").fill(str(value))


def test_video_plays_and_can_be_saved(page, face, tmp_path):
    choose(page, face, wav(3))
    page.evaluate(
        """() => { window.seen = []; const status = document.getElementById("status");
            new MutationObserver(() => window.seen.push(status.textContent)).observe(status, {childList: true}); }"""
    )
    page.get_by_role("button", name="Make the video").press("Enter")
    page.wait_for_function("document.querySelector('video').currentTime > 0.2")
    page.get_by_text("The video is ready: 64 x 64 pixels, 3.0 s, 0.").wait_for()
    progress = [text for text in page.evaluate("window.seen") if " frames, about " in text]
    assert progress
    assert all(re.fullmatch(r"\d+ of 75 frames, about \d+ s left", text) for text in progress)
    page.wait_for_function("Math.abs(document.querySelector('video').duration - 3) < 0.1")
    assert page.evaluate("document.querySelector('video').videoWidth") == 64
    with page.expect_download() as saving:
        page.get_by_role("link", name="Download the video").click()
    saving.value.save_as(tmp_path / "saved.mp4")
    assert (tmp_path / "saved.mp4").stat().st_size > 1000


def test_speech_can_be_recorded(page, face):
    choose(page, face, None)
    page.get_by_role("button", name="Record speech").click()
    page.wait_for_timeout(1200)
    page.get_by_role("button", name="Stop recording").click()
    page.get_by_text("Recording finished.").wait_for()
    page.get_by_role("button", name="Make the video").click()
    page.get_by_text("The video is ready: ").wait_for()


def test_an_example_needs_two_clicks(page):
    page.get_by_role("button", name="man with glasses").click()
    page.get_by_role("button", name="good news").click()
    page.wait_for_function("document.getElementById('heard').duration > 2")
    assert page.locator("#shown").get_attribute("alt") == "man-with-glasses.png"
    set_fast(page)
    page.get_by_role("button", name="Make the video").click()
    page.get_by_text("The video is ready: ").wait_for()


def test_notes_about_the_portrait_stay_visible(page, face):
    import numpy as np
    from PIL import Image

    picture = np.asarray(Image.open(io.BytesIO(face)).convert("RGB"))
    choose(page, png(np.concatenate([picture, picture], axis=1)), wav(0.5))
    page.get_by_role("button", name="Make the video").click()
    page.get_by_text("The video is ready: ").wait_for()
    assert page.locator("#notes").inner_text().startswith("About the portrait: ")
    assert page.locator("#notes").is_visible()


def test_a_narrow_window_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= 390")


def test_errors_are_shown(page):
    import numpy as np

    choose(page, png(np.full((200, 200, 3), 128, np.uint8)), wav(0.5))
    page.get_by_role("button", name="Make the video").click()
    alert = page.get_by_role("alert")
    alert.filter(has_text="no face is found").wait_for()
    assert "request" not in alert.inner_text().lower()
    assert re.fullmatch(r"Request [A-Za-z0-9._-]+", page.locator("#request").inner_text())
    button, message = (page.locator(place).bounding_box() for place in ("#make", "#error"))
    assert 0 < message["y"] - button["y"] < 80
    page.get_by_role("button", name="Make the video").wait_for()
    assert page.get_by_role("button", name="Make the video").is_enabled()


def test_every_control_has_a_name_and_keyboard_focus(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, button, a, video')].filter(e => !e.hidden && !e.labels?.length
            && !e.textContent.trim() && !e.ariaLabel && e.tagName !== 'VIDEO').map(e => e.id)"""
    )
    assert unnamed == []
    page.get_by_text("More options").click()
    page.keyboard.press("Shift+Tab")
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    wanted = {"image", "audio", "record", "quality", "motion_steps", "seed", "paste_back", "key", "make"}
    assert wanted <= reached

"""Test that the page of the user study hides the methods and works by keyboard, and that its votes are counted."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xactor.media import write_video
from xactor_platform.cluster.local import free_port
from xactor_platform.evaluation.report import table
from xactor_platform.evaluation.study import QUESTIONS, Key, common_examples, make_study, orders
from xactor_platform.evaluation.votes import count_votes, read_votes

METHODS, EXAMPLES, RATERS = ("xactor", "sonic", "memo"), 2, 4
# WebDriver's name for a reference to an element.
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
TAB, SPACE, ENTER, DOWN, BACKSPACE = "\ue004", " ", "\ue007", "\ue015", "\ue003"


@pytest.fixture(scope="module")
def methods(tmp_path_factory) -> dict[str, Path]:
    """Make a folder of three videos for each method. Two of the videos have the same ids in all folders."""
    root = tmp_path_factory.mktemp("methods")
    for shade, method in enumerate(METHODS):
        for number, example in enumerate(("000-anger", "001-joy", f"002-{method}-alone")):
            (root / method).mkdir(exist_ok=True)
            frames = np.full((25, 64, 64, 3), 60 * shade + 20 * number, np.uint8)
            sound = np.zeros(25 * 640, np.float32)
            write_video(root / method / f"{example}.mp4", frames, fps=25, samples=sound)
    return {method: root / method for method in METHODS}


@pytest.fixture
def study(methods, tmp_path) -> tuple[Path, Key]:
    page, key = tmp_path / "page", tmp_path / "study.key.json"
    make_study(methods, page, key, examples=EXAMPLES, raters=RATERS, seed=7)
    return page, Key.load(key)


def embedded(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script id="study" type="application/json">(.*)</script>', (page / "index.html").read_text()
    )
    assert found
    return json.loads(found[1])


def ballot(key: Key, rater: int, choose: dict[str, str]) -> dict[str, Any]:
    """Return a vote file as the page writes it. The rater chooses the same method for a question in all examples."""
    names = {method_and_example: name for name, method_and_example in key.videos.items()}
    rows = [{q: names[choose[q], example] for q in QUESTIONS} for example in key.examples]
    return {"study": key.study, "rater": rater, "votes": rows}


def write(folder: Path, name: str, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_page_has_all_videos_and_does_not_name_the_methods(methods, study):
    page, key = study
    data = embedded(page)
    assert set(data) == {"study", "questions", "orders"}
    assert list(QUESTIONS) == ["Syn", "Div", "Emo", "VQ"]
    assert list(data["questions"]) == list(QUESTIONS)
    assert {p.name for p in page.rglob("*") if p.is_file()} == {
        "index.html",
        *(f"{n}.mp4" for n in key.videos),
    }
    for name, (method, example) in key.videos.items():
        assert re.fullmatch("[0-9a-f]{16}", name)
        assert (page / "videos" / f"{name}.mp4").read_bytes() == (
            methods[method] / f"{example}.mp4"
        ).read_bytes()
    assert set(key.videos.values()) == {(m, e) for m in METHODS for e in ("000-anger", "001-joy")}
    text = (page / "index.html").read_text()
    assert not [word for word in (*METHODS, "anger", "joy") if word in text]
    # The page loads nothing from another host.
    assert not re.search(r"https?:|src=\"//|@import|url\(", text)


def test_orders_depend_on_the_seed_and_on_the_rater(methods, study, tmp_path):
    page, key = study
    found = embedded(page)["orders"]
    assert found == orders(key)
    assert len(found) == RATERS
    # An order shows every video once, and the videos of an example together.
    for order in found:
        assert sorted(name for names in order for name in names) == sorted(key.videos)
        assert all(len({key.videos[name][1] for name in names}) == 1 for names in order)
    again = make_study(methods, tmp_path / "2", tmp_path / "2.json", examples=EXAMPLES, raters=RATERS, seed=7)
    assert again == key
    drawn = make_study(methods, tmp_path / "3", tmp_path / "3.json", examples=EXAMPLES, raters=RATERS)
    assert drawn.study != key.study
    many = orders(Key(**{**vars(key), "raters": 200}))
    assert many[:RATERS] == found
    first = [key.videos[order[0][0]][0] for order in many]
    # An even draw gives 67 each.
    assert all(40 < first.count(method) < 95 for method in METHODS)


def test_bad_arguments_are_named(methods, tmp_path):
    def fails(match: str, given=methods, key: Path | None = None, **options):
        with pytest.raises(ValueError, match=match):
            make_study(given, tmp_path / "page", key or tmp_path / "key.json", **{"examples": 2, **options})
        assert not (tmp_path / "page").exists()

    fails(r"methods must be within 2\.\.26, got 1", {"xactor": methods["xactor"]})
    fails(
        "must be letters, digits, .* got '../xactor'",
        {"../xactor": methods["xactor"], "sonic": methods["sonic"]},
    )
    fails("nowhere: no such folder, of the method memo", {**methods, "memo": tmp_path / "nowhere"})
    fails(
        r"examples must be within 1\.\.2, the number of ids for which every method has a video, got 3",
        examples=3,
    )
    fails("raters must be >= 1, got 0", raters=0)
    fails("seed must be >= 0, got -1", seed=-1)
    fails("the key must be outside of the page's folder", key=tmp_path / "page" / "videos" / "key.json")
    write(tmp_path / "page", "old.html", "")
    with pytest.raises(ValueError, match="page must be empty or new, it holds 1 files"):
        make_study(methods, tmp_path / "page", tmp_path / "key.json", examples=2)
    with pytest.raises(ValueError, match=r"old\.html: not the key of a study"):
        Key.load(tmp_path / "page" / "old.html")
    assert common_examples(methods) == ["000-anger", "001-joy"]


def test_shares_and_standard_errors_go_into_table_1(study, tmp_path):
    _, key = study
    always, never = dict.fromkeys(QUESTIONS, "xactor"), dict.fromkeys(QUESTIONS, "memo")
    files = [
        write(tmp_path / "votes", "a.json", ballot(key, 1, always)),
        write(tmp_path / "votes", "b.json", ballot(key, 2, {**always, "VQ": "sonic"})),
        write(tmp_path / "votes", "c.json", ballot(key, 3, never)),
    ]
    found = count_votes(files, key)
    assert (found.raters, found.left_out) == (3, ())
    assert found.shares["xactor"] == pytest.approx({"Syn": 2 / 3, "Div": 2 / 3, "Emo": 2 / 3, "VQ": 1 / 3})
    for question in QUESTIONS:
        assert sum(found.shares[method][question] for method in METHODS) == pytest.approx(1)
    # The shares 1, 1, 0 have the deviation 0.577; over the root of 3 raters that is 1/3.
    assert found.errors["xactor"]["Syn"] == pytest.approx(1 / 3)
    found.save(tmp_path / "counted")
    assert "| xactor | 0.667 ± 0.333 | 0.667 ± 0.333 | 0.667 ± 0.333 | 0.333 ± 0.333 |" in found.table()
    assert (tmp_path / "counted" / "table.md").read_text() == found.table()
    assert json.loads((tmp_path / "counted" / "vote_count.json").read_text())["raters"] == 3
    votes = read_votes(tmp_path / "counted" / "sonic" / "votes.json")
    assert votes == pytest.approx({"Syn": 0, "Div": 0, "Emo": 0, "VQ": 1 / 3})
    row = table("cross-driven", {}, {}, [], votes).splitlines()[2]
    assert row.split("|")[6:10] == [" 0 ", " 0 ", " 0 ", " 0.3333 "]
    single = count_votes(files[:1], key)
    assert single.errors == {}
    assert "| xactor | 1.000 | 1.000 | 1.000 | 1.000 |" in single.table()


def test_files_that_do_not_count_are_named_in_one_line_each(study, tmp_path):
    _, key = study
    good = ballot(key, 1, dict.fromkeys(QUESTIONS, "xactor"))
    rows = good["votes"]
    other = next(iter(key.videos))
    bad = {
        "b-again": (good, f"duplicate: rater 1 voted in {tmp_path}/votes/a.json already"),
        "c-cut": ({**good, "votes": rows[:1]}, "incomplete: 4 of 8 answers are missing"),
        "d-hole": ({**good, "votes": [rows[0], {**rows[1], "VQ": None}]}, "foreign: 'VQ' is answered by None"),
        "e-study": ({**good, "study": "x"}, f"foreign: it must be of the study {key.study}, got 'x'"),
        "f-list": ([], f"foreign: it must be of the study {key.study}, got None"),
        "g-rater": ({**good, "rater": 5}, "foreign: rater must be within 1..4, got 5"),
        "h-video": ({**good, "votes": [{"Syn": "0" * 16}]}, f"foreign: 'Syn' is answered by '{'0' * 16}'"),
        "i-question": ({**good, "votes": [{"Style": other}]}, "foreign: 'Style' is answered by"),
        "j-twice": ({**good, "votes": [rows[0], rows[0]]}, "foreign: Syn of one example is answered twice"),
        "k-text": ("hello", "not JSON (Expecting value"),
        "l-votes": ({**good, "votes": "none"}, "foreign: its votes must be a list"),
    }  # fmt: skip
    files = [write(tmp_path / "votes", "a.json", good)]
    files += [write(tmp_path / "votes", f"{name}.json", content) for name, (content, _) in bad.items()]
    found = count_votes(reversed(files), key)
    assert found.raters == 1
    assert len(found.left_out) == len(bad)
    for line, (name, (_, why)) in zip(found.left_out, bad.items(), strict=True):
        assert line.startswith(f"{tmp_path}/votes/{name}.json: {why}")
        assert "\n" not in line
    with pytest.raises(ValueError, match="no vote file counts, of 2\n.*c-cut.*\n.*k-text"):
        count_votes([files[2], files[10]], key)
    for content, why in [("{}", "must have the keys Syn"), ('{"Syn": 1', "not JSON")]:
        with pytest.raises(ValueError, match=why):
            read_votes(write(tmp_path, "votes.json", content))
    shares = dict.fromkeys(QUESTIONS, 0.5)
    with pytest.raises(ValueError, match=r"VQ must be within 0\.\.1, got 50"):
        read_votes(write(tmp_path, "votes.json", {**shares, "VQ": 50}))


class Browser:
    """Drive a headless Chromium over the WebDriver protocol, like a person with a keyboard and a screen reader."""

    def __init__(self, driver: str, downloads: Path):
        options = {
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            "prefs": {"download.default_directory": str(downloads)},
        }
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self._url = f"{driver}/session"
        self._url += "/" + self._call("POST", "", {"capabilities": wanted})["sessionId"]

    def _call(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()) from None

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run a script and return its result, awaited if it is a promise."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": strokes}]})

    def tab_to(self, condition: str) -> None:
        """Press Tab until the focused element `here` fulfils a condition in JavaScript."""
        for _ in range(80):
            if self.run(f"const here = document.activeElement; return {condition}"):
                return
            self.press(TAB)
        raise AssertionError(f"no way by Tab to {condition}")

    def heard(self, selector: str) -> list[tuple[str, str]]:
        """Return the role and the name of each matching element that is shown, as a screen reader gets them."""
        found = self._call("POST", "/elements", {"using": "css selector", "value": selector})
        urls = [f"/element/{reference[ELEMENT]}" for reference in found]
        return [
            (self._call("GET", f"{url}/computedrole"), self._call("GET", f"{url}/computedlabel").strip())
            for url in urls
            if self._call("GET", f"{url}/displayed")
        ]

    def close(self) -> None:
        self._call("DELETE", "")


@pytest.fixture
def browser(tmp_path) -> Iterator[Browser]:
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium with its chromedriver on PATH")
    port = free_port()
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert driver.poll() is None, f"chromedriver ended with {driver.returncode}"
            assert time.monotonic() < deadline, "chromedriver does not answer in 60 s"
            time.sleep(0.1)
        opened = Browser(f"http://127.0.0.1:{port}", tmp_path / "downloads")
        yield opened
        opened.close()
    finally:
        driver.terminate()
        driver.wait(20)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture
def hosted(study) -> Iterator[str]:
    """Serve the page with a static web server, and yield its URL."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Quiet, directory=str(study[0]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.slow
def test_a_rater_needs_only_the_keyboard_and_the_votes_count(study, hosted, browser, tmp_path):
    _, key = study
    browser.open(hosted)
    assert browser.heard("input") == [("spinbutton", "Your rater number:")]
    browser.tab_to("here.id === 'rater'")
    # The study has four raters, so rater 9 does not see an example.
    browser.press("9", ENTER)
    assert browser.run("return document.getElementById('example').hidden")
    browser.press(BACKSPACE, "2", ENTER)
    assert browser.run("return document.activeElement.textContent") == "Example 1 of 2"
    videos = ["Video A", "Video B", "Video C"]
    assert [name for _, name in browser.heard("video")] == videos
    assert browser.heard("fieldset") == [("group", text) for text in QUESTIONS.values()]
    assert browser.heard("input[name=Emo]") == [("radio", name) for name in videos]

    chosen = []
    for number, order in enumerate(orders(key)[1]):
        assert browser.run(
            "return [...document.querySelectorAll('video')].map(v => v.getAttribute('src'))"
        ) == [f"videos/{name}.mp4" for name in order]
        for place, question in enumerate(QUESTIONS):
            browser.tab_to(f"here.name === '{question}'")
            # The space bar chooses the first video, and each arrow down the next one.
            browser.press(SPACE, *[DOWN] * (place % 3))
            chosen.append({"question": question, "name": order[place % 3]})
            # The rater leaves the page and returns by a link.
            if question == "Div" and number == 1:
                browser.open(f"{hosted}?rater=2")
                assert browser.run("return document.activeElement.textContent") == "Example 2 of 2"
                assert browser.run("return document.querySelectorAll(':checked').length") == 2
            # VQ has no answer yet, so `Next` moves the focus to it.
            if question == "Emo":
                browser.tab_to("here.textContent === 'Next'")
                browser.press(ENTER)
                assert not browser.run("return document.getElementById('example').hidden")
                assert browser.run("return document.activeElement.name") == "VQ"
        browser.tab_to("here.textContent === 'Next'")
        browser.press(ENTER)
    assert browser.run("return document.activeElement.textContent") == "All examples are answered"
    browser.tab_to("here.id === 'download'")
    browser.press(ENTER)
    file = tmp_path / "downloads" / "votes-2.json"
    deadline = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < deadline, "nothing was downloaded in 30 s"
        time.sleep(0.1)
    ballot = json.loads(file.read_text())
    answers = [{"question": q, "name": name} for row in ballot["votes"] for q, name in row.items()]
    assert answers == chosen
    assert count_votes([file], key).raters == 1


def test_each_rater_has_separate_answers_and_can_change_them(study, hosted, browser):
    _, key = study
    first = "document.querySelectorAll('fieldset').forEach(f => f.querySelector('input').click())"
    following = "document.querySelector('#example button:not([type])').click()"
    browser.open(f"{hosted}?rater=1")
    browser.run(f"{first}; {following}")
    browser.run("document.getElementById('back').click()")
    assert browser.run("return document.getElementById('heading').textContent") == "Example 1 of 2"
    checked = "return [...document.querySelectorAll(':checked')].map(radio => radio.value)"
    assert browser.run(checked) == [orders(key)[0][0][0]] * len(QUESTIONS)
    assert not browser.heard("#back")
    browser.open(f"{hosted}?rater=3")
    assert browser.run(checked) == []
    # The four raters have no number 99, so the page asks for the number.
    browser.open(f"{hosted}?rater=99")
    assert browser.heard("input") == [("spinbutton", "Your rater number:")]


def test_videos_play_one_at_a_time(hosted, browser):
    browser.open(f"{hosted}?rater=1")
    states = browser.run("""
        const videos = [...document.querySelectorAll('video')];
        for (const video of videos) { video.muted = video.loop = true; await video.play(); }
        return videos.map(video => [video.paused, video.error, video.videoWidth]);
    """)
    assert states == [[True, None, 64], [True, None, 64], [False, None, 64]]

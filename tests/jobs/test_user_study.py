"""Test that the job of the user study makes a page of ready videos and counts votes, with the right exit status."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "jobs/user_study.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_ready_videos_become_a_page_and_votes_are_counted_by_method(tmp_path):
    for method in ("ours", "sonic"):
        (tmp_path / method).mkdir()
        (tmp_path / method / "000-hello.mp4").write_bytes(method.encode())
    (tmp_path / "ours" / "001-alone.mp4").touch()
    folders = [f"{method}={tmp_path / method}" for method in ("ours", "sonic")]
    page, key, votes = tmp_path / "page", tmp_path / "key.json", tmp_path / "votes"
    files = ["--page", page, "--key", key]
    made = run("make", "--methods", *folders, *files, "--examples", "1")
    assert made.returncode == 0, made.stderr
    assert "1 of the 1 examples that all 2 methods have" in made.stdout
    again = run("make", "--methods", *folders, *files, "--examples", "1")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "must be empty or new" in again.stderr
    unnamed = run("make", "--methods", folders[0], folders[0], *files)
    assert unnamed.returncode == 2
    assert "methods must be name=folder, each name once" in unnamed.stderr

    study = json.loads(key.read_text())
    name = next(name for name, (method, _) in study["videos"].items() if method == "sonic")
    assert (page / "videos" / f"{name}.mp4").read_bytes() == b"sonic"
    votes.mkdir()
    ballot = {
        "study": study["study"],
        "rater": 1,
        "votes": [dict.fromkeys(("Syn", "Div", "Emo", "VQ"), name)],
    }
    (votes / "votes-1.json").write_text(json.dumps(ballot))
    counting = ["count", "--votes", votes, "--key", key, "--output", tmp_path / "counted"]
    counted = run(*counting)
    assert counted.returncode == 0, counted.stderr
    assert "| 1 raters | Syn ↑ | Div ↑ | Emo ↑ | VQ ↑ |" in counted.stdout
    shares = json.loads((tmp_path / "counted" / "sonic" / "votes.json").read_text())
    assert shares == {"Syn": 1, "Div": 1, "Emo": 1, "VQ": 1}
    # A second file of the same rater is left out, which the exit status reports.
    (votes / "votes-1 (1).json").write_text(json.dumps(ballot))
    assert run(*counting).returncode == 3

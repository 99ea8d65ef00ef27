"""Check that links resolve, that named files and metrics exist, and that the README is short."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACKED = subprocess.run(
    ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
).stdout.split("\n")
PAGES = [line for line in TRACKED if line.endswith(".md") and (ROOT / line).exists()]
MAX_README_LINES = 120


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def _anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", _without_code(page.read_text()), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_resolve(page: str):
    text = re.sub(r"`[^`]*`", "", _without_code((ROOT / page).read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in _anchors(file), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_name_their_language(page: str):
    fences = re.findall(r"^ *```(\w*)", (ROOT / page).read_text(), flags=re.M)
    assert all(fences[::2]), f"{page} has a code block without a language"


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *[page for page in PAGES if page.startswith("docs/")]]
)
def test_named_files_exist(page: str):
    """A path in backticks that starts with a folder of the repository is a file or a folder."""
    rooms = "xactor|platform|serving|jobs|infra|docs|tests"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]+)`", (ROOT / page).read_text()):
        assert (ROOT / name).exists(), f"{page} names {name}"


def test_commands_name_existing_jobs():
    for page in PAGES:
        for job in re.findall(r"python (jobs/[a-z]\w+\.py)", (ROOT / page).read_text()):
            assert (ROOT / job).exists(), f"{page} runs {job}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def test_every_metric_is_documented():
    """Check that docs/operations.md names every metric of the dashboards and of the code."""
    documented = set(re.findall(r"xactor_[a-z_]+", (ROOT / "docs" / "operations.md").read_text()))
    for dashboard in (ROOT / "infra" / "grafana").glob("*.json"):
        for name in re.findall(r"ray_(xactor_[a-z_]+)", dashboard.read_text()):
            assert re.sub(r"_(bucket|sum|count)$", "", name) in documented, name
    for room in ("platform", "serving"):
        for file in (ROOT / room).rglob("*.py"):
            for name in re.findall(
                r'"(xactor_(?:train|serve|dub|curate|precompute)_[a-z_]+[a-z])"', file.read_text()
            ):
                assert name in documented, f"{file} exports {name}"

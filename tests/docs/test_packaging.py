"""Check that the core dependencies are enough, packages are typed, and no text installs somebody else's package."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PYPROJECT["project"]["optional-dependencies"]

# Runs `xactor animate` where only Python's own modules, the core dependencies and their dependencies can be imported.
ANIMATE = '''
import importlib.metadata as metadata, re, sys
from importlib.machinery import PathFinder
from packaging.requirements import Requirement

def normalised(name):
    return re.sub("[-_.]+", "-", name).lower()

def with_dependencies(requirements):
    found, queue = set(), [Requirement(line) for line in requirements]
    while queue:
        requirement = queue.pop()
        name = normalised(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if name in found or not applies:
            continue
        found.add(name)
        queue += [Requirement(line) for line in metadata.requires(name) or []]
    return found

core = with_dependencies(sys.argv[1].split("|")) | {"xactor", "xactor-ray"}
owners = metadata.packages_distributions()

class OnlyCore(PathFinder):
    """Hide the modules and the metadata of all other distributions."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        distributions = {normalised(owner) for owner in owners.get(name.partition(".")[0], ())}
        if distributions and not distributions & core:
            return None
        return super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context=metadata.DistributionFinder.Context()):
        found = super().find_distributions(context)
        return (distribution for distribution in found if normalised(distribution.name) in core)

sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyCore
from xactor.cli import main
sys.argv = ["xactor", *sys.argv[2:]]
main()
'''


def test_core_dependencies_are_enough_to_animate_a_portrait(tmp_path: Path):
    from PIL import Image
    from pipelines import small_pipeline
    from skimage.data import astronaut
    from sounds import write_sound

    small_pipeline().save_pretrained(tmp_path / "model")
    Image.fromarray(astronaut()).save(tmp_path / "face.png")
    write_sound(tmp_path / "speech.wav")
    paths = {"model": "model", "image": "face.png", "audio": "speech.wav", "output": "out.mp4"}
    options = [word for name, path in paths.items() for word in (f"--{name}", str(tmp_path / path))]
    quick = ["--motion-steps", "1", "--render-steps", "1"]
    core = "|".join(PYPROJECT["project"]["dependencies"])
    run = subprocess.run(
        [sys.executable, "-c", ANIMATE, core, "animate", *options, *quick],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert (tmp_path / "out.mp4").stat().st_size > 0


@pytest.mark.parametrize("package", PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
def test_package_is_marked_as_typed(package: str):
    assert (ROOT / package / "py.typed").exists()


def test_no_extra_repeats_a_core_dependency():
    def name(line: str) -> str:
        return re.split(r"[\[<>=~!;]", line)[0]

    core = {name(line) for line in PYPROJECT["project"]["dependencies"]}
    for extra, lines in EXTRAS.items():
        assert not core & {name(line) for line in lines}, extra


def test_no_text_names_a_distribution_that_is_not_ours():
    """The name `xactor` on PyPI belongs to another project, so `pip install xactor` would install foreign code."""
    suffixes = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".txt"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in tracked.splitlines():
        path = ROOT / line
        if path.suffix in suffixes and path.exists() and path != Path(__file__):
            assert not re.search(r"xactor\[|pip install (-\S+ )*'?xactor\b(?!-)", path.read_text()), line


def test_every_named_extra_exists():
    for line in re.findall(r"'\.\[([a-z,]+)\]'", (ROOT / "Makefile").read_text()):
        assert set(line.split(",")) <= set(EXTRAS)
    for room in ("xactor", "platform", "serving", "jobs"):
        for path in (ROOT / room).rglob("*.py"):
            for extras in re.findall(r"'\.\[([a-z,]+)\]'", path.read_text()):
                assert set(extras.split(",")) <= set(EXTRAS), path

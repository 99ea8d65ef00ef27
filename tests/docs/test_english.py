"""Check that docstrings open with a sentence and that every public dataclass field is documented."""

import os
from collections.abc import Iterator
from pathlib import Path

import english
import pytest
from english import ROOMS, Findings, examine, opens_on_a_fragment, python_files

ROOT = Path(__file__).resolve().parents[2]
MAX_FRAGMENT_SHARE = 0.03


@pytest.fixture(scope="module")
def findings() -> Iterator[Findings]:
    here = Path.cwd()
    os.chdir(ROOT)
    yield examine(python_files(ROOMS))
    os.chdir(here)


def test_docstrings_open_with_a_sentence(findings: Findings):
    assert findings.fragment_share <= MAX_FRAGMENT_SHARE, "\n".join(findings.fragments)


def test_public_dataclass_fields_are_documented(findings: Findings):
    assert not findings.fields, "\n".join(findings.fields)


def test_each_name_has_its_own_line(findings: Findings):
    assert not findings.joined, "\n".join(findings.joined)


@pytest.mark.parametrize(
    ("docstring", "fragment"),
    [
        ("Return the length.", False),
        ("A window depends only on its reference.", False),
        ("The manifest: rows of JSON lines.", True),
        ("What a killed replica had begun.", True),
        ("In one line.", True),
        ("`None` where there is none.", False),
    ],
)
def test_fragments_are_distinguished_from_sentences(docstring: str, fragment: bool):
    assert opens_on_a_fragment(docstring) is fragment


def test_undocumented_fields_and_joined_names_are_found(tmp_path: Path):
    file = tmp_path / "some.py"
    file.write_text(
        "@dataclass\n"
        "class Some:\n"
        '    """Hold some.\n\n    first: its number. second: another one.\n    """\n'
        "    first: int\n"
        "    bare: int\n"
        "    own: int\n"
        '    """Documented."""\n'
        "    _private: int\n"
    )
    found = english.examine([file])
    assert [line.rpartition(" ")[2] for line in found.fields] == ["Some.bare"]
    assert len(found.joined) == 1

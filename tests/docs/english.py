"""Find docstrings that open on a fragment, undocumented dataclass fields, and lines that document two names.

python tests/docs/english.py [PATHS]
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOMS = ("xactor", "platform", "serving", "jobs", "tests")
# A sentence that opens with one of these words is not an imperative, and its subject comes late or is missing.
_OPENERS = (
    "what of how where in that which who whom whose when as by with from for on at to between beside until because so "
    "whether after before during inside per than if while"
)
FRAGMENT_OPENERS = frozenset(_OPENERS.split())
ARTICLES = frozenset({"a", "an", "the"})
# A sentence that opens with an article needs one of these verbs.
VERB = re.compile(
    r"\b(is|are|was|were|has|have|had|must|can|may|will|does|do|cannot|should|would|could|"
    r"(accept|add|agree|answer|appear|apply|belong|build|change|come|compute|contain|cost|count|cover|decode|depend|"
    r"differ|drop|end|equal|exist|exit|fail|fit|follow|get|give|grow|handle|hold|ignore|keep|know|learn|leave|lie|list|"
    r"live|load|lose|make|map|mark|mean|measure|move|name|need|produce|raise|read|receive|record|refuse|reject|remain|"
    r"remove|render|repeat|report|represent|resume|return|run|save|say|scale|see|send|set|show|sit|stand|start|stay|stop|"
    r"store|sum|survive|take|tell|train|trust|use|wait|work|write)s?|"
    r"(applies|catches|closes|finishes|goes|matches|passes|reaches|loses|misses|pushes|fetches|watches))\b"
)
# `first: text. second: text` in one line of a docstring.
TWO_NAMES = re.compile(r"\s*[a-z_][\w, ]*: .*\. [a-z_][a-z_0-9, ]*: \S")


@dataclass(kw_only=True)
class Findings:
    """Collect what is wrong with the docstrings of some files."""

    docstrings: int = 0
    """Docstrings that were read."""
    fragments: list[str] = field(default_factory=list)
    """Docstrings that open on a fragment, one line each."""
    fields: list[str] = field(default_factory=list)
    """Public dataclass fields without documentation, one line each."""
    joined: list[str] = field(default_factory=list)
    """Docstring lines that document two names, one line each."""

    @property
    def fragment_share(self) -> float:
        return len(self.fragments) / max(self.docstrings, 1)

    def __str__(self) -> str:
        return "\n".join(
            [
                *self.fragments,
                f"{len(self.fragments)} of {self.docstrings} docstrings open on a fragment "
                f"({self.fragment_share:.1%})",
                *self.joined,
                f"{len(self.joined)} lines document two names",
                *self.fields,
                f"{len(self.fields)} public dataclass fields are undocumented",
            ]
        )


def opens_on_a_fragment(docstring: str) -> bool:
    """Return whether the first sentence has no verb, or opens with a word that delays its subject."""
    sentence = re.split(r"(?<=[.:])\s|\n\n", docstring.strip(), maxsplit=1)[0]
    word = re.split(r"[\s,;]+", sentence.strip("`\"'([ "))[0].strip("`.,:;()").lower()
    return word in FRAGMENT_OPENERS or (word in ARTICLES and not VERB.search(sentence))


def examine(files: Sequence[Path]) -> Findings:
    """Read the docstrings of Python files."""
    findings = Findings()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            place = f"{file}:{getattr(node, 'lineno', 1)}"
            if docstring := ast.get_docstring(node):
                findings.docstrings += 1
                if opens_on_a_fragment(docstring):
                    findings.fragments.append(f"{place}: {docstring.splitlines()[0]}")
                findings.joined += [
                    f"{place}: {line.strip()}" for line in docstring.splitlines() if TWO_NAMES.match(line)
                ]
            if isinstance(node, ast.ClassDef) and not file.parts[0].startswith("tests"):
                findings.fields += [f"{file}:{line}" for line in _undocumented_fields(node)]
    return findings


def python_files(paths: Sequence[str]) -> list[Path]:
    """Return the Python files at and below paths, sorted."""
    found: set[Path] = set()
    for path in map(Path, paths):
        found |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return sorted(found)


def _undocumented_fields(node: ast.ClassDef) -> Iterator[str]:
    """Yield the public fields of a public dataclass that have no docstring below them and no line under `Args:`."""
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    if not decorated or node.name.startswith("_"):
        return
    class_docstring = ast.get_docstring(node) or ""
    for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name = statement.target.id
        if name.startswith("_") or "ClassVar" in ast.unparse(statement.annotation):
            continue
        has_docstring_below = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        is_in_args = re.search(rf"^\s+{name}(, \w+)*\s*(\(.*\))?: ", class_docstring, re.M)
        if not (has_docstring_below or is_in_args):
            yield f"{statement.lineno}: {node.name}.{name}"


if __name__ == "__main__":
    print(examine(python_files(sys.argv[1:] or ROOMS)))

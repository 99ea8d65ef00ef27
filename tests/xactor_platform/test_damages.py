"""Damage shards, indexes, runs, models and media at random: each ends in the right result or in one clear line.

`DAMAGES=500 DAMAGE_SEED=0` are the defaults. `DAMAGE=137` repeats one damage alone.
"""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from damage_targets import TARGETS, Reading, Target, copy_of, prepare
from damages import damage

from xactor.sandbox import Sandbox, SandboxError

DAMAGES, SEED = int(os.environ.get("DAMAGES", 500)), int(os.environ.get("DAMAGE_SEED", 0))
FILE = "tests/xactor_platform/test_damages.py"
# Maximum memory of the process that reads.
_MEMORY_BYTES = 4 << 30


@pytest.fixture(scope="module")
def sandbox():
    sandbox = Sandbox(processes=1, memory_bytes=_MEMORY_BYTES, prepare=prepare)
    yield sandbox
    sandbox.close()


def read(sandbox: Sandbox, target: Target, folder: Path) -> list[Reading] | str:
    """Return the readings of a folder, or the kind of the error that ended the process."""
    try:
        readings = sandbox.submit(target.read, str(folder), timeout_s=target.deadline_s).result()
    except SandboxError as error:
        return f"{error.reason}: {error}"
    # The damaged copy lies elsewhere than the original.
    return [replace(reading, said=reading.said.replace(str(folder), target.name)) for reading in readings]


def outcome(target: Target, reading: Reading, truth: Reading, names: list[str]) -> str:
    """Return `right`, `reported`, `refused` or `other value`; or a finding, which begins with a capital letter.

    Args:
        target: the kind of folder.
        reading: what a call gave for the damaged folder.
        truth: what it gave for the undamaged one.
        names: the damaged files.
    """
    if reading.error:
        return refusal(reading, names)
    if not target.checked:
        if reading.values == truth.values:
            return "reported" if reading.said != truth.said else "right"
        return "reported" if any(name_in(name, reading.said) for name in names) else "other value"
    changed = [name for name in reading.values if reading.values[name] != truth.values.get(name)]
    if changed:
        return f"SILENT change of {changed}"
    lost = {name.partition(" ")[0] for name in truth.values.keys() - reading.values.keys()}
    unnamed = lost - reading.bad.keys()
    # Samples that are gone are counted, with their shard, and not named.
    lines = [line for line in reading.said.splitlines() if f"({len(unnamed)} of " in line]
    if unnamed and not any(name_in(name, line) for name in names for line in lines):
        return f"UNREPORTED loss of {sorted(unnamed)}"
    return "reported" if lost or reading.bad or reading.said != truth.said else "right"


def refusal(reading: Reading, names: list[str]) -> str:
    """Return `refused` for one line that names a damaged file, otherwise the finding."""
    kinds = reading.error.split()
    if not {"ValueError", "OSError"} & set(kinds) or "UnicodeError" in kinds or "JSONDecodeError" in kinds:
        return f"TRACEBACK {kinds[0]}: {reading.message}"
    if "\n" in reading.message.strip() or len(reading.message) > 2000:
        return f"LINES {kinds[0]}: {reading.message}"
    if not any(name_in(name, reading.message) for name in names):
        return f"NAMELESS {kinds[0]}: {reading.message}"
    return "refused"


def name_in(name: str, text: str) -> bool:
    """Return whether a message names a file, or the folder inside the target in which the file lies."""
    path = Path(name)
    return path.name in text or (len(path.parts) > 1 and path.parts[-2] in text)


# One damage takes a second. Warm-up and a busy machine need the rest.
@pytest.mark.timeout(3600)
@pytest.mark.soak
def test_every_damage_ends_in_the_right_result_or_one_clear_line(sandbox, tmp_path):
    truths, findings, counts = {}, [], Counter()
    for target in TARGETS:
        folder = tmp_path / target.name
        folder.mkdir()
        target.make(folder)
        truths[target.name] = read(sandbox, target, folder)
        assert not isinstance(truths[target.name], str), truths[target.name]
        assert not any(reading.error for reading in truths[target.name]), truths[target.name]
    numbers = [int(os.environ["DAMAGE"])] if "DAMAGE" in os.environ else range(DAMAGES)
    for number in numbers:
        target = TARGETS[number % len(TARGETS)]
        pristine, folder = tmp_path / target.name, tmp_path / "damaged" / target.name
        copy_of(pristine, folder)
        what, names = damage(folder, target.files(folder), Random(f"{SEED} {number}"))
        readings = read(sandbox, target, folder)
        if isinstance(readings, str):
            outcomes = {"all": f"DIED {readings}"}
        else:
            outcomes = {
                reading.call: outcome(target, reading, truth, names)
                for reading, truth in zip(readings, truths[target.name], strict=True)
            }
        bad = [f"{call}: {text}" for call, text in outcomes.items() if text[0].isupper()]
        ranks = ("right", "other value", "reported", "refused")
        worst = "finding" if bad else max(outcomes.values(), key=ranks.index)
        counts[target.name, worst] += 1
        if bad or len(list(numbers)) == 1:
            again = f"DAMAGE_SEED={SEED} DAMAGE={number} python -m pytest -m soak {FILE}"
            findings.append(
                f"{number} {target.name}: {what} of {names[0]}: {'; '.join(bad)}\n  again: {again}"
            )
            print(findings[-1], flush=True)
        shutil.rmtree(tmp_path / "damaged")
    for target in TARGETS:
        print(target.name, {kind: n for (name, kind), n in counts.items() if name == target.name})
    assert not any(kind == "finding" for _, kind in counts), f"{len(findings)} findings"


@pytest.mark.parametrize("target", TARGETS[:2], ids=lambda target: target.name)
def test_a_seed_repeats_a_damage(tmp_path, target):
    target.make(tmp_path / "pristine")
    damaged = []
    for number in range(12):
        for copy in ("first", "second"):
            folder = tmp_path / copy
            copy_of(tmp_path / "pristine", folder)
            what = damage(folder, target.files(folder), Random(f"7 {number}"))
            contents = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
            damaged.append((what, contents))
            shutil.rmtree(folder)
    assert damaged[::2] == damaged[1::2]
    assert len({what for (what, _), _ in damaged}) > 6


def test_findings_are_told_from_results():
    shards, media = TARGETS[0], TARGETS[-1]
    truth = Reading("samples", values={"a 0 5": "1", "b 0 5": "2"})
    error = {"message": "/x/a.tar: truncated", "error": "ValueError Exception"}
    for reading, expected in (
        (replace(truth), "right"),
        (replace(truth, values={"a 0 5": "1"}, bad={"b": "cut"}), "reported"),
        (replace(truth, values={"a 0 5": "1"}), "UNREPORTED loss of ['b']"),
        (replace(truth, values={"a 0 5": "1", "b 0 5": "3"}), "SILENT change of ['b 0 5']"),
        (replace(truth, values={"a 0 5": "1"}, said="gone: a.tar (1 of 2 samples)"), "reported"),
        (Reading("samples", **error), "refused"),
        (
            Reading("samples", **error | {"error": "KeyError LookupError"}),
            "TRACEBACK KeyError: /x/a.tar: truncated",
        ),
        (Reading("samples", **error | {"message": "truncated"}), "NAMELESS ValueError: truncated"),
        (Reading("samples", **error | {"message": "a.tar:\nx"}), "LINES ValueError: a.tar:\nx"),
    ):
        assert outcome(shards, reading, truth, ["a.tar"]) == expected
    assert outcome(media, replace(truth, values={}), truth, ["a.mp4"]) == "other value"

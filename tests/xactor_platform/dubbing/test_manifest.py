"""Test that manifests of every kind are read, and that a bad row fails alone."""

import json
import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from dub_manifests import write_manifest

from xactor.options import AnimateOptions, Recommended
from xactor_platform.dubbing.manifest import _located, read_manifest
from xactor_platform.dubbing.messages import Row

FAST = AnimateOptions(motion_steps=2, render_steps=1, render_cfg=1.0)


def test_all_kinds_of_manifests_hold_the_same_rows(tmp_path):
    rows = [
        {"id": "007", "image": "a.png", "audio": "s3://bucket/a.wav", "seed": 3, "audio_cfg": 2.5},
        {"id": "b", "video": "/b.mp4", "audio": "b.wav", "paste_back": True},
    ]
    # A table has every column in each row: None where a row has no such key.
    no_values = dict.fromkeys([*rows[0], *rows[1]])
    table = pa.Table.from_pylist([no_values | row for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    pa.csv.write_csv(table, tmp_path / "m.csv")
    write_manifest(tmp_path / "m.jsonl", [rows[0], "", rows[1]])
    read = {
        kind: read_manifest(str(tmp_path / f"m.{kind}"), FAST, Recommended())
        for kind in ("jsonl", "csv", "parquet")
    }
    assert all(not failed for _, failed in read.values())
    first, second = read["parquet"][0]
    assert first == Row(
        number=1,
        id="007",
        image=f"{tmp_path}/a.png",
        video=None,
        audio="s3://bucket/a.wav",
        options=replace(FAST, seed=3, audio_cfg=2.5).with_recommended(Recommended()),
    )
    assert (second.video, second.options.paste_back) == ("/b.mp4", True)
    assert read["csv"][0] == read["parquet"][0]
    # A row of a JSONL file is numbered by its line, and the blank line counts.
    assert [replace(row, number=0) for row in read["jsonl"][0]] == [
        replace(row, number=0) for row in (first, second)
    ]


def test_a_string_may_contain_a_line_separator(tmp_path):
    row = {"id": "a", "image": "one\u2028two.png", "audio": "b.wav"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    (read,), failed = read_manifest(str(tmp_path / "m.jsonl"), FAST, Recommended())
    assert (read.image, failed) == (f"{tmp_path}/one\u2028two.png", [])


def test_ids_of_any_script_name_videos(tmp_path):
    ids = ["naïve", "Привет-1", "動画_02", "हिन्दी", "٣.عربي", "nai\u0308ve2"]
    rows = [{"id": name, "image": "a.png", "audio": "a.wav"} for name in [*ids, "NAI\u0308VE"]]
    read, failed = read_manifest(write_manifest(tmp_path / "m.jsonl", rows), FAST, Recommended())
    assert [row.id for row in read] == ids
    assert "already belongs to row 1" in failed[0].message


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv_of_spreadsheets_is_read(tmp_path, mark, bom):
    lines = [
        ["id", '"image"', "audio", "seed"],
        ["001", "a, b.png" if mark != "," else "a.png", "a.wav", "3"],
    ]
    text = bom + "".join(mark.join(cells) + "\r\n" for cells in lines)
    (tmp_path / "m.csv").write_bytes(text.encode())
    (row,), failed = read_manifest(str(tmp_path / "m.csv"), FAST, Recommended())
    assert (row.id, row.options.seed, failed) == ("001", 3, [])
    assert row.image == str(tmp_path / lines[1][1])


def test_relative_paths_keep_the_query_of_the_manifests_uri():
    uri = "s3://studio/jobs/m.jsonl?endpoint_override=host:9000/x&region=eu"
    assert (
        _located("faces/a.png", uri) == "s3://studio/jobs/faces/a.png?endpoint_override=host:9000/x&region=eu"
    )
    assert _located("s3://other/a.png", uri) == "s3://other/a.png"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"image": "a", "audio": "b"}, "id must be"),
        ({"id": 7, "image": "a", "audio": "b"}, "id must be .* got '7'"),
        ({"id": "../up", "image": "a", "audio": "b"}, r"id must be .* got '\.\./up'"),
        ({"id": ".hidden", "image": "a", "audio": "b"}, "id must be"),
        ({"id": "x" * 129, "image": "a", "audio": "b"}, "1..128"),
        ({"id": "a\n", "image": "a", "audio": "b"}, "id must be"),
        ({"id": "a b", "image": "a", "audio": "b"}, "id must be"),
        ({"id": "\u202ea", "image": "a", "audio": "b"}, "id must be"),
        ({"id": "\u0301a", "image": "a", "audio": "b"}, "id must be"),
        ({"id": "語" * 67, "image": "a", "audio": "b"}, "at most 200 bytes"),
        ({"id": "GOOD", "image": "a", "audio": "b"}, "id 'GOOD' already belongs to row 1"),
        ({"id": "x", "audio": "b"}, "either an image or a video"),
        ({"id": "x", "image": "a", "video": "v", "audio": "b"}, "either an image or a video"),
        ({"id": "x", "image": "a"}, "audio must be a path or URI, got None"),
        ({"id": "x", "image": 3, "audio": "b"}, "image must be a path or URI, got 3"),
        ({"id": "x", "image": "a", "audio": "b", "steps": 3}, "no option 'steps'"),
        ({"id": "x", "image": "a", "audio": "b", "seed": "3"}, "seed must be of type int"),
        ({"id": "x", "image": "a", "audio": "b", "motion_steps": 0}, "steps must be within 1..1000, got 0"),
        ("[1]", "must be a JSON object"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_row_fails_and_the_other_row_is_read(tmp_path, row, says):
    good = {"id": "good", "image": "a.png", "audio": "a.wav"}
    rows, failed = read_manifest(write_manifest(tmp_path / "m.jsonl", [good, row]), FAST, Recommended())
    assert [r.id for r in rows] == ["good"]
    (bad,) = failed
    assert (bad.number, bad.code) == (2, "bad_row")
    assert re.search(says, bad.message)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.txt", b"", "must be .jsonl, .csv or .parquet, got '.txt'"),
        ("m.jsonl", b"\n\n", "no rows"),
        ("m.jsonl", b"\xff\xfe", "not UTF-8"),
        ("m.parquet", b"PAR1", "cannot be read"),
        ("m.csv", b"id,image\na", "cannot be read"),
    ],
)
def test_an_invalid_manifest_is_refused(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_manifest(str(tmp_path / name), FAST, Recommended())
    with pytest.raises(ValueError, match="cannot be read"):
        read_manifest(str(tmp_path / "other.jsonl"), FAST, Recommended())

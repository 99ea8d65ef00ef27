"""Test that manifests of every kind are read, and that a bad row fails alone."""

import json
import re
from dataclasses import replace
from decimal import Decimal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from dub_manifests import write_manifest

from xactor.options import AnimateOptions, Recommended
from xactor_platform.dubbing.dub import dub
from xactor_platform.dubbing.dub_config import DubConfig
from xactor_platform.dubbing.manifest import _located, read_manifest, without_replacing
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
        ({"id": "x", "image": "\ud800", "audio": "b"}, r"image must be a path or URI, got '\\ud800'"),
        (
            {"id": "x", "image": "a", "audio": "b", "seed": -1},
            r"seed must be within 0..9223372036854775807, got -1",
        ),
        (
            {"id": "x", "image": "a", "audio": "b", "seed": 2**63},
            "seed must be within 0..9223372036854775807",
        ),
        ({"id": "x", "image": "a", "audio": "b", "seed": 1.5}, "seed must be of type int, got 1.5"),
        ({"id": "x", "image": "a", "audio": "b", "max_seconds": 0}, "max_seconds must be above 0 .* got 0"),
        (
            {"id": "x", "image": "a", "audio": "b", "max_seconds": -90.5},
            "max_seconds must be above 0 .* got -90.5",
        ),
        (
            {"id": "x", "image": "a", "audio": "b", "max_seconds": float("nan")},
            "max_seconds must be .* got nan",
        ),
        (
            {"id": "x", "image": "a", "audio": "b", "max_seconds": 10**400},
            "max_seconds must be .* at most 1000000",
        ),
        ("[1]", "must be a JSON object"),
        ('"\\ud800"', "must be a JSON object"),
        ("{", "not JSON"),
        ("[" * 200_000, "not JSON"),
        ('{"a":' * 200_000, "not JSON"),
        ('{"id": "x", "seed": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_a_bad_row_fails_and_the_other_row_is_read(tmp_path, row, says):
    good = {"id": "good", "image": "a.png", "audio": "a.wav"}
    rows, failed = read_manifest(write_manifest(tmp_path / "m.jsonl", [good, row]), FAST, Recommended())
    assert [r.id for r in rows] == ["good"]
    (bad,) = failed
    assert (bad.number, bad.code) == (2, "bad_row")
    assert re.search(says, bad.message)


def test_a_line_that_is_not_utf8_fails_alone(tmp_path):
    good = b'{"id": "%s", "image": "a", "audio": "b"}\n'
    (tmp_path / "m.jsonl").write_bytes(good % b"a" + b"\xff\xfe\n" + good % b"b")
    (tmp_path / "m.csv").write_bytes(b"id,image,audio\na,f,s\nx,\xff,s\nb,f,s\n")
    for kind in ("jsonl", "csv"):
        rows, (failed,) = read_manifest(str(tmp_path / f"m.{kind}"), FAST, Recommended())
        assert [row.id for row in rows] == ["a", "b"]
        assert failed.number == 2
        failed.message.encode()


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ("x,f,s,1.5,90", "seed must be of type int, got 1.5"),
        ("x,f,s,many,90", "seed must be of type int, got 'many'"),
        ("x,f,s,99999999999999999999,90", "seed must be within"),
        ("x,f,s,1,90,extra", "has more cells than the first line has names, 5"),
        ("x,f", "audio must be a path"),
        ("x,f,s,1,-90.5", "max_seconds must be above 0"),
        ("x,f,s" + "s" * 200_000 + ",1,90", "not CSV"),
    ],
)
def test_a_bad_line_of_csv_leaves_the_types_of_the_others_alone(tmp_path, cells, says):
    lines = ["id,image,audio,seed,max_seconds", "a,f,s,3,90.5", cells, "b,f,s,,60"]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    rows, (failed,) = read_manifest(str(tmp_path / "m.csv"), FAST, Recommended())
    assert [(row.id, row.options.seed, row.options.max_seconds) for row in rows] == [
        ("a", 3, 90.5),
        ("b", 0, 60),
    ]
    assert failed.number == 2
    assert re.search(says, failed.message)


def test_whole_numbers_of_tables_are_integers(tmp_path):
    """A column with empty cells often holds floating-point numbers, and a database's holds decimals."""
    columns = {
        "id": ["a", "b"],
        "image": ["f", "f"],
        "audio": ["s", "s"],
        "seed": pa.array([7.0, None]),
        "max_seconds": pa.array([Decimal("90.5"), None]),
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    rows, failed = read_manifest(str(tmp_path / "m.parquet"), FAST, Recommended())
    assert not failed
    assert [(row.options.seed, row.options.max_seconds) for row in rows] == [(7, 90.5), (0, 3600)]


def test_no_video_replaces_what_a_video_is_made_from(tmp_path):
    """Whatever name the row gives to the file: another folder's link, a URI, a path with dots."""
    output = tmp_path / "out"
    output.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4", "safe.mp4"):
        (output / name).touch()
    (tmp_path / "link.mp4").symlink_to(output / "c.mp4")
    made = [
        {"id": "a", "video": str(output / "a.mp4"), "audio": "s.wav"},
        {"id": "x", "video": f"file://{output}/b.mp4", "audio": "s.wav"},
        {"id": "b", "image": "f.png", "audio": "s.wav"},
        {"id": "c", "image": "f.png", "audio": "link.mp4"},
        {"id": "d", "image": "f.png", "audio": f"{output}/../out/d.mp4"},
        {"id": "safe", "image": "f.png", "audio": "s.wav"},
    ]
    rows, _ = read_manifest(write_manifest(tmp_path / "m.jsonl", made), FAST, Recommended())
    for place in (str(output), f"file://{output}", f"{tmp_path}/./out/"):
        kept, failed = without_replacing(str(tmp_path / "m.jsonl"), place, rows, ["results.jsonl"])
        assert [row.id for row in kept] == ["x", "safe"]
        assert [one.id for one in failed] == ["a", "b", "c", "d"]
        assert "the video would replace the video of row 2" in failed[1].message
    remote = [{"id": "a", "image": "s3://bucket/out//a.mp4?region=eu", "audio": "s.wav"}]
    rows, _ = read_manifest(write_manifest(tmp_path / "r.jsonl", remote), FAST, Recommended())
    assert without_replacing("m", "s3://bucket/out?region=us", rows, [])[0] == []
    assert without_replacing("m", "s3://bucket/other", rows, [])[0] == rows


def test_a_run_that_would_replace_its_manifest_is_refused(tmp_path):
    manifest = write_manifest(tmp_path / "results.jsonl", [{"id": "a", "image": "f.png", "audio": "s.wav"}])
    with pytest.raises(
        ValueError, match=r"results.jsonl: the run would replace the manifest; choose another output"
    ):
        dub(DubConfig(manifest=manifest, output=str(tmp_path)), connect=lambda: None, say=print)
    assert "f.png" in (tmp_path / "results.jsonl").read_text()


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

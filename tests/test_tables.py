"""Tables copied with new columns: what is not ours passes through, and each format has one text form for another's values."""

import csv
import datetime
import decimal
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from commands import read

import spin_native as sn
from spin_native import tables

NEW = {"predicted_label": str, "probability": float}


def copy(source, out, text="text", **options):
    """Copy a table with two new columns, as predict does; the output's path."""
    table = tables.open_source(source, **options)
    with tables.open_writer(out, table, NEW) as writer:
        for block in table.blocks([text]):
            writer.write(block, {"predicted_label": ["é"] * block.n_rows, "probability": np.full(block.n_rows, 0.5)})
    return out


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 2)


# JSONL to JSONL.


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a", "n": 1.0, "m": 1, "b": true, "big": 12345678901234567890123456789, "e": 1e5}',
        '{"z": [1, "a", null], "text": "half \\ud83d", "o": {"k": {"j": -0}}}',
        '{"text":"\\u00e9 é \\/", "nan": NaN,"twice": 1, "twice": 2 }',
        "{}",
        '{"text": "{", "": ""}',
        '{"text": "x", "digits": ' + "7" * 5000 + "}",
    ],
)
def test_a_json_line_keeps_its_own_text(tmp_path, small_blocks, line):
    source = put(tmp_path / "in.jsonl", '{"text": "first"}\n\n' + line + '\r\n{"text": "last"}')
    lines = copy(source, tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    comma = "" if line == "{}" else ", "
    assert lines[1] == line[:-1] + comma + '"predicted_label": "é", "probability": 0.5}'
    assert len(lines) == 3


def test_a_byte_order_mark_is_no_part_of_a_jsonl_file(tmp_path):
    copy(put(tmp_path / "in.jsonl", b'\xef\xbb\xbf{"text": "a"}\n'), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == [{"text": "a", "predicted_label": "é", "probability": 0.5}]


def test_a_new_column_that_only_a_late_row_has_is_refused(tmp_path, small_blocks):
    source = put(tmp_path / "in.jsonl", '{"text": "a"}\n' * 5 + '{"text": "a", "probability": 1}\n')
    for out in ("out.jsonl", "out.csv", "out.parquet"):
        with pytest.raises(sn.InputError, match="already has a column 'probability'"):
            copy(source, tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


# CSV to CSV.


def test_a_csv_row_keeps_its_own_text(tmp_path, small_blocks):
    rows = ["007,1e5,NA", '"",,"a ""q"""', ' spaces ,"two\r\nlines",x', "\ufeffé,=1+1,1.0"]
    source = put(tmp_path / "in.csv", "\ufefftext,b,b\r\n" + "\r\n".join(rows))
    written = copy(source, tmp_path / "out.csv").read_bytes().decode()
    expected = ["text,b,b,predicted_label,probability", *(row + ",é,0.5" for row in rows)]
    assert written == "\r\n".join(expected) + "\n"


def test_another_delimiter_keeps_the_cells(tmp_path):
    source = put(tmp_path / "in.csv", 'text;b\n"a;b";c\td\n"";\n')
    copy(source, tmp_path / "out.csv", delimiter=";")
    assert (
        (tmp_path / "out.csv").read_text(encoding="utf-8").startswith('text;b;predicted_label;probability\n"a;b";c\td;é;0.5\n')
    )
    copy(source, tmp_path / "out.tsv", delimiter=";")
    lines = (tmp_path / "out.tsv").read_text(encoding="utf-8").splitlines()
    assert [row[:2] for row in csv.reader(lines, delimiter="\t")] == [["text", "b"], ["a;b", "c\td"], ["", ""]]
    assert lines[-1] == '""\t\té\t0.5'


@pytest.mark.parametrize("boundary", [2**16, 2**17, 2**20])
@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r"])
def test_line_endings_in_a_cell_survive_any_block_boundary(tmp_path, boundary, ending):
    for shift in (-2, -1, 0):
        head = 'text,b\r\n"'
        value = "z" * (boundary - len(head) + shift) + ending + "B"
        source = put(tmp_path / "in.csv", head + value + '",x\r\nplain,y\r\n')
        assert pd.read_csv(source).text[0].replace("\r", "\n") == value.replace("\r", "\n")
        block = next(tables.open_source(source).blocks(["text"]))
        assert block.values("text") == [value, "plain"]


# Parquet to Parquet.


def odd_parquet(path):
    frame = pd.DataFrame({"text": ["a", None], "when": pd.to_datetime(["2024-01-31", None]).astype("datetime64[ns]")})
    table = pa.Table.from_pandas(frame)
    for name, column in {
        "decimal": pa.array([decimal.Decimal("1.50"), None]),
        "level": pa.array(["low", None]).dictionary_encode(),
        "tags": pa.array([["a", "b"], None]),
        "half": pa.array([0.1, None], pa.float32()),
    }.items():
        table = table.append_column(name, column)
    pyarrow.parquet.write_table(table, path)
    return path


def test_parquet_keeps_its_schema_and_metadata(tmp_path):
    source = odd_parquet(tmp_path / "in.parquet")
    before = pyarrow.parquet.read_table(source)
    after = pyarrow.parquet.read_table(copy(source, tmp_path / "out.parquet"))
    assert after.schema.metadata == before.schema.metadata
    assert after.select(before.column_names).equals(before, check_metadata=True)
    assert after.schema.names[-2:] == list(NEW)


# Across formats.


def test_late_and_missing_keys_stay_under_their_column(tmp_path, small_blocks):
    rows = [{"text": "a"}, {"text": "b", "x": 1}, {"y": "", "text": "c"}, {"text": None, "x": None}, {"x": 2, "text": "e"}]
    source = put(tmp_path / "in.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    lines = copy(source, tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert lines == [
        "text,x,y,predicted_label,probability",
        "a,,,é,0.5",
        "b,1,,é,0.5",
        'c,,"",é,0.5',
        ",,,é,0.5",
        "e,2,,é,0.5",
    ]
    copy(source, tmp_path / "out.parquet")
    expected = [{"text": row.get("text"), "x": row.get("x"), "y": row.get("y")} for row in rows]
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").select(["text", "x", "y"]).to_pylist() == expected


def test_json_values_are_csv_cells_as_they_are_written(tmp_path):
    line = (
        '{"text": "a", "i": -0, "f": 1.50, "e": 1E5, "n": NaN, "t": true, "l": [1,  2.0], "o": {"k": "\\u00e9"}, "h": '
        + "9" * 4400
    )
    source = put(tmp_path / "in.jsonl", line + "}\n")
    (row,) = read(copy(source, tmp_path / "out.csv"))
    assert [row[name] for name in "ifentloh"] == [
        "-0",
        "1.50",
        "1E5",
        "NaN",
        "true",
        "[1,  2.0]",
        '{"k": "\\u00e9"}',
        "9" * 4400,
    ]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["true", "null", "false"], "bool", [True, None, False]),
        (["1", "null", "-9007199254740993"], "int64", [1, None, -9007199254740993]),
        (["1", "2.5", "null"], "double", [1.0, 2.5, None]),
        (['"a"', "null", '""'], "string", ["a", None, ""]),
        (["null", "null"], "string", [None, None]),
        (["9007199254740993", "0.5"], "json", ["9007199254740993", "0.5"]),
        (["1", "true"], "json", ["1", "true"]),
        (["1", '"1"', "null"], "json", ["1", '"1"', None]),
        (["18446744073709551616"], "json", ["18446744073709551616"]),
        (["1e999", "1.5"], "json", ["1e999", "1.5"]),
        (['"\\ud83d"', '"b"'], "json", ['"\\ud83d"', '"b"']),
        (['{"a": 1}', "[1, 2]"], "json", ['{"a": 1}', "[1, 2]"]),
    ],
)
def test_a_json_column_has_one_type_in_parquet_for_the_whole_run(tmp_path, small_blocks, values, kind, expected):
    rows = [*values, *["null"] * 4]  # types are of all blocks, not of the first
    source = put(tmp_path / "in.jsonl", "".join(f'{{"text": "a", "v": {value}}}\n' for value in reversed(rows)))
    table = pyarrow.parquet.read_table(copy(source, tmp_path / "out.parquet"))
    field = table.schema.field("v")
    assert str(field.type) == ("string" if kind == "json" else kind)
    assert (field.metadata == {b"spin_native": b"json"}) == (kind == "json")
    assert table.column("v").to_pylist()[::-1] == expected + [None] * 4


FORMS = [
    (pa.array([datetime.date(2024, 1, 31)]), "2024-01-31", "2024-01-31"),
    (pa.array([datetime.datetime(2024, 1, 31, 12, 30)]), "2024-01-31T12:30:00", "2024-01-31T12:30:00"),
    (pa.array([1500000000123456789], pa.timestamp("ns")), "2017-07-14T02:40:00.123456789", "2017-07-14T02:40:00.123456789"),
    (pa.array([500], pa.timestamp("ms", "UTC")), "1970-01-01T00:00:00.500+00:00", "1970-01-01T00:00:00.500+00:00"),
    (pa.array([0], pa.timestamp("s", "-05:30")), "1969-12-31T18:30:00-05:30", "1969-12-31T18:30:00-05:30"),
    (pa.array([datetime.time(12, 30)]), "12:30:00", "12:30:00"),
    (pa.array([-1500], pa.duration("ms")), "-PT1.5S", "-PT1.5S"),
    (pa.array([decimal.Decimal("1.50")]), "1.50", "1.50"),
    (pa.array([decimal.Decimal("0E-10")]), "0.0000000000", "0.0000000000"),
    (pa.array([b"\x00\xff"]), "AP8=", "AP8="),
    (pa.array(["a"]).dictionary_encode(), "a", "a"),
    (pa.array([0.1], pa.float32()), "0.1", 0.1),
    (pa.array([1e22]), "1e+22", 1e22),
    (pa.array([float("nan")]), "NaN", None),
    (pa.array([float("-inf")], pa.float32()), "-Infinity", None),
    (pa.array([2**64 - 1], pa.uint64()), "18446744073709551615", 2**64 - 1),
    (pa.array([True]), "true", True),
    (pa.array([[1, None]]), "[1, null]", [1, None]),
    (pa.array([[]], pa.list_(pa.int8())), "[]", []),
    (pa.array([{"a": 1.5, "b": datetime.date(2024, 1, 31)}]), '{"a": 1.5, "b": "2024-01-31"}', {"a": 1.5, "b": "2024-01-31"}),
    (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), '[["k", 1]]', [["k", 1]]),
    (pa.array([None]), "", None),
    (pa.array([None], pa.list_(pa.int8())), "", None),
]


@pytest.mark.parametrize(("column", "cell", "value"), FORMS, ids=[str(column.type) for column, _, _ in FORMS])
def test_each_parquet_type_has_its_text_form(tmp_path, column, cell, value):
    table = pa.table({"text": ["a"], "v": column})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    assert [row["v"] for row in read(copy(tmp_path / "in.parquet", tmp_path / "out.csv"))] == [cell]
    (row,) = read(copy(tmp_path / "in.parquet", tmp_path / "out.jsonl"))
    assert json.dumps(row["v"]) == json.dumps(value)


def test_csv_cells_are_text_in_every_format(tmp_path):
    source = put(tmp_path / "in.csv", 'text,n,n,n.1\n007,1.0,,NaN\n"",true,"",é\n')
    expected = [
        {"text": "007", "n": "1.0", "n.2": None, "n.1": "NaN"},
        {"text": "", "n": "true", "n.2": "", "n.1": "é"},
    ]
    for ending in ("jsonl", "parquet"):
        rows = read(copy(source, tmp_path / f"out.{ending}"))
        assert [{name: row[name] for name in expected[0]} for row in rows] == expected


def test_gzip_by_name_is_what_gzip_reads(tmp_path):
    source = put(tmp_path / "in.csv", "text,b\na,1\n")
    copy(source, tmp_path / "out.csv.gz")
    assert pd.read_csv(tmp_path / "out.csv.gz").predicted_label.tolist() == ["é"]
    copy(source, tmp_path / "out.ndjson.gz")
    assert pd.read_json(tmp_path / "out.ndjson.gz", lines=True).text.tolist() == ["a"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a", "v": "x \\ud83d"}', r"row 1 .* has half a character \(a lone surrogate\) in column 'v'"),
        ('{"text": "a", "v": "\\u0000"}', r"row 1 .* has a NUL character in column 'v'"),
        ('{"text": "a", "v": 1, "v": 2}', r"line 2 has the key 'v' twice"),
        ('{"text": "a", "\\ud83d": 2}', r"line 2 has the key '\\ud83d'"),
    ],
)
def test_what_csv_cannot_hold_is_named_and_no_file_is_left(tmp_path, line, reason):
    source = put(tmp_path / "in.jsonl", '{"text": "first"}\n' + line + "\n")
    with pytest.raises(sn.InputError, match=reason):
        copy(source, tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_csv_and_jsonl_need_no_pyarrow(tmp_path):
    put(tmp_path / "in.csv", "text\na\n")
    program = (
        "import sys; from spin_native import tables; s = tables.open_source(sys.argv[1])\n"
        "with tables.open_writer(sys.argv[2], s, {'n': int}) as w: [w.write(b, {'n': [1]}) for b in s.blocks(['text'])]\n"
        "assert 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "in.csv", tmp_path / "out.jsonl"], check=True)
    assert read(tmp_path / "out.jsonl") == [{"text": "a", "n": 1}]


def test_a_column_of_json_text_is_read_as_the_values_that_were_written(tmp_path):
    """One number among the texts makes a JSONL column JSON text in Parquet; read again, the texts have no quotes."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text('{"text": "a joy", "label": "good"}\n{"text": "b", "label": 7}\n')
    table = tables.open_source(source)
    with tables.open_writer(out, table, {"new": int}) as writer:
        for block in table.blocks(["text"]):
            writer.write(block, {"new": [1] * block.n_rows})
    (block,) = tables.open_source(out).blocks(["text"])
    assert block.values("text") == ["a joy", "b"]
    assert block.values("label") == ["good", 7]


def test_labels_of_typed_files_are_read_as_the_known_type(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a", "label": "1"}\n{"text": "b", "label": 0}\n')
    assert tables.read_labelled(source, "text", "label", labels_as=int)[1] == [1, 0]
    assert tables.read_labelled(source, "text", "label", labels_as=str)[1] == ["1", "0"]

"""Reading tables: encodings, delimiters, damage, and tables of several files; labels with one type."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from problems import nightly

import spin_native as sn
from spin_native import tables


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(source, **options):
    """The column "text" of a whole table."""
    return [text for block in tables.open_source(source, **options).blocks(["text"]) for text in block.values("text")]


def refused(source, match, **options):
    with pytest.raises(sn.InputError, match=match):
        texts(source, **options)


# Encodings.

ACCENTS = "text,b\ncafé € señor,1\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_a_given_encoding_is_read_with_and_without_a_byte_order_mark(tmp_path, encoding):
    has_mark = encoding in ("utf-8", "utf-16-le", "utf-16-be")  # for utf-16 and utf-32 Python's codec writes one itself
    for mark in ("", "\ufeff") if has_mark else ("",):
        source = put(tmp_path / "in.csv", (mark + ACCENTS).encode(encoding))
        assert texts(source, encoding=encoding) == ["café € señor"]


@pytest.mark.parametrize(
    ("content", "given", "likely"),
    [
        (ACCENTS.encode("utf-16"), None, "utf-16"),
        (ACCENTS.encode("utf-16-le"), None, "utf-16-le"),
        (ACCENTS.encode("utf-16-be"), None, "utf-16-be"),
        (b"\xfe\xff" + ACCENTS.encode("utf-16-be"), "utf-16-le", "utf-16"),
        (ACCENTS.encode("utf-32"), None, "utf-32"),
        (ACCENTS.encode("cp1252"), None, "cp1252"),
        (b"text\n\x81\xe9\n", None, "latin-1"),
        (ACCENTS.encode("cp1252"), "ascii", "cp1252"),
        (ACCENTS.encode("utf-16"), "cp1252", "utf-16"),
    ],
)
def test_a_wrong_encoding_is_named_with_the_likely_one(tmp_path, content, given, likely):
    refused(put(tmp_path / "in.csv", content), f"give --encoding {likely}$", encoding=given)
    refused(put(tmp_path / "in.csv.gz", gzip.compress(content)), f"give --encoding {likely}$", encoding=given)


@pytest.mark.parametrize("given", ["cp1252", "latin-1", "utf-16", "ascii"])
def test_utf_8_under_another_name_is_recognised(tmp_path, given):
    refused(put(tmp_path / "in.csv", ACCENTS), "leave out --encoding", encoding=given)


def test_the_first_undecodable_line_is_named(tmp_path):
    content = b"text\n" + b"fine\n" * 20_000 + b"caf\xe9\n" + b"fine\n" * 20_000
    refused(put(tmp_path / "in.csv", content), "line 20002 is not utf-8 text .*0xe9")
    jsonl = b'{"text": "a"}\n' * 9 + b'{"text": "\xe9"}\n'
    refused(put(tmp_path / "in.jsonl", jsonl), "line 10 is not utf-8 text")


def test_an_unknown_encoding_is_refused(tmp_path):
    source = put(tmp_path / "in.csv", ACCENTS)
    for encoding in ("utf-9", "hex"):
        refused(source, f"encoding '{encoding}' is not known", encoding=encoding)


# CSV as people have it.


@pytest.mark.parametrize("given", ["tab", "\\t", "\t"])
def test_a_tab_can_be_written_in_three_ways(tmp_path, given):
    assert texts(put(tmp_path / "in.csv", "b\ttext\n1\ta,b\n"), delimiter=given) == ["a,b"]


def test_the_ending_tsv_means_tabs(tmp_path):
    assert texts(put(tmp_path / "in.tsv", "b\ttext\n1\ta,b\n")) == ["a,b"]
    assert texts(put(tmp_path / "in.tsv.gz", gzip.compress(b"b\ttext\n1\ta;b\n"))) == ["a;b"]
    assert texts(put(tmp_path / "semicolons.tsv", "b;text\n1;a\tb\n"), delimiter=";") == ["a\tb"]


def test_a_delimiter_that_was_not_given_is_suggested(tmp_path):
    refused(put(tmp_path / "in.csv", "b;text\n1;a\n"), r"its only column is 'b;text'; .* --delimiter ';'")
    refused(put(tmp_path / "in.csv", "b\ttext\n1\ta\n"), "--delimiter tab")


@pytest.mark.parametrize("given", ["", ";;", '"', "\n", "\r", "\0"])
def test_an_impossible_delimiter_is_refused(tmp_path, given):
    refused(put(tmp_path / "in.csv", "text\na\n"), "delimiter .* cannot be used", delimiter=given)


def test_options_that_a_format_does_not_have_are_refused(tmp_path):
    refused(put(tmp_path / "in.jsonl", '{"text": "a"}'), "JSONL has none", delimiter=";")
    pyarrow.parquet.write_table(pa.table({"text": ["a"]}), tmp_path / "in.parquet")
    refused(tmp_path / "in.parquet", "Parquet has none", encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,b\n"never,1\nclosed,2\n', "the quote that opens a cell in line 2 never closes"),
        ('text,b\n"two\nlines","never\n1\n', "the quote that opens a cell in line 3 never closes"),
        ('text,b\n"a"b,1\n', "line 2: .* put cells with quotes in quotes"),
        ("text,b\na,1\nb\n", "line 3 has 1 cells, the header has 2"),
        ('text,b\n"x\ny",1\na,b,c\n', "line 4 has 3 cells, the header has 2"),
        ("text,b\na\0,1\n", "line 2 holds a NUL byte"),
        (b"\0" * 100, "holds a NUL byte"),
        ("text,text\na,1\n", "has several columns 'text'"),
        ("text,b\n", "has no rows"),
        ("\ufeff", "has no rows"),
        ("\n\n", "has no rows"),
        (b"PAR1text\n", "is a Parquet file"),
        (b"PK\x03\x04text\n", "is a zip or Excel file"),
        (gzip.compress(b"text\na\n"), "is a gzip file: end its name in .gz"),
    ],
)
def test_what_is_no_csv_is_named_with_its_line(tmp_path, content, message):
    refused(put(tmp_path / "in.csv", content), message)


def test_blank_lines_are_no_rows(tmp_path):
    assert texts(put(tmp_path / "in.csv", 'text,b\n\na,1\n\r\n"",\n\n')) == ["a", ""]
    assert texts(put(tmp_path / "one.csv", 'text\n\na\n""\n')) == ["a", ""]


def test_a_cell_may_be_longer_than_pythons_default(tmp_path):
    assert texts(put(tmp_path / "in.csv", 'text,b\n"' + "z\n" * 2**20 + '",1\n')) == ["z\n" * 2**20]


@nightly
def test_a_cell_may_have_64_mib(tmp_path):
    size = 64 * 2**20
    path = tmp_path / "in.csv"
    path.write_text('text,b\n"' + "z" * size + '",1\n')
    (text,) = texts(path)
    assert len(text) == size
    path.write_text('text,b\n"' + "z" * (size + 1) + '",1\n')
    refused(path, "the cell that begins in line 2 has more than 67108864 characters")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "text": "b"}', "line 2 has the key 'text' twice"),
        ('{"text": "a", "te\\u0078t": "b"}', "line 2 has the key 'text' twice"),
        ("{oops", "line 2 is not JSON"),
        ('{"text": "a"} {"text": "b"}', "line 2 is not JSON"),
        ('{"v": ' + "9" * 5000 + ", oops", "line 2 is not JSON"),
        ('["a"]', "line 2 is not a JSON object"),
        ('{"v": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2 has too many lists or objects inside each other"),
    ],
)
def test_what_is_no_jsonl_is_named_with_its_line(tmp_path, line, message):
    refused(put(tmp_path / "in.jsonl", f'{{"text": "a"}}\n{line}\n'), message)


@pytest.mark.parametrize("name", ["in.csv.gz", "in.jsonl.gz"])
def test_damaged_gzip_files_are_one_sentence(tmp_path, name):
    whole = gzip.compress(np.random.default_rng(0).bytes(2**18).hex().encode())
    for content in (whole[:-1000], whole[:1000] + b"zz" + whole[1002:], b"text\na\n", whole[:5]):
        refused(put(tmp_path / name, content), "damaged, or not a gzip file")


def test_damaged_parquet_files_are_one_sentence(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "in.parquet")
    whole = (tmp_path / "in.parquet").read_bytes()
    for content in (whole[:-20], b"", b"text\na\n"):
        refused(put(tmp_path / "in.parquet", content), "not readable as Parquet")


# Several files.


def test_folders_globs_and_lists_are_read_in_the_order_of_names(tmp_path):
    parts = tmp_path / "parts 🎻"
    parts.mkdir()
    for name in ("2.csv", "10.csv", "1.csv.gz"):
        content = f"text,b\n{name},1\n".encode()
        put(parts / name, gzip.compress(content) if name.endswith("gz") else content)
    put(parts / "_SUCCESS", "")
    put(parts / ".hidden.csv", "x")
    put(parts / "3.csv", "")
    in_order = ["1.csv.gz", "10.csv", "2.csv"]
    assert texts(parts) == texts(str(parts)) == in_order
    assert texts(parts / "*.csv*") == in_order
    assert texts(str(tmp_path / "**" / "[0-9].csv")) == ["2.csv"]
    assert texts([parts / "2.csv", str(parts / "1*")]) == ["2.csv", "1.csv.gz", "10.csv"]


def test_columns_in_another_order_are_aligned_by_name(tmp_path):
    put(tmp_path / "a.csv", "text,b\na,1\n")
    put(tmp_path / "b.csv", 'b,text\n"2 ",x\n')
    table = tables.open_source(tmp_path)
    with tables.open_writer(tmp_path.parent / "aligned.csv", table, {"n": int}, overwrite=True) as writer:
        for block in table.blocks():
            writer.write(block, {"n": [0]})
    assert pd.read_csv(tmp_path.parent / "aligned.csv", dtype=str).to_dict("list") == {
        "text": ["a", "x"],
        "b": ["1", "2 "],
        "n": ["0", "0"],
    }


def test_files_with_other_columns_types_or_formats_are_refused(tmp_path):
    one = put(tmp_path / "a.csv", "text,b\na,1\n")
    refused([one, put(tmp_path / "b.csv", "text,c\na,1\n")], r"b\.csv: has other columns than .*a\.csv \(see 'b'\)")
    refused([one, put(tmp_path / "b.tsv", "text\tb\na\t1\n")], "are of different formats")
    refused([one, put(tmp_path / "b.jsonl", '{"text": "a"}')], "are of different formats")
    refused([one, tmp_path / "." / "a.csv"], r"a\.csv: given twice")
    for name, kind in (("c", pa.int64()), ("d", pa.string()), ("e", pa.null())):
        column = pa.array([None], kind)
        pyarrow.parquet.write_table(pa.table({"text": ["a"], "v": column}), tmp_path / f"{name}.parquet")
    refused([tmp_path / "c.parquet", tmp_path / "d.parquet"], r"d\.parquet: has other types")
    assert texts([tmp_path / "e.parquet", tmp_path / "c.parquet"]) == ["a", "a"]


def test_what_is_not_there_is_named(tmp_path):
    refused(tmp_path / "no.csv", r"no\.csv: no such file")
    refused(tmp_path / "*.csv", r"\*\.csv: no file has such a name")
    refused(tmp_path, "this folder holds no files of a table")
    refused([], "no files were given")
    put(tmp_path / "notes.md", "x")
    refused(tmp_path, r"notes\.md: unknown file format")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "notes.md").unlink()
    refused(tmp_path, r"folder\.csv: a folder inside the folder")


# Labels.


def labels_of(path, content, **options):
    return tables.read_labelled(put(path, content), "text", "label", **options)[1]


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        (["0", "1", "-12"], [0, 1, -12]),
        (["007", "012", "7"], ["007", "012", "7"]),
        (["1.0", "0.0", "2.0"], [1, 0, 2]),
        (["1.0", "0.5"], ["1.0", "0.5"]),
        (["-0", "1"], ["-0", "1"]),
        (["+1", "1"], ["+1", "1"]),
        (["1e3", "1"], ["1e3", "1"]),
        (["\u0661", "1"], ["\u0661", "1"]),
        ([" 1", "1"], [" 1", "1"]),
        (["True", "False"], ["True", "False"]),
        ([str(2**70), "1"], [2**70, 1]),
    ],
)
def test_csv_labels_are_whole_numbers_only_as_python_or_pandas_writes_them(tmp_path, written, labels):
    got = labels_of(tmp_path / "in.csv", "text,label\n" + "".join(f"a,{label}\n" for label in written))
    assert [(type(label), label) for label in got] == [(type(label), label) for label in labels]


def test_a_column_of_int_with_gaps_keeps_its_numbers(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b", "c"], "label": [1, 0, None]}).dropna()  # pandas has made floats of them
    for ending, write in ((".csv", frame.to_csv), (".parquet", frame.to_parquet)):
        write(tmp_path / f"in{ending}")
        labels = tables.read_labelled(tmp_path / f"in{ending}", "text", "label")[1]
        assert [(type(label), label) for label in labels] == [(int, 1), (int, 0)]


@pytest.mark.parametrize(
    ("labels_as", "written", "labels"),
    [
        (str, ["0", "1.0"], ["0", "1.0"]),
        (int, ["0", "1.0"], [0, 1]),
        (float, ["0", " -1.5e3 ", ".5"], [0.0, -1500.0, 0.5]),
        (bool, ["True", "false"], [True, False]),
    ],
)
def test_csv_labels_are_read_as_the_classifiers_type(tmp_path, labels_as, written, labels):
    content = "text,label\n" + "".join(f"a,{label}\n" for label in written)
    got = labels_of(tmp_path / "in.csv", content, labels_as=labels_as)
    assert [(type(label), label) for label in got] == [(type(label), label) for label in labels]


@pytest.mark.parametrize(
    ("labels_as", "label", "expected"),
    [
        (int, "007", "a whole number"),
        (int, "1.5", "a whole number"),
        (int, "one", "a whole number"),
        (float, "1_000", "a number"),
        (float, "inf", "a number"),
        (bool, "1", "True or False"),
    ],
)
def test_a_csv_label_of_another_type_is_named_with_its_row(tmp_path, labels_as, label, expected):
    row = r"row 1 \(the first is 0\) has '.*' in column 'label'; expected " + expected
    first = {int: "1", float: "1", bool: "True"}[labels_as]
    with pytest.raises(sn.InputError, match=row):
        labels_of(tmp_path / "in.csv", f"text,label\na,{first}\nb,{label}\n", labels_as=labels_as)


@pytest.mark.parametrize("missing", ['{"text": "a"}', '{"text": "a", "label": null}', '{"text": "a", "label": NaN}'])
def test_a_missing_label_is_never_a_class(tmp_path, missing):
    content = '{"text": "a", "label": "x"}\n' + missing + "\n" + '{"text": "a", "label": 5}\n'
    with pytest.raises(sn.InputError, match=r"row 1 \(the first is 0\) has no value in column 'label'"):
        labels_of(tmp_path / "in.jsonl", content)


def test_jsonl_values_keep_their_types_whatever_the_other_rows_have(tmp_path):
    content = '{"text": "a", "label": true}\n{"text": "b", "label": "1"}\n{"text": "c", "label": 1180591620717411303424}\n'
    assert labels_of(tmp_path / "in.jsonl", content) == [True, "1", 2**70]
    for value, got in (
        ("5", r"5 \(int\)"),
        ("true", r"True \(bool\)"),
        ("[1]", r"\[1\] \(list\)"),
        ('"\\ud83d"', "half a char"),
    ):
        with pytest.raises(sn.InputError, match=f"row 1 .* has {got}.* in column 'text'; expected a text"):
            labels_of(tmp_path / "in.jsonl", f'{{"text": "a", "label": 1}}\n{{"text": {value}, "label": 1}}\n')


def test_rows_are_numbered_inside_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 2)
    put(tmp_path / "a.csv", "text,label\n" + "a,1\n" * 5)
    put(tmp_path / "b.csv", "text,label\n" + "a,1\n" * 3 + "b,\n")
    with pytest.raises(sn.InputError, match=r"b\.csv: row 3 \(the first is 0\) has no value in column 'label'"):
        tables.read_labelled(tmp_path, "text", "label")

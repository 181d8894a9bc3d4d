"""Hypothesis strategies for odd and hostile CSV, JSONL and Parquet files, written without spin_native.

A strategy gives files as bytes, and whatever a reader must be told about them. What they mean is decided in table_rules.py.
"""

import decimal
import gzip
import io
import json
from dataclasses import dataclass
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

ODD_TEXTS = (
    *("", " ", "a", "good film", "007", "-0", "1.0", "1e5", "NA", "NaN", "nan", "null", "None", "true", " lead", "trail "),
    *('say "hi"', '"', '""', '"a"', "a,b", "a;b", "a\tb", "a|b", "two\nlines", "two\r\nlines", "x\r", "\ry", "\n", "\r\n"),
    *(
        "\x00",
        "a\x00b",
        "\ufeffx",
        "a\u2028b",
        "a\x85b",
        "\x0b\x0c",
        "\x1c",
        "\u200b",
        "\ufffe",
        "\U0010ffff",
        "\\",
        "\\n",
        "'",
    ),
    *(
        "é",
        "e\u0301",
        "ß",
        "İ",
        "日本語",
        "שלום",
        "مرحبا",
        "हिन्दी",
        "ไทย",
        "Ελλάδα",
        "🎻",
        "👩\u200d👧",
        "=1+1",
        "#x",
        "{}",
        "%s",
    ),
)
ODD_NAMES = (
    "a",
    "b",
    "a.1",
    "A",
    " a",
    "",
    "id",
    "ä b",
    'q"q',
    "c,d",
    "l\nl",
    "r\rr",
    "🎻",
    "null",
    "0",
    "a" * 70,
    "predicted_label",
)


def rarely(strategy: st.SearchStrategy, otherwise: Any, one_in: int = 8) -> st.SearchStrategy:
    """The strategy in one case of `one_in`, `otherwise` in all others."""
    return st.integers(1, one_in).flatmap(lambda n: strategy if n == one_in else st.just(otherwise))


any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
texts = st.one_of(st.sampled_from(ODD_TEXTS), any_text, rarely(st.just("a\0b"), "a", 50))
names = st.one_of(st.sampled_from(ODD_NAMES[:3]), st.sampled_from(ODD_NAMES), texts)


@dataclass
class OddFiles:
    """Files of one run, all of one format. files: name -> bytes, in the order in which they are read.

    delimiter, encoding: what the reader is told; None: nothing.
    """

    ending: str
    files: dict[str, bytes]
    delimiter: str | None = None
    encoding: str | None = None


def _packed(draw: st.DrawFn, ending: str, contents: list[bytes]) -> dict[str, bytes]:
    """The contents under names that sort in their order; compressed if the ending says so, in a few cases badly."""
    if ending.endswith(".gz"):
        contents = [gzip.compress(content, 1, mtime=0) for content in contents]
        damage = draw(rarely(st.sampled_from(["cut", "changed", "plain", "two members"]), None))
        last = contents[-1]
        if damage == "cut":
            contents[-1] = last[: draw(st.integers(0, len(last) - 1))]
        elif damage == "changed":
            place = draw(st.integers(0, len(last) - 1))
            contents[-1] = last[:place] + bytes([last[place] ^ 1 << draw(st.integers(0, 7))]) + last[place + 1 :]
        elif damage == "plain":
            contents[-1] = gzip.decompress(last)
        elif damage == "two members":
            plain = gzip.decompress(last)
            half = len(plain) // 2
            contents[-1] = gzip.compress(plain[:half], mtime=0) + gzip.compress(plain[half:], mtime=0)
    return {f"in-{place}{ending}": content for place, content in enumerate(contents)}


@st.composite
def csv_files(draw: st.DrawFn) -> OddFiles:
    """CSV by hand: every cell is quoted or not at random, where both are possible."""
    ending = draw(rarely(st.sampled_from([".tsv", ".csv.gz", ".tsv.gz"]), ".csv", 4))
    delimiter = draw(rarely(st.sampled_from([";", "|", "\t", ",", " "]), None))
    comma = delimiter or ("\t" if ".tsv" in ending else ",")
    header = draw(st.lists(names, max_size=4))
    if draw(rarely(st.just(False), True, 20)):
        header.insert(draw(st.integers(0, len(header))), "text")
    line_ends = draw(st.lists(st.sampled_from(["\n", "\r\n", "\n", "\r"]), min_size=1, max_size=3))
    chunks = []
    for _ in range(draw(rarely(st.integers(2, 3), 1))):
        rows = draw(st.lists(st.tuples(*[st.none() | texts] * len(header)), min_size=draw(rarely(st.just(0), 1)), max_size=9))
        if draw(rarely(st.just(True), False, 30)):
            header = header[::-1]
        lines = [_csv_line(draw, header, comma)] + [_csv_line(draw, row, comma) for row in rows]
        flaw = draw(rarely(st.sampled_from(CSV_FLAWS), None))
        if flaw is not None:
            lines.insert(draw(st.integers(0, len(lines))), flaw.replace(",", comma))
        text = "".join(line + line_ends[place % len(line_ends)] for place, line in enumerate(lines))
        if draw(rarely(st.just(True), False, 4)):
            text = text.rstrip("\r\n")
        chunks.append(text)
    said, really = draw(rarely(st.sampled_from(ENCODINGS), (None, draw(rarely(st.just("utf-8-sig"), "utf-8")))))
    contents = [chunk.encode(really, "replace") for chunk in chunks]
    if draw(rarely(st.just(True), False, 25)):
        place = draw(st.integers(0, len(contents[0])))
        contents[0] = (
            contents[0][:place] + draw(st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\x80"])) + contents[0][place:]
        )
    return OddFiles(ending, _packed(draw, ending, contents), delimiter, said)


ENCODINGS = (  # said, written
    *(("latin-1", "latin-1"), ("utf-16", "utf-16"), ("cp1252", "cp1252"), ("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig")),
    *((None, "utf-16"), (None, "utf-16-le"), (None, "latin-1"), (None, "utf-32"), ("utf-8", "latin-1"), ("utf-16", "utf-8")),
    *(("ascii", "utf-8"), ("shift_jis", "shift_jis"), ("utf-16-le", "utf-16-le"), ("no-such-encoding", "utf-8")),
)
CSV_FLAWS = (
    "",
    "",
    "",
    '"',
    '"never,closed',
    'x,"',
    '"a"b,c',
    '"a""',
    "one",
    "a,b,c,d,e,f,g",
    ",",
    " ",
    '""',
    '"a" ,b',
    "\x00",
    '","',
)


def _csv_line(draw: st.DrawFn, cells: Any, comma: str) -> str:
    """Cells joined; None is written as nothing, an empty text as two quotes."""
    quote_all = draw(st.booleans())
    return comma.join("" if cell is None else _csv_cell(cell, comma, quote_all) for cell in cells)


def _csv_cell(cell: str, comma: str, quote_all: bool) -> str:
    if quote_all or not cell or cell.startswith('"') or any(mark in cell for mark in (comma, "\r", "\n")):
        return '"' + cell.replace('"', '""') + '"'
    return cell


LITERALS = (
    *("0", "-0", "1", "7", "-5", "1.0", "-0.0", "2.5", "1e5", "1E+2", "0.1", "1e400", "-1e400", "1e-400", "NaN", "Infinity"),
    *(
        "-Infinity",
        "9007199254740991",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
    ),
    *("18446744073709551616", "123456789012345678901234567890", "0.30000000000000004", "0.1234567890123456789", "5e-324"),
    *("true", "false", "null", "[]", "{}", '[1, "a", null]', '{"k": 1}', '{"j": {"k": [1.0, 1e400, 12345678901234567890]}}'),
    *(
        '"x \\ud83d"',
        '"\\ude00"',
        '"\\ud83d\\ude00"',
        '["\\ud83d"]',
        '{"\\ud83d": 1}',
        '{"k": 1, "k": 2}',
        '"\\u0000"',
        '"\\/"',
    ),
    *(
        '"1"',
        '"true"',
        '"null"',
        '"NaN"',
        '""',
        '"[]"',
        "[1.50, -0.0]",
        "[NaN]",
        '{"": ""}',
        "[[[[[[[[[[1]]]]]]]]]]",
        "1" * 5000,
    ),
)
KINDS = (
    *(("true", "false", "null"), ("1", "-5", "0", "null", "9223372036854775807"), ("1", "2.5", "-0.0", "1.0", "NaN", "null")),
    *(
        ("1.0", "2.0", "3.0"),
        ('"a"', '""', "null", '"\\ud83d\\ude00"'),
        ("null",),
        ("[1]", "[]"),
        ('{"k": 1}', '{"j": 2}', "null"),
    ),
    *(("1", "9007199254740993", "0.5"), ("1", "18446744073709551616"), ('"a"', "5"), ("true", "1"), ('"a"', '"\\ud83d"')),
)
JSON_FLAWS = (
    *("5", '"text"', "[]", "null", "{", '{"text": "a"', '{"text": "a",}', "{'text': 'a'}", '{"text": "a"}}', '{"text": "a"} x'),
    *(
        '{"text" "a"}',
        '\ufeff{"text": "a"}',
        '{"text": "a\tb"}',
        '{"text": "\x00"}',
        "nul",
        '{"a": 01}',
        '{"a": +1}',
        '{"a": .5}',
    ),
    *('{"text": "a", "text": "b"}', '{"text": "a", "a": 1, "a": 2}', '{"a": 1, "\\u0061": 2}', '{"predicted_label": "mine"}'),
    *('{"text": "a", "probability_positive": null}', '{"text": "a", "predicted\\u005flabel": 1}', '{"text": "a"}{"text": "b"}'),
    *('{"text": "a", "deep": ' + "[" * 300 + "]" * 300 + "}", '{"text": "a", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    *('{"deep": ' + '{"a":' * 5000 + "1" + "}" * 5001, '{"\\ud83d": 1, "text": "a"}', "{}", "{ }", ' \t{"text": "a"} ', "\xa0"),
    *(
        '{"text": "a"}\x0b',
        '{"text":\r"a"}',
        '{"text": "a", "": {"": []}}',
        '{"text": "b", "late": [1]}',
        '{"text": 5, "late": 1}',
    ),
)


@st.composite
def jsonl_files(draw: st.DrawFn) -> OddFiles:
    """JSONL by hand: keys absent, late and in any order; most columns have one type, some have all."""
    ending = draw(rarely(st.sampled_from([".ndjson", ".jsonl.gz"]), ".jsonl", 5))
    columns = {}
    for name in draw(st.lists(names, max_size=4, unique=True)):
        columns[name] = st.sampled_from(draw(rarely(st.just(LITERALS), None, 5)) or draw(st.sampled_from(KINDS)))
    columns["text"] = rarely(st.sampled_from(LITERALS), None, 12)
    presence = draw(st.sampled_from([1, 2, 10]))  # a key is absent in one row of so many (1: never)
    contents = []
    for _ in range(draw(rarely(st.integers(2, 3), 1))):
        lines = [_json_line(draw, columns, presence) for _ in range(draw(st.integers(draw(rarely(st.just(0), 1)), 9)))]
        flaw = draw(rarely(st.sampled_from(JSON_FLAWS), None, 6))
        if flaw is not None:
            lines.insert(draw(st.integers(0, len(lines))), flaw)
        for _ in range(draw(rarely(st.integers(1, 3), 0))):
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(["", " ", "\t"])))
        line_end = draw(rarely(st.just("\r\n"), "\n", 5))
        text = draw(rarely(st.just("\ufeff"), "")) + line_end.join(lines) + draw(rarely(st.just(""), line_end, 5))
        content = text.encode(draw(rarely(st.sampled_from(["utf-16", "utf-8-sig", "utf-32"]), "utf-8", 30)))
        if draw(rarely(st.just(True), False, 30)):
            content = content.replace(b"a", draw(st.sampled_from([b"\xff", b"\xed\xa0\xbd", b"\xe9"])), 1)
        contents.append(content)
    return OddFiles(ending, _packed(draw, ending, contents))


def _json_line(draw: st.DrawFn, columns: dict[str, st.SearchStrategy], presence: int) -> str:
    keys = [key for key in columns if presence == 1 or key == "text" or draw(st.integers(1, presence)) < presence]
    if draw(st.booleans()):
        keys = draw(st.permutations(keys))
    comma, colon = draw(st.sampled_from([(", ", ": "), (",", ":"), (" ,\t", " : ")]))
    members = []
    for key in keys:
        value = draw(columns[key])
        escaped = draw(st.booleans())
        if value is None:
            value = json.dumps(draw(texts), ensure_ascii=escaped)
        members.append(json.dumps(key, ensure_ascii=escaped) + colon + value)
    return draw(st.sampled_from(["{", "{ ", " {"])) + comma.join(members) + draw(st.sampled_from(["}", " }", "} "]))


def _ints(bits: int, signed: bool = True) -> st.SearchStrategy:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.one_of(st.integers(low, high), st.sampled_from([low, high, 0, 1]))


def _floats(width: Any) -> st.SearchStrategy:
    return st.one_of(
        st.floats(width=width), st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf"), float("-inf"), 2.0**-10])
    )


SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
ZONES = (None, None, "UTC", "Europe/Berlin", "America/New_York", "+05:30", "-09:00", "Asia/Kathmandu", "Mars/Olympus")


def _times(unit: str) -> st.SearchStrategy:
    per_second = SECOND[unit]
    whole = st.integers(0, 86399).map(lambda second: second * per_second)
    return st.one_of(st.integers(0, 86400 * per_second - 1), whole)


def _timestamps(unit: str) -> st.SearchStrategy:
    per_second = SECOND[unit]
    usual = st.integers(-3_000_000_000, 4_000_000_000)  # years 1874 to 2096
    exact = st.tuples(usual, st.integers(0, per_second - 1)).map(lambda parts: parts[0] * per_second + parts[1])
    return st.one_of(exact, usual.map(lambda second: second * per_second), rarely(_ints(64), 0, 15))


def _decimals(digits: int, scale: int) -> st.SearchStrategy:
    whole = st.integers(-(10**digits) + 1, 10**digits - 1)
    return st.one_of(whole, st.sampled_from([0, 1, -1, 50])).map(lambda unscaled: _decimal(unscaled, scale))


def _decimal(unscaled: int, scale: int) -> decimal.Decimal:
    return decimal.Decimal((unscaled < 0, tuple(map(int, str(abs(unscaled)))), -scale))


short_bytes = st.binary(max_size=5)
FLAT = [
    *((pa.bool_(), st.booleans()), (pa.null(), st.none())),
    *((kind, _ints(kind.bit_width)) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
    *((kind, _ints(kind.bit_width, signed=False)) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
    *((pa.float16(), _floats(16)), (pa.float32(), _floats(32)), (pa.float64(), _floats(64))),
    *((pa.string(), texts), (pa.large_string(), texts), (pa.string(), texts), (pa.dictionary(pa.int32(), pa.string()), texts)),
    *((pa.dictionary(pa.int8(), pa.binary()), short_bytes), (pa.dictionary(pa.int32(), pa.string(), ordered=True), texts)),
    *((pa.binary(), short_bytes), (pa.large_binary(), short_bytes), (pa.binary(3), st.binary(min_size=3, max_size=3))),
    *(
        (pa.decimal128(5, 2), _decimals(5, 2)),
        (pa.decimal128(38, 10), _decimals(38, 10)),
        (pa.decimal256(60, 0), _decimals(60, 0)),
    ),
    *(
        (pa.date32(), st.integers(-30000, 60000)),
        (pa.date32(), _ints(32)),
        (pa.date64(), _ints(16).map(lambda day: day * 86_400_000)),
    ),
    *(
        (pa.time32("s"), _times("s")),
        (pa.time32("ms"), _times("ms")),
        (pa.time64("us"), _times("us")),
        (pa.time64("ns"), _times("ns")),
    ),
    *((pa.timestamp(unit, zone), _timestamps(unit)) for unit in SECOND for zone in ZONES),
    *((pa.duration(unit), st.one_of(_ints(64 if unit != "s" else 53), _ints(16))) for unit in SECOND),
]
for _name, _strategy in (("string_view", texts), ("binary_view", short_bytes)):  # of later Arrow versions
    if hasattr(pa, _name):
        FLAT.append((getattr(pa, _name)(), _strategy))
if hasattr(pa, "decimal32"):
    FLAT += [(pa.decimal32(5, 1), _decimals(5, 1)), (pa.decimal64(12, 12), _decimals(12, 12))]


@st.composite
def arrow_columns(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, st.SearchStrategy]:
    """An Arrow type that Parquet can hold, and a strategy of its values as Python objects (missing ones included)."""
    shapes = ["list", "large", "fixed", "struct", "map", *["twice"] * (depth == 2)]
    nested = draw(rarely(st.sampled_from(shapes), None, 4)) if depth else None
    if nested is None:
        kind, values = draw(st.sampled_from(FLAT))
        return kind, st.none() | values
    kind, values = draw(arrow_columns(depth - 1))
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if nested in ("list", "large"):
        return (pa.list_ if nested == "list" else pa.large_list)(kind), st.none() | st.lists(values, max_size=3)
    if nested == "fixed":
        return pa.list_(kind, 2), st.none() | st.lists(values, min_size=2, max_size=2)
    if nested == "map":
        pairs = st.lists(st.tuples(texts, values), max_size=3)
        return pa.map_(pa.string(), kind), st.none() | pairs
    if nested == "twice":
        return pa.struct([("x", kind), ("x", pa.int8())]), st.none() | st.tuples(values, st.integers(0, 9))
    keys = draw(st.lists(names, min_size=1, max_size=2, unique=True))
    return pa.struct([(key, kind) for key in keys]), st.none() | st.fixed_dictionaries(dict.fromkeys(keys, values))


def arrow_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """pa.array, which makes no struct with one field name twice and takes no int for a date inside a list."""
    if pa.types.is_struct(kind) and len({member.name for member in kind}) < kind.num_fields:
        columns = [[None if value is None else value[place] for value in values] for place in range(kind.num_fields)]
        arrays = [arrow_array(column, kind.field(place).type) for place, column in enumerate(columns)]
        return pa.StructArray.from_arrays(
            arrays, fields=list(kind), mask=pa.array([value is None for value in values], pa.bool_())
        )
    return pa.array(values, kind)


metadata = st.none() | st.dictionaries(
    st.sampled_from(["owner", "ä", "spin_native"]), st.sampled_from(["me", "", "🎻", "json"]), max_size=2
)


@st.composite
def parquet_files(draw: st.DrawFn) -> OddFiles:
    """Parquet by pyarrow: any types, nullability, metadata and row groups; sometimes cut or damaged."""
    n_rows = draw(st.integers(draw(rarely(st.just(0), 1)), 9))
    columns = [(name, draw(arrow_columns())) for name in draw(st.lists(names, max_size=4))]
    if draw(rarely(st.just(False), True, 20)):
        kind = draw(rarely(st.sampled_from(FLAT), (pa.string(), texts), 5))
        columns.insert(draw(st.integers(0, len(columns))), ("text", (kind[0], st.none() | kind[1])))
    fields, arrays = [], []
    for name, (kind, values) in columns:
        listed = draw(st.lists(values, min_size=n_rows, max_size=n_rows))
        array = arrow_array(listed, kind)
        required = array.null_count == 0 and n_rows > 0 and not pa.types.is_null(kind) and draw(st.booleans())
        fields.append(pa.field(name, kind, nullable=not required, metadata=draw(metadata)))
        arrays.append(array)
    table = pa.table(arrays, schema=pa.schema(fields, metadata=draw(metadata)))
    if draw(rarely(st.just(True), False)) and len({name for name, _ in columns}) == len(columns):
        table = _with_pandas_metadata(table)
    contents = []
    n_files = draw(rarely(st.just(2), 1))
    options = {"row_group_size": draw(st.sampled_from([1, 2, 4, 100])), "use_dictionary": draw(st.booleans())}
    options["compression"] = draw(st.sampled_from(["NONE", "snappy", "zstd"]))
    options["store_schema"] = draw(rarely(st.just(False), True))
    for place in range(n_files):
        sink = io.BytesIO()
        pyarrow.parquet.write_table(table.slice(place * n_rows // n_files, n_rows // n_files), sink, **options)
        contents.append(sink.getvalue())
    damage = draw(rarely(st.sampled_from(["cut", "changed", "text", "empty"]), None, 15))
    last = contents[-1]
    if damage == "cut":
        contents[-1] = last[: draw(st.integers(0, len(last) - 1))]
    elif damage == "changed":
        place = draw(st.integers(0, len(last) - 1))
        contents[-1] = last[:place] + bytes([last[place] ^ 1 << draw(st.integers(0, 7))]) + last[place + 1 :]
    elif damage is not None:
        contents[-1] = b"text,a\n1,2\n" if damage == "text" else b""
    return OddFiles(".parquet", _packed(draw, ".parquet", contents))


def _with_pandas_metadata(table: pa.Table) -> pa.Table:
    """The table with the pandas metadata that a frame with the same column names would get."""
    frame = pandas.DataFrame({name: [0.5] * table.num_rows for name in table.column_names})
    described = pa.Schema.from_pandas(frame).metadata
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"pandas": described[b"pandas"]})


FILES = {"CSV": csv_files(), "JSONL": jsonl_files(), "Parquet": parquet_files()}

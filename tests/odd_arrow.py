"""Hypothesis strategies for odd and hostile Parquet files, written by pyarrow."""

import decimal
import io
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st
from odd_tables import OddFiles, counts, headers, names, packed, rarely, texts

SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # how many units a second has
UNKNOWN_ZONE = "Mars/Olympus"
ZONES = (None, None, "UTC", "Europe/Berlin", "America/New_York", "+05:30", "-09:00", "Asia/Kathmandu", UNKNOWN_ZONE)


def _ints(bits: int, signed: bool = True) -> st.SearchStrategy:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.one_of(st.integers(low, high), st.sampled_from([low, high, 0, 1]))


def _floats(width: Any) -> st.SearchStrategy:
    odd = [0.0, -0.0, 1.0, float("nan"), float("inf"), float("-inf"), 2.0**-10, 2.0**10]
    return st.one_of(st.floats(width=width), st.sampled_from(odd))


def _times(unit: str) -> st.SearchStrategy:
    whole = st.integers(0, 86399).map(lambda second: second * SECOND[unit])
    return st.one_of(st.integers(0, 86400 * SECOND[unit] - 1), whole)


def usual_timestamps(unit: str) -> st.SearchStrategy:
    seconds = st.integers(-3_000_000_000, 4_000_000_000)  # years 1874 to 2096
    exact = st.tuples(seconds, st.integers(0, SECOND[unit] - 1)).map(lambda parts: parts[0] * SECOND[unit] + parts[1])
    return st.one_of(exact, seconds.map(lambda second: second * SECOND[unit]))


def _timestamps(unit: str) -> st.SearchStrategy:
    return st.one_of(usual_timestamps(unit), rarely(_ints(53 if unit == "s" else 64), 0, 8))


def _decimals(digits: int, scale: int) -> st.SearchStrategy:
    unscaled = st.one_of(st.integers(-(10**digits) + 1, 10**digits - 1), st.sampled_from([0, 1, -1, 50]))
    return unscaled.map(lambda value: decimal.Decimal((value < 0, tuple(map(int, str(abs(value)))), -scale)))


bits = st.binary(max_size=5)
# fmt: off
TIMES = pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")
FAMILIES = [  # of types, each as likely as the others: (type, its values)
    [(kind, _ints(kind.bit_width)) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())],
    [(kind, _ints(kind.bit_width, signed=False)) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())],
    [(pa.float16(), _floats(16)), (pa.float32(), _floats(32)), (pa.float64(), _floats(64))],
    [(pa.bool_(), st.booleans()), (pa.null(), st.none())],
    [(pa.string(), texts), (pa.large_string(), texts)],
    [(pa.dictionary(pa.int32(), pa.string()), texts), (pa.dictionary(pa.int32(), pa.string(), ordered=True), texts),
     (pa.dictionary(pa.int8(), pa.binary()), bits)],
    [(pa.binary(), bits), (pa.large_binary(), bits), (pa.binary(3), st.binary(min_size=3, max_size=3))],
    [(pa.decimal128(5, 2), _decimals(5, 2)), (pa.decimal128(38, 10), _decimals(38, 10)),
     (pa.decimal256(60, 0), _decimals(60, 0))],
    [(pa.date32(), st.integers(-30000, 60000)), (pa.date64(), _ints(16).map((86_400_000).__mul__)), (pa.date32(), _ints(32))],
    [(kind, _times(kind.unit)) for kind in TIMES],
    [(pa.timestamp(unit, zone), _timestamps(unit)) for unit in SECOND for zone in ZONES],
    [(pa.duration(unit), st.one_of(_ints(53 if unit == "s" else 64), _ints(16))) for unit in SECOND],
    # Types of later Arrow versions.
    [(getattr(pa, name)(), values) for name, values in (("string_view", texts), ("binary_view", bits)) if hasattr(pa, name)],
    [(getattr(pa, f"decimal{n}")(n // 4, 1), _decimals(n // 4, 1)) for n in (32, 64) if hasattr(pa, f"decimal{n}")],
]
flat = st.sampled_from([family for family in FAMILIES if family]).flatmap(st.sampled_from)
# fmt: on


@st.composite
def columns(draw: st.DrawFn, depth: int = 2) -> tuple[pa.DataType, st.SearchStrategy]:
    """An Arrow type that Parquet can hold, and a strategy of its values as Python objects (missing ones included)."""
    shapes = ["list", "large list", "fixed list", "struct", "map", *["struct with one name twice"] * (depth == 2)]
    shape = draw(rarely(st.sampled_from(shapes), None, 4)) if depth else None
    if shape is None:
        kind, values = draw(flat)
        return kind, st.none() | values
    kind, values = draw(columns(depth - 1))
    if pa.types.is_dictionary(kind):
        kind = kind.value_type  # pyarrow cannot read lists of dictionaries
    if shape == "list":
        return pa.list_(kind), st.none() | st.lists(values, max_size=3)
    if shape == "large list":
        return pa.large_list(kind), st.none() | st.lists(values, max_size=3)
    if shape == "fixed list":
        return pa.list_(kind, 2), st.none() | st.lists(values, min_size=2, max_size=2)
    if shape == "map":
        return pa.map_(pa.string(), kind), st.none() | st.lists(st.tuples(texts, values), max_size=3)
    if shape == "struct":
        keys = draw(st.lists(names, min_size=1, max_size=2, unique=True))
        return pa.struct([(key, kind) for key in keys]), st.none() | st.fixed_dictionaries(dict.fromkeys(keys, values))
    return pa.struct([("x", kind), ("x", pa.int8())]), st.none() | st.tuples(values, st.integers(0, 9))


def array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """pa.array, which makes no struct with one name twice."""
    if not pa.types.is_struct(kind) or len({member.name for member in kind}) == kind.num_fields:
        return pa.array(values, kind)
    parts = [[None if value is None else value[place] for value in values] for place in range(kind.num_fields)]
    arrays = [array(part, member.type) for part, member in zip(parts, kind, strict=True)]
    return pa.StructArray.from_arrays(arrays, fields=list(kind), mask=pa.array([value is None for value in values], pa.bool_()))


metadata = st.none() | st.dictionaries(
    st.sampled_from(["owner", "ä", "spin_native"]), st.sampled_from(["me", "", "🎻", "json"]), max_size=2
)


@st.composite
def parquet_tables(draw: st.DrawFn) -> pa.Table:
    """Columns of any types, nullable or not, with any names, and with metadata."""
    n_rows = draw(counts)
    chosen = [(name, draw(columns())) for name in draw(headers)]
    if draw(rarely(st.just(False), True, 20)):
        kind, values = draw(rarely(flat, (pa.string(), texts), 5))
        chosen.insert(draw(st.integers(0, len(chosen))), ("text", (kind, st.none() | values)))
    fields, arrays = [], []
    for name, (kind, values) in chosen:
        arrays.append(array(draw(st.lists(values, min_size=n_rows, max_size=n_rows)), kind))
        is_full = arrays[-1].null_count == 0 and n_rows > 0 and not pa.types.is_null(kind)
        fields.append(pa.field(name, kind, nullable=not is_full or draw(st.booleans()), metadata=draw(metadata)))
    table = pa.table(arrays, schema=pa.schema(fields, metadata=draw(metadata)))
    if draw(rarely(st.just(True), False)) and len(set(table.column_names)) == len(chosen):
        frame = pandas.DataFrame({name: [0.5] * n_rows for name in table.column_names})
        described = pa.Schema.from_pandas(frame).metadata[b"pandas"]
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"pandas": described})
    return table


@st.composite
def tables_of_all_types(draw: st.DrawFn) -> OddFiles:
    """A column of every type that holds no others, with values that all formats can hold."""
    columns: dict[str, pa.Array] = {"text": pa.array(["a", None, "b"])}
    for kind, values in (pair for family in FAMILIES for pair in family):
        if pa.types.is_timestamp(kind):
            values = usual_timestamps(kind.unit)
        if UNKNOWN_ZONE not in str(kind) and str(kind) not in columns:
            columns[str(kind)] = pa.array(draw(st.lists(st.none() | values, min_size=3, max_size=3)), kind)
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), file)
    return OddFiles(".parquet", {"in-0.parquet": file.getvalue()})


@st.composite
def parquet_files(draw: st.DrawFn) -> OddFiles:
    """Tables in one file or several, in row groups; sometimes cut off, or no Parquet at all."""
    table = draw(parquet_tables())
    is_whole = "_view" in str(table.schema)  # pyarrow cannot write a part of such a column
    n_files = 1 if is_whole else draw(rarely(st.just(2), 1))
    options = {
        "row_group_size": 100 if is_whole else draw(st.sampled_from([1, 2, 4, 100])),
        "use_dictionary": draw(st.booleans()),
    }
    options["compression"] = draw(st.sampled_from(["NONE", "snappy", "zstd"]))
    options["store_schema"] = draw(rarely(st.just(False), True))
    contents, n_rows = [], table.num_rows // n_files
    for place in range(n_files):
        file = io.BytesIO()
        pyarrow.parquet.write_table(table.slice(place * n_rows, n_rows), file, **options)
        contents.append(file.getvalue())
    damage = draw(rarely(st.sampled_from(["cut", "text", "empty"]), None, 15))
    if damage is not None:
        cut = contents[-1][: draw(st.integers(0, len(contents[-1]) - 1))] if damage == "cut" else b""
        contents[-1] = b"text,a\n1,2\n" if damage == "text" else cut
    return OddFiles(".parquet", packed(draw, ".parquet", contents))

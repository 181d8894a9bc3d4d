"""Hypothesis strategies for odd and hostile CSV and JSONL files, written by hand; odd_arrow.py has those for Parquet.

A strategy gives files as bytes, and what a reader must be told about them. What they mean is decided in table_rules.py.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

# fmt: off
ODD_TEXTS = (
    "", " ", "a", "good film", "007", "-0", "1.0", "1e5", "NA", "NaN", "nan", "null", "None", "true", " lead", "trail ",
    "=1+1", "#x", 'say "hi"', '"', '""', '"a"', ' "a"', "a,b", "a;b", "a\tb", "a|b", "two\nlines", "two\r\nlines", "x\r",
    "\ry", "\n", "\r\n", "'", "\ufeffx", "a\u2028b", "a\x85b", "\x0b\x0c", "\x1c", "\u200b", "\ufffe", "\U0010ffff", "\\",
    "\\n", "{}", "%s", "\x1a", "\x7f", "é", "e\u0301", "ß", "İ", "日本語", "שלום", "مرحبا", "हिन्दी", "ไทย", "Ελλάδα",
    "🎻", "👩\u200d👧", "5" * 30,
)
ODD_NAMES = (
    "a", "b", "a.1", "A", " a", "", "id", "ä b", 'q"q', "c,d", "l\nl", "r\rr", "🎻", "null", "0", "a" * 70,
    "predicted_label",
)
CSV_FLAWS = (
    "", "", "", '"', '"never,closed', 'x,"', '"a"b,c', '"a""', "one", "a,b,c,d,e,f,g", ",", " ", '""', '"a" ,b', "\0",
    '","',
)
ENCODINGS = (  # said, written
    ("latin-1", "latin-1"), ("utf-16", "utf-16"), ("cp1252", "cp1252"), ("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"),
    (None, "utf-16"), (None, "utf-16-le"), (None, "latin-1"), (None, "utf-32"), ("utf-8", "latin-1"), ("utf-16", "utf-8"),
    ("ascii", "utf-8"), ("shift_jis", "shift_jis"), ("utf-16-le", "utf-16-le"), ("no-such-encoding", "utf-8"),
    ("utf-32", "utf-32"),
)
LITERALS = (
    "0", "-0", "1", "7", "-5", "1.0", "-0.0", "2.5", "1e5", "1E+2", "0.1", "1e400", "-1e400", "1e-400", "NaN", "Infinity",
    "-Infinity", "9007199254740991", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "-9223372036854775808", "1" * 5000, "18446744073709551616", "123456789012345678901234567890", "0.30000000000000004",
    "0.1234567890123456789", "5e-324", "true", "false", "null", "[]", "{}", '[1, "a", null]', '{"k": 1}',
    '{"j": {"k": [1.0, 1e400, 12345678901234567890]}}', '"x \\ud83d"', '"\\ude00"', '"\\ud83d\\ude00"', '["\\ud83d"]',
    '{"\\ud83d": 1}', '{"k": 1, "k": 2}', '"\\u0000"', '"\\/"', '"1"', '"true"', '"null"', '"NaN"', '""', '"[]"',
    "[1.50, -0.0]", "[NaN]", '{"": ""}', "[[[[[[[[[[1]]]]]]]]]]", '{"text": "x"}',
)
KINDS = (  # values of columns that have one type, or nearly
    ("true", "false", "null"), ("1", "-5", "0", "null", "9223372036854775807"),
    ("1", "2.5", "-0.0", "1.0", "NaN", "null"), ("1.0", "2.0", "3.0"), ('"a"', '""', "null", '"\\ud83d\\ude00"'),
    ("null",), ("[1]", "[]"), ('{"k": 1}', '{"j": 2}', "null"), ("1", "9007199254740993", "0.5"),
    ("1", "18446744073709551616"), ('"a"', "5"), ("true", "1"), ('"a"', '"\\ud83d"'), ("1.5", "1e400"),
)
JSON_FLAWS = (
    "5", '"text"', "[]", "null", "{", '{"text": "a"', '{"text": "a",}', "{'text': 'a'}", '{"text": "a"}}',
    '{"text": "a"} x', '{"text" "a"}', '\ufeff{"text": "a"}', '{"text": "a\tb"}', '{"text": "\0"}', "nul", '{"a": 01}',
    '{"a": +1}', '{"a": .5}', '{"text": "a"}{"text": "b"}', '{"text": "a", "deep": ' + "[" * 300 + "]" * 300 + "}",
    '{"text": "a", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}", '{"deep": ' + '{"a":' * 5000 + "1" + "}" * 5001,
    '{"\\ud83d": 1, "text": "a"}', "{}", "{ }", ' \t{"text": "a"} ', "\xa0", '{"text": "a"}\x0b', '{"text":\r"a"}',
    '{"text": "a", "": {"": []}}', '{"text": "b", "late": [1]}', '{"text": 5, "late": 1}',
)
JSON_CLASHES = (  # of keys
    '{"text": "a", "text": "b"}', '{"text": "a", "a": 1, "a": 2}', '{"a": 1, "\\u0061": 2}',
    '{"predicted_label": "mine"}', '{"text": "a", "probability_positive": null}',
    '{"text": "a", "predicted\\u005flabel": 1}',
)
# fmt: on


def rarely(strategy: st.SearchStrategy, otherwise: Any, one_in: int = 8) -> st.SearchStrategy:
    """The strategy in one case of `one_in`, `otherwise` in all others."""
    return st.integers(1, one_in).flatmap(lambda n: strategy if n == one_in else st.just(otherwise))


any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
texts = st.one_of(st.sampled_from(ODD_TEXTS), any_text, rarely(st.just("a\0b"), "a", 50))
names = st.one_of(st.sampled_from(ODD_NAMES[:3]), st.sampled_from(ODD_NAMES), texts)
repeating = st.sampled_from([["a", "a", "a.1"], ["a.1", "a", "a"], ["b", "b", "b"], ["", ""]]).map(list)
headers = st.integers(1, 6).flatmap(lambda n: repeating if n == 1 else st.lists(names, max_size=4))
counts = rarely(st.just(0), 1, 12).flatmap(lambda least: st.integers(least, 9))  # of rows


@dataclass
class OddFiles:
    """Files of one run, all of one format. files: name -> bytes, in the order in which they are read.

    delimiter, encoding: what the reader is told; None: nothing.
    """

    ending: str
    files: dict[str, bytes]
    delimiter: str | None = None
    encoding: str | None = None


def packed(draw: st.DrawFn, ending: str, contents: Sequence[bytes]) -> dict[str, bytes]:
    """The contents under names that sort in their order; compressed if the ending says so, in a few cases badly."""
    if ending.endswith(".gz"):
        plain, contents = contents, [gzip.compress(content, 1, mtime=0) for content in contents]
        damage, last = draw(rarely(st.sampled_from(["cut", "changed", "plain", "two members"]), None, 2)), contents[-1]
        if damage == "cut":
            contents[-1] = last[: draw(st.integers(0, len(last) - 1))]
        elif damage == "changed":
            place = draw(st.integers(0, len(last) - 1))
            contents[-1] = last[:place] + bytes([last[place] ^ 1 << draw(st.integers(0, 7))]) + last[place + 1 :]
        elif damage == "plain":
            contents[-1] = plain[-1]
        elif damage == "two members":
            half = len(plain[-1]) // 2
            contents[-1] = gzip.compress(plain[-1][:half], mtime=0) + gzip.compress(plain[-1][half:], mtime=0)
    return {f"in-{place}{ending}": content for place, content in enumerate(contents)}


def spoilt(draw: st.DrawFn, content: bytes) -> bytes:
    """In a few cases, bytes that are no UTF-8 somewhere in the content."""
    bad = draw(rarely(st.sampled_from([b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\x80"]), b"", 30))
    place = draw(st.integers(0, len(content))) if bad else 0
    return content[:place] + bad + content[place:]


@st.composite
def csv_files(draw: st.DrawFn) -> OddFiles:
    """Every cell is quoted or not at random, where both are possible."""
    ending = draw(rarely(st.sampled_from([".tsv", ".csv.gz", ".tsv.gz"]), ".csv", 4))
    delimiter = draw(rarely(st.sampled_from([";", "|", "\t", ",", " "]), None))
    comma = delimiter or ("\t" if ".tsv" in ending else ",")
    header = draw(headers)
    if draw(rarely(st.just(False), True, 20)):
        header.insert(draw(st.integers(0, len(header))), "text")
    body = draw(rarely(st.just(raw_body), csv_body, 5))
    said, written = draw(rarely(st.sampled_from(ENCODINGS), (None, draw(rarely(st.just("utf-8-sig"), "utf-8")))))
    contents = []
    for _ in range(draw(rarely(st.integers(2, 3), 1))):
        if draw(rarely(st.just(True), False, 30)):
            header = header[::-1]
        contents.append(spoilt(draw, body(draw, header, comma).encode(written, "replace")))
    return OddFiles(ending, packed(draw, ending, contents), delimiter, said)


def csv_body(draw: st.DrawFn, header: Sequence[str], comma: str) -> str:
    """A header and rows; sometimes a blank line, a broken one, other line ends or none after the last row."""
    rows = draw(counts.flatmap(lambda n: st.lists(st.tuples(*[st.none() | texts] * len(header)), min_size=n, max_size=n)))
    lines = [_csv_line(draw, header, comma)] + [_csv_line(draw, row, comma) for row in rows]
    flaw = draw(rarely(st.sampled_from(CSV_FLAWS), None, 6))
    if flaw is not None:
        lines.insert(draw(st.integers(0, len(lines))), flaw.replace(",", comma))
    ends = draw(st.lists(st.sampled_from(["\n", "\r\n", "\n", "\r"]), min_size=1, max_size=3))
    text = "".join(line + ends[place % len(ends)] for place, line in enumerate(lines))
    return text.rstrip("\r\n") if draw(rarely(st.just(True), False, 4)) else text


def raw_body(draw: st.DrawFn, header: Sequence[str], comma: str) -> str:
    """Any letters that matter to CSV below a header; most such files are broken, and a few are not."""
    first = "text" if draw(st.booleans()) else _csv_line(draw, header, comma)
    letters = st.lists(st.sampled_from([*'"\n\r a', comma, '""', '"\n']), max_size=9)
    return first + draw(st.sampled_from("\n\r")) + "".join(draw(letters))


def _csv_line(draw: st.DrawFn, cells: Sequence[str | None], comma: str) -> str:
    """Cells joined; None is written as nothing, an empty text as two quotes."""
    quote_all = draw(st.booleans())
    return comma.join("" if cell is None else _csv_cell(cell, comma, quote_all) for cell in cells)


def _csv_cell(cell: str, comma: str, quote_all: bool) -> str:
    if quote_all or not cell or cell.startswith('"') or any(mark in cell for mark in (comma, "\r", "\n")):
        return '"' + cell.replace('"', '""') + '"'
    return cell


@st.composite
def jsonl_files(draw: st.DrawFn) -> OddFiles:
    """Keys absent, late and in any order; most columns have one type, some have all."""
    ending = draw(rarely(st.sampled_from([".ndjson", ".jsonl.gz"]), ".jsonl", 5))
    columns: dict[str, st.SearchStrategy] = {}
    for name in draw(st.lists(names, max_size=4, unique=True)):
        columns[name] = st.sampled_from(draw(rarely(st.just(LITERALS), None, 5)) or draw(st.sampled_from(KINDS)))
    columns["text"] = rarely(st.sampled_from(LITERALS), None, 12)
    presence = draw(st.sampled_from([1, 2, 10]))  # a key is absent in one row of so many (1: never)
    said, written = draw(rarely(st.sampled_from(ENCODINGS), (None, draw(rarely(st.just("utf-8-sig"), "utf-8"))), 12))
    contents = []
    for _ in range(draw(rarely(st.integers(2, 3), 1))):
        lines = [_json_line(draw, columns, presence) for _ in range(draw(counts))]
        flaw = draw(rarely(st.sampled_from(JSON_FLAWS) | st.sampled_from(JSON_CLASHES), None, 4))
        if flaw is not None:
            lines.insert(draw(st.integers(0, len(lines))), flaw)
        for _ in range(draw(rarely(st.integers(1, 3), 0))):
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(["", " ", "\t"])))
        line_end = draw(rarely(st.just("\r\n"), "\n", 5))
        text = line_end.join(lines) + draw(rarely(st.just(""), line_end, 5))
        contents.append(spoilt(draw, text.encode(written, "replace")))
    return OddFiles(ending, packed(draw, ending, contents), encoding=said)


def _json_line(draw: st.DrawFn, columns: dict[str, st.SearchStrategy], presence: int) -> str:
    keys = [key for key in columns if presence == 1 or key == "text" or draw(st.integers(1, presence)) < presence]
    if draw(st.booleans()):
        keys = draw(st.permutations(keys))
    comma, colon = draw(st.sampled_from([(", ", ": "), (",", ":"), (" ,\t\r", "\r: ")]))
    members = []
    for key in keys:
        value, escaped = draw(columns[key]), draw(st.booleans())
        if value is None:
            value = json.dumps(draw(texts), ensure_ascii=escaped)
        members.append(json.dumps(key, ensure_ascii=escaped) + colon + value)
    return draw(st.sampled_from(["{", "{ ", " {"])) + comma.join(members) + draw(st.sampled_from(["}", " }", "} "]))

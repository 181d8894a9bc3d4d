"""Odd tables through predict_files, for every pair of formats: equal by the stated rules, or one InputError and no file."""

import csv
import io
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from odd_arrow import parquet_files, tables_of_all_types
from odd_tables import CSV_FLAWS, JSON_CLASHES, JSON_FLAWS, OddFiles, csv_files, jsonl_files, rarely, texts
from problems import nightly, without_shape_checks
from table_outputs import check, check_values, refuse
from table_rules import Pairs, Refused, meaning, split_csv

import spin_native as sn
from spin_native import disk, tables
from spin_native.classifier.exits import Exit
from spin_native.classifier.tasks.classes import Classes
from spin_native.serving.predict import predict_files

pytestmark = without_shape_checks
FILES = {"CSV": csv_files(), "JSONL": jsonl_files(), "Parquet": parquet_files()}
OUT = {"CSV": (".csv", ".tsv", ".csv.gz"), "JSONL": (".jsonl", ".ndjson", ".jsonl.gz"), "Parquet": (".parquet",)}
LABELS = (("negative", "positive"), (0, 7), (False, True), ('a, "b"\n', "é\r"))


class KnownAnswers(sn.SpinClassifier):
    """A classifier without a model: the probability of its second label follows from a text's letters."""

    exit_, n_truncated_, pairs_ = Exit("fixed", None), 0, False
    task_ = property(lambda self: Classes(np.array(self.labels)))

    def __init__(self, labels=LABELS[0]):
        super().__init__("no model")
        self.labels = labels

    def shift_watch(self):
        return None

    def output_blocks(self, texts, progress=None, exit=None, watch=None):
        for text in texts:
            yield np.array([self.probabilities(text)]), np.array([1])

    @staticmethod
    def probabilities(text):
        share = zlib.crc32(text.encode("utf-8", "surrogatepass")) / 2**32
        return 1 - share, share

    @property
    def new_names(self):
        return ("predicted_label", *(f"probability_{label}" for label in self.labels))

    def new_columns(self, texts):
        """What must be written beside these texts."""
        pairs = [(None, None) if text is None else self.probabilities(text) for text in texts]
        answers = [None if low is None else self.labels[high > low] for low, high in pairs]
        return dict(zip(self.new_names, (answers, *zip(*pairs, strict=True)), strict=True))


def source_of(folder: Path, odd: OddFiles, how: str):
    """The files of a run as they may be named: one path, or several as a folder, a pattern or a list."""
    paths = [folder / name for name in odd.files]
    if how == "path":
        return paths[0] if len(paths) == 1 else paths
    return folder if how == "folder" else str(folder / f"in-*{odd.ending}")


def attempt(run, odd: OddFiles, out: Path, how: str):
    """Run one copy; the InputError that ended it, or None. Nothing but the output file may be new in its folder."""
    folder, error = out.parent, None
    for path in folder.rglob("*.*"):
        path.unlink()
    for name, content in odd.files.items():
        (folder / "in" / name).write_bytes(content)
    out.with_name(out.name + ".partial").write_bytes(b"mine")
    before = listing(folder)
    told = {"delimiter": odd.delimiter, "encoding": odd.encoding}
    try:
        run(source_of(folder / "in", odd, how), out, **told)
    except sn.InputError as raised:
        error = raised
    after = listing(folder)
    assert (out.name in after) == (error is None), error
    after.pop(out.name, None)
    assert after == before
    return error


def listing(folder: Path):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def try_pair(run, odd: OddFiles, out: Path, how: str, new_names, new_columns) -> str:
    """Copy, and compare with what the rules say: "copied" or "refused".

    run: (source, out, delimiter=, encoding=) -> None. new_columns: texts -> name -> the values that must be in the new column.
    """
    got = reason = None
    try:
        got = meaning(odd, new_names)
        refuse(got, out)
    except Refused as refused:
        got, reason = None, refused
    error = attempt(run, odd, out, how)
    if error is not None:
        assert got is None or got.doubts, f"refused without need: {error}"
        assert "\n" not in str(error)
        return "refused"
    assert got is not None, f"copied, but by the rules it cannot be: {reason}"
    check(got, new_columns(got.texts), out)
    return "copied"


def try_prediction(labels, odd: OddFiles, out: Path, how: str = "path") -> str:
    """try_pair with predict_files and a classifier of these labels."""
    classifier = KnownAnswers(labels)
    run = partial(predict_files, classifier, progress=False)
    return try_pair(run, odd, out, how, classifier.new_names, classifier.new_columns)


def examples(n_tables: int, derandomize: bool = True):
    """So many of hypothesis's examples, the same in each run or others; without its checks of speed, and of which lines ran."""
    phases, no_checks = (Phase.generate, Phase.shrink), list(HealthCheck)
    return settings(
        max_examples=n_tables,
        derandomize=derandomize,
        phases=phases,
        suppress_health_check=no_checks,
        deadline=None,
        database=None,
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to copy in. Nothing is flushed to the disk: that is half of the time, and no test here crashes the machine."""
    monkeypatch.setattr(disk, "flush", lambda path: None)
    (tmp_path / "in").mkdir()
    return tmp_path


@dataclass
class Run:
    """What a table is copied with. how: its files are named as a "path" (or paths), a "folder" or a "pattern"."""

    block_rows: int
    how: str
    labels: tuple
    endings: tuple


runs = st.builds(
    Run,
    st.sampled_from([1, 2, 3, 8192]),
    rarely(st.sampled_from(["folder", "pattern"]), "path"),
    rarely(st.sampled_from(LABELS), LABELS[0]),
    st.tuples(*(rarely(st.sampled_from(endings), endings[0]) for endings in OUT.values())),
)


def try_tables(source_format: str, folder: Path, n_tables: int, derandomize: bool) -> Counter:
    """Random tables of one format into each format; how many were copied and refused."""
    results: Counter = Counter()

    @examples(n_tables, derandomize)
    @given(odd=FILES[source_format], run=runs)
    def pairs(odd, run):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "BLOCK_ROWS", run.block_rows)
            for out_format, ending in zip(OUT, run.endings, strict=True):
                results[out_format, try_prediction(run.labels, odd, folder / f"out{ending}", run.how)] += 1

    pairs()
    return results


@pytest.mark.parametrize("source_format", FILES)
def test_odd_tables_come_out_equal_in_every_format_or_are_refused(source_format, folder):
    results = try_tables(source_format, folder, 120, derandomize=True)
    assert all(results[out_format, "copied"] > 40 for out_format in OUT), results


@nightly
@pytest.mark.parametrize("source_format", FILES)
def test_2000_odd_tables_of_each_format_come_out_equal_in_every_format_or_are_refused(source_format, folder):
    results = try_tables(source_format, folder, 2000, derandomize=False)
    assert all(results[out_format, "copied"] > 700 for out_format in OUT), results


@pytest.mark.parametrize("out_format", OUT)
def test_every_flaw_alone_is_refused_or_harmless(out_format, folder):
    out = folder / f"out{OUT[out_format][0]}"
    for flaw in CSV_FLAWS:
        try_prediction(LABELS[0], OddFiles(".csv", {"in-0.csv": f"text,a\nb,1\n{flaw}\nc,2\n".encode()}), out)
        try_prediction(LABELS[0], OddFiles(".csv", {"in-0.csv": f"text,a\nb,1\n{flaw}".encode()}), out)
    for flaw in (*JSON_FLAWS, *JSON_CLASHES):
        try_prediction(LABELS[0], OddFiles(".jsonl", {"in-0.jsonl": f'{{"text": "b"}}\n{flaw}\n'.encode()}), out)


@pytest.mark.parametrize("out_format", OUT)
def test_every_arrow_type_is_copied(out_format, folder):
    @examples(4)
    @given(odd=tables_of_all_types())
    def copied(odd):
        assert try_prediction(LABELS[0], odd, folder / f"out{OUT[out_format][0]}") == "copied"

    copied()


@pytest.mark.parametrize("source_format", FILES)
def test_values_are_read_with_the_types_they_have(source_format, folder, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 2)

    @examples(40)
    @given(odd=FILES[source_format])
    def read(odd):
        try:
            got = meaning(odd, ())
        except Refused:
            return
        if got.doubts or any(len({key for key, _ in row}) < len(row) for row in got.rows if isinstance(row, Pairs)):
            return
        for name, content in odd.files.items():
            (folder / name).write_bytes(content)
        paths = [folder / name for name in odd.files]
        check_values(got, list(tables.open_source(paths, delimiter=odd.delimiter, encoding=odd.encoding).blocks([])))

    read()


NEW = {
    "new text": (str, texts.filter(lambda text: "\0" not in text)),
    "new whole": (int, st.integers(-(2**63), 2**63 - 1)),
    "new number": (float, st.floats()),
    "new truth": (bool, st.booleans()),
}


@pytest.mark.parametrize("source_format", FILES)
def test_new_columns_of_every_type_are_written_beside_odd_rows(source_format, folder, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 2)
    some = {name: st.lists(st.none() | values, min_size=1, max_size=3) for name, (_, values) in NEW.items()}

    @examples(30)
    @given(odd=FILES[source_format], some=st.fixed_dictionaries(some))
    def pairs(odd, some):
        def columns(first_row, n_rows):
            rows = range(first_row, first_row + n_rows)
            return {name: [some[name][row % len(some[name])] for row in rows] for name in NEW}

        def run(source, out, **told):
            table, n_rows = tables.open_source(source, **told), 0
            with tables.open_writer(out, table, {name: kind for name, (kind, _) in NEW.items()}) as writer:
                for block in table.blocks(["text"]):
                    writer.write(block, columns(n_rows, block.n_rows))
                    n_rows += block.n_rows

        for endings in OUT.values():
            try_pair(run, odd, folder / f"out{endings[0]}", "path", NEW, lambda read: columns(0, len(read)))

    pairs()


@pytest.mark.parametrize("letters", ["\r\n", "\n", '""', "é", "🎻", '"\r\n"'])
@pytest.mark.parametrize("boundary", [2**16, 2**20])
def test_nothing_is_lost_where_a_buffer_of_the_reader_ends(letters, boundary, folder, monkeypatch):
    old = csv.field_size_limit(2**27)
    start, end = b'text\r\n"', f'{letters}B"\r\nlast\r\n'.encode()
    try:
        for shift in range(3):
            odd = OddFiles(".csv", {"in.csv": start + b"z" * (boundary - len(start) - shift) + end})
            for ending in (".csv", ".jsonl"):
                assert try_prediction(LABELS[0], odd, folder / f"out{ending}") == "copied"
    finally:
        csv.field_size_limit(old)


@examples(150)
@given(odd=csv_files())
def test_the_rules_read_csv_as_the_csv_module_does(odd):
    for content in odd.files.values():
        text, delimiter = content.replace(b"\0", b"").decode("latin-1"), odd.delimiter or ","  # csv in Python 3.10 refuses NUL
        try:
            got = [[cell or "" for cell in row] for row in split_csv(text, delimiter)]
        except Refused:
            with pytest.raises(csv.Error):
                list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        else:
            assert got == list(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)))

"""Odd tables through predict_files, for every pair of formats: equal by the stated rules, or one InputError and no file."""

import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_arrow import parquet_files
from odd_tables import OddFiles, csv_files, jsonl_files, rarely
from problems import nightly
from table_outputs import check, refuse
from table_rules import Refused, meaning

import spin_native as sn
from spin_native import disk, tables
from spin_native.classifier.exits import Exit
from spin_native.classifier.tasks.classes import Classes
from spin_native.serving.predict import predict_files

FILES = {"CSV": csv_files(), "JSONL": jsonl_files(), "Parquet": parquet_files()}
OUT = {"CSV": (".csv", ".tsv", ".csv.gz"), "JSONL": (".jsonl", ".ndjson", ".jsonl.gz"), "Parquet": (".parquet",)}
LABELS = (("negative", "positive"), (0, 7), (False, True), ('a, "b"\n', "é\r"))


class KnownAnswers(sn.SpinClassifier):
    """A classifier without a model: the probability of its second label follows from a text's letters."""

    exit_, n_truncated_ = Exit("fixed", None), 0
    task_ = property(lambda self: Classes(np.array(self.labels)))

    def __init__(self, labels=LABELS[0]):
        super().__init__("no model")
        self.labels = labels

    def output_blocks(self, texts, progress=None, exit=None):
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


def copy(classifier: KnownAnswers, odd: OddFiles, out: Path, how: str):
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
        predict_files(classifier, source_of(folder / "in", odd, how), out, progress=False, **told)
    except sn.InputError as raised:
        error = raised
    after = listing(folder)
    assert (out.name in after) == (error is None), error
    after.pop(out.name, None)
    assert after == before
    return error


def listing(folder: Path):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def try_pair(classifier: KnownAnswers, odd: OddFiles, out: Path, how: str) -> str:
    """Copy, and compare with what the rules say: "copied" or "refused"."""
    got = reason = None
    try:
        got = meaning(odd, classifier.new_names)
        refuse(got, out)
    except Refused as refused:
        got, reason = None, refused
    error = copy(classifier, odd, out, how)
    if error is not None:
        assert got is None or got.doubts, f"refused without need: {error}"
        assert "\n" not in str(error)
        return "refused"
    assert got is not None, f"copied, but by the rules it cannot be: {reason}"
    check(got, classifier.new_columns(got.texts), out)
    return "copied"


def try_tables(source_format: str, folder: Path, n_tables: int, derandomize: bool) -> Counter:
    """Random tables of one format into each format; how many were copied and refused."""
    results: Counter = Counter()
    (folder / "in").mkdir()

    @settings(
        max_examples=n_tables, derandomize=derandomize, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(odd=FILES[source_format], run=runs)
    def pairs(odd, run):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "BLOCK_ROWS", run.block_rows)
            for out_format, ending in zip(OUT, run.endings, strict=True):
                result = try_pair(KnownAnswers(run.labels), odd, folder / f"out{ending}", run.how)
                results[out_format, result] += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "flush", lambda path: None)  # half of the time; no test here crashes the machine
        pairs()
    return results


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


@pytest.mark.parametrize("source_format", FILES)
def test_odd_tables_come_out_equal_in_every_format_or_are_refused(source_format, tmp_path):
    results = try_tables(source_format, tmp_path, 60, derandomize=True)
    assert all(results[out_format, "copied"] > 20 for out_format in OUT), results


@nightly
@pytest.mark.parametrize("source_format", FILES)
def test_2000_odd_tables_of_each_format_come_out_equal_in_every_format_or_are_refused(source_format, tmp_path):
    results = try_tables(source_format, tmp_path, 2000, derandomize=False)
    assert all(results[out_format, "copied"] > 700 for out_format in OUT), results

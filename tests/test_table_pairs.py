"""Odd tables through predict_files, for every pair of formats: equal by the stated rules, or one InputError and no file."""

import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_tables import FILES, OddFiles, rarely
from problems import nightly
from table_outputs import check, refuse
from table_rules import Refused, meaning

import spin_native as sn
from spin_native import tables
from spin_native.classifier.exits import Exit
from spin_native.classifier.tasks.classes import Classes
from spin_native.serving.predict import predict_files

OUT = {"CSV": (".csv", ".tsv", ".csv.gz"), "JSONL": (".jsonl", ".ndjson", ".jsonl.gz"), "Parquet": (".parquet",)}
LABELS = (("negative", "positive"), (0, 7), (False, True), ('a, "b"\n', "é\r"))


class KnownAnswers(sn.SpinClassifier):
    """A classifier without a model: the probability of its second label follows from a text's letters."""

    exit_, n_truncated_ = Exit("fixed", None), 0

    def __init__(self, labels=LABELS[0]):
        super().__init__("no model")
        self.labels, self.task_ = labels, Classes(np.array(labels))

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
    if len(paths) == 1 and how != "folder":
        return paths[0] if how == "path" else str(paths[0])
    return {"folder": folder, "path": paths, "pattern": str(folder / f"in-*{odd.ending}")}[how]


def listing(folder: Path):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy(classifier: KnownAnswers, odd: OddFiles, ending: str, how: str, folder: Path):
    """Run one copy; the InputError that ended it, or None. Nothing but the output file may be new in the folder."""
    (folder / "in").mkdir()
    for name, content in odd.files.items():
        (folder / "in" / name).write_bytes(content)
    out = folder / f"out{ending}"
    out.with_name(out.name + ".partial").write_bytes(b"mine")
    before, error = listing(folder), None
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


def try_pair(classifier: KnownAnswers, odd: OddFiles, out_format: str, ending: str, how: str) -> str:
    """Copy, and compare with what the rules say: "copied" or "refused"."""
    try:
        got = meaning(odd, classifier.new_names)
        refuse(got, out_format)
    except Refused as refused:
        got, reason = None, refused
    with tempfile.TemporaryDirectory() as folder:
        error = copy(classifier, odd, ending, how, Path(folder))
        if error is not None:
            assert got is None or got.doubts, f"refused without need: {error}"
            assert "\n" not in str(error)
            return "refused"
        assert got is not None, f"copied, but by the rules it cannot be: {reason}"
        check(got, classifier.new_columns(got.texts), Path(folder) / f"out{ending}")
    return "copied"


def try_tables(source_format: str, n_tables: int, derandomize: bool) -> Counter:
    """Random tables of one format into each format; how many were copied and refused."""
    results: Counter = Counter()

    @settings(
        max_examples=n_tables, derandomize=derandomize, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        FILES[source_format],
        st.sampled_from([1, 2, 3, 8192]),
        rarely(st.sampled_from(["folder", "pattern"]), "path"),
        rarely(st.sampled_from(LABELS), LABELS[0]),
        st.tuples(*(rarely(st.sampled_from(endings), endings[0]) for endings in OUT.values())),
    )
    def pairs(odd, block_rows, how, labels, endings):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tables, "BLOCK_ROWS", block_rows)
            for out_format, ending in zip(OUT, endings, strict=True):
                results[out_format, try_pair(KnownAnswers(labels), odd, out_format, ending, how)] += 1

    pairs()
    return results


@pytest.mark.parametrize("source_format", FILES)
def test_odd_tables_come_out_equal_in_every_format_or_are_refused(source_format):
    results = try_tables(source_format, 100, derandomize=True)
    assert all(results[out_format, "copied"] > 25 for out_format in OUT), results


@nightly
@pytest.mark.parametrize("source_format", FILES)
def test_2000_odd_tables_of_each_format_come_out_equal_in_every_format_or_are_refused(source_format):
    results = try_tables(source_format, 2000, derandomize=False)
    assert all(results[out_format, "copied"] > 500 for out_format in OUT), results

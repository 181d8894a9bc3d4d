"""predict_files, and the command `predict --in --out`: rows in, rows with predictions out, whole or not at all."""

import errno
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from commands import ENDINGS, QUICK, Spin, labelled, read, write

import spin_native as sn
from spin_native import tables
from spin_native.classifier.exits import Exit
from spin_native.serving.predict import Predicted, predict_files

DIFFICULT = ['a, "quoted" film', "two\nlines", "🎻 wow", "007", "NA", "null", "nan", "good", " spaces ", "1e5"]


@pytest.fixture(scope="module")
def fitted(tiny_model, reviews):
    """A classifier with a head at each of its three depths."""
    return sn.SpinClassifier(str(tiny_model), depth=3, exits="all", **QUICK).fit(*reviews)


@pytest.fixture(scope="module")
def regressor(tiny_model, reviews):
    texts, labels = reviews
    settings = {**QUICK, "head_Cs": (0.001,)}
    return sn.SpinRegressor(str(tiny_model), depth=1, **settings).fit(texts, [float(label == "positive") for label in labels])


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_row_is_copied_and_gets_the_label_and_the_probabilities_of_predict(fitted, reviews, tmp_path, ending):
    source, out = write(tmp_path / f"in{ending}", labelled(*reviews)), tmp_path / f"out{ending}"
    assert predict_files(fitted, str(source), str(out)) == Predicted(out, 80, 0, (), 0)
    rows, written = read(source), read(out)
    assert [{name: row[name] for name in rows[0]} for row in written] == rows
    assert set(written[0]) - set(rows[0]) == {"predicted_label", "probability_negative", "probability_positive"}
    assert [row["predicted_label"] for row in written] == fitted.predict(reviews[0]).tolist()
    probabilities = [[float(row[f"probability_{label}"]) for label in fitted.classes_] for row in written]
    np.testing.assert_allclose(probabilities, fitted.predict_proba(reviews[0]), rtol=1e-5)


def test_a_regressor_writes_the_values_of_predict_to_the_bit(regressor, reviews, tmp_path):
    source = write(tmp_path / "in.parquet", labelled(*reviews))
    predict_files(regressor, source, tmp_path / "out.parquet")
    assert [row["predicted_value"] for row in read(tmp_path / "out.parquet")] == regressor.predict(reviews[0]).tolist()


@pytest.mark.parametrize("ending", ENDINGS)
def test_texts_are_copied_to_the_letter(fitted, tmp_path, ending):
    source = write(tmp_path / f"in{ending}", [{"text": text} for text in DIFFICULT])
    predict_files(fitted, source, tmp_path / f"out{ending}")
    assert [row["text"] for row in read(tmp_path / f"out{ending}")] == DIFFICULT


def test_rows_without_a_text_are_counted_over_the_whole_file_and_get_empty_columns(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 4)
    texts = ["good film", None, "bad room", None, *[None] * 4, "awful", None, None]
    source = write(tmp_path / "in.jsonl", [{"text": text} for text in texts])
    written = predict_files(fitted, source, tmp_path / "out.jsonl")
    assert (written.n_rows, written.n_rejected, written.rejected_rows) == (11, 8, (1, 3, 4, 5, 6))
    rows = read(tmp_path / "out.jsonl")
    assert [row["predicted_label"] for row in rows] == [None if text is None else fitted.predict(text) for text in texts]
    assert [row["probability_positive"] is None for row in rows] == [text is None for text in texts]


def test_a_file_without_any_text_still_gets_typed_columns(fitted, regressor, tmp_path):
    table = pa.table({"text": pa.array([None, None], pa.string())})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    assert predict_files(fitted, tmp_path / "in.parquet", tmp_path / "out.parquet", exit="patience:1").n_rejected == 2
    schema = pyarrow.parquet.read_schema(tmp_path / "out.parquet")
    assert [str(schema.field(name).type) for name in schema.names] == ["string", "string", "double", "double", "int64"]
    assert predict_files(regressor, tmp_path / "in.parquet", tmp_path / "values.parquet").rejected_rows == (0, 1)
    assert pyarrow.parquet.read_table(tmp_path / "values.parquet").column("predicted_value").null_count == 2


def test_an_empty_csv_field_is_no_text_and_a_quoted_one_is_an_empty_text(fitted, tmp_path):
    (tmp_path / "in.csv").write_text('text,id\ngood film,1\n,2\n"",3\n')
    assert predict_files(fitted, tmp_path / "in.csv", tmp_path / "out.csv").rejected_rows == (1,)
    assert [bool(row["predicted_label"]) for row in read(tmp_path / "out.csv")] == [True, False, True]


def test_truncated_texts_are_counted_for_each_call_alone(fitted, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good film " * 30}, {"text": "good"}])
    for name in ("a.jsonl", "b.jsonl"):
        assert predict_files(fitted, source, tmp_path / name).n_truncated == 1


def test_the_exit_depth_is_written_where_rows_can_stop_at_different_depths(fitted, reviews, tmp_path):
    source, out = write(tmp_path / "in.parquet", labelled(*reviews)), tmp_path / "out.parquet"
    for exit_ in ("confidence:0.7", Exit("patience", 1)):
        predict_files(fitted, source, out, exit=exit_, overwrite=True)
        labels, depths = fitted.predict(reviews[0], exit=exit_, return_depth=True)
        assert len(set(depths)) > 1
        assert [row["exit_depth"] for row in read(out)] == depths.tolist()
        assert [row["predicted_label"] for row in read(out)] == labels.tolist()
    predict_files(fitted, source, out, exit="fixed:1", overwrite=True)
    assert "exit_depth" not in read(out)[0]
    assert [row["predicted_label"] for row in read(out)] == fitted.predict(reviews[0], exit="fixed:1").tolist()


def test_memory_is_bounded_by_a_block_of_rows(fitted, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 10)
    sizes, whole = [], fitted.output_blocks
    monkeypatch.setattr(fitted, "output_blocks", lambda texts, *rest: sizes.append(len(texts)) or whole(texts, *rest))
    source = write(tmp_path / "in.jsonl", [{"text": "good film"}] * 34)
    predict_files(fitted, source, tmp_path / "out.jsonl")
    assert sizes == [10, 10, 10, 4]


def test_a_bar_is_shown_only_if_asked_for_or_on_a_terminal(fitted, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"text": "good film"}])
    predict_files(fitted, source, tmp_path / "a.jsonl")
    predict_files(fitted, source, tmp_path / "b.jsonl", progress=False)
    assert capsys.readouterr() == ("", "")
    predict_files(fitted, source, tmp_path / "c.jsonl", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "1 rows" in shown.err


def test_the_input_is_never_the_output(fitted, reviews, tmp_path):
    source = write(tmp_path / "in.csv", labelled(*reviews))
    before = source.read_bytes()
    (tmp_path / "link.csv").symlink_to(source)
    for out in (source, tmp_path / "link.csv"):
        with pytest.raises(sn.InputError, match="this output file is the input itself"):
            predict_files(fitted, source, out, overwrite=True)
    assert source.read_bytes() == before


def test_the_output_is_never_part_of_the_input_folder_or_glob(fitted, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write(folder / name, [{"text": "good film"}])
    for source in (folder, folder / "*.jsonl", [folder / "a.jsonl", folder / "b.jsonl"]):
        with pytest.raises(sn.InputError, match="this output file is the input itself"):
            predict_files(fitted, source, folder / "b.jsonl", overwrite=True)
        if not isinstance(source, list):
            with pytest.raises(sn.InputError, match="this output file would be part of the input"):
                predict_files(fitted, source, folder / "out.jsonl")
        assert predict_files(fitted, source, tmp_path / "out.jsonl", overwrite=True).n_rows == 2
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_what_is_no_text_gets_empty_columns_and_stays_as_it_is(fitted, tmp_path):
    lines = ['{"text": 5}', '{"text": ["good"]}', '{"text": true}', '{"text": "half \\ud83d"}', '{"text": "good film"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert predict_files(fitted, tmp_path / "in.jsonl", tmp_path / "out.jsonl").rejected_rows == (0, 1, 2, 3)
    written = (tmp_path / "out.jsonl").read_text().splitlines()
    assert all(after.startswith(before[:-1]) for before, after in zip(lines, written, strict=True))
    labels = [row["predicted_label"] for row in read(tmp_path / "out.jsonl")]
    assert labels == [None] * 4 + [fitted.predict("good film")]


@pytest.mark.parametrize("can_link", [True, False])
def test_of_two_runs_into_one_output_the_second_to_finish_fails(fitted, tmp_path, monkeypatch, can_link):
    if not can_link:  # as on a disk without hard links

        def refuse(*_):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "out.jsonl"
    mine = write(tmp_path / "mine.jsonl", [{"text": "good film", "of": "mine"}] * 3)
    table = tables.open_source(mine)
    theirs = write(tmp_path / "theirs.jsonl", [{"text": "good film", "of": "theirs"}])

    def finish_second():
        with tables.open_writer(out, table, {"n": int}) as writer:
            predict_files(fitted, theirs, out)
            for block in table.blocks():
                writer.write(block, {"n": [1] * 3})

    with pytest.raises(sn.InputError, match="another run has written this file"):
        finish_second()
    assert [row["of"] for row in read(out)] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl", "out.jsonl", "theirs.jsonl"]


def test_other_peoples_partial_files_are_not_touched_and_block_nothing(fitted, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good film"}])
    others = [tmp_path / "out.csv.partial", tmp_path / ".out.csv.0123456789abcdef.partial"]
    for path in others:
        path.write_text("precious")
    predict_files(fitted, source, tmp_path / "out.csv")
    assert [path.read_text() for path in others] == ["precious"] * 2


def test_the_output_has_the_permissions_of_any_new_file(fitted, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good film"}])
    (tmp_path / "plain").touch()
    predict_files(fitted, source, tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these permissions nor plain links")
def test_a_replaced_file_keeps_its_permissions_and_a_link_its_target(fitted, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good film"}])
    (tmp_path / "real.jsonl").touch(0o600)
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "real.jsonl")
    predict_files(fitted, source, tmp_path / "out.jsonl", overwrite=True)
    assert (tmp_path / "out.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").stat().st_mode & 0o777 == 0o600
    assert "predicted_label" in (tmp_path / "real.jsonl").read_text()


def test_a_link_to_nothing_is_an_output_that_exists(fitted, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": "good film"}])
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(sn.InputError, match="already exists"):
        predict_files(fitted, source, tmp_path / "out.jsonl")


def test_an_exit_that_is_none_is_refused(fitted, tmp_path, unchecked):
    source = write(tmp_path / "in.jsonl", [{"text": "good film"}])
    with pytest.raises(sn.InputError, match="exit 5; expected fixed"):
        predict_files(fitted, source, tmp_path / "out.jsonl", exit=5)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file's size")
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet", ".jsonl.gz"])
def test_a_full_disk_is_one_sentence_and_no_file(tmp_path, ending):
    rows = [{"text": os.urandom(20_000).hex()} for _ in range(4)]
    source = write(tmp_path / "in.jsonl", rows)
    program = (
        "import resource, signal, sys\nfrom spin_native import InputError, tables\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "table = tables.open_source(sys.argv[1])\n"
        "try:\n"
        "    with tables.open_writer(sys.argv[2], table, {'n': int}) as writer:\n"
        "        for block in table.blocks(): writer.write(block, {'n': [1] * 4})\n"
        "except InputError as error: print(error)\n"
    )
    out = tmp_path / f"out{ending}"
    done = subprocess.run([sys.executable, "-c", program, source, out], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_delimiter_and_encoding_reach_the_source(fitted, tmp_path):
    (tmp_path / "in.csv").write_bytes("said;id\ngood café;1\n".encode("cp1252"))
    predict_files(fitted, tmp_path / "in.csv", tmp_path / "out.jsonl", text="said", delimiter=";", encoding="cp1252")
    assert read(tmp_path / "out.jsonl")[0]["said"] == "good café"


def test_an_existing_file_is_replaced_only_on_request(fitted, tmp_path):
    source, out = write(tmp_path / "in.jsonl", [{"text": "good film"}]), tmp_path / "out.jsonl"
    out.write_text("precious")
    with pytest.raises(sn.InputError, match=r"out\.jsonl: already exists; choose another name"):
        predict_files(fitted, source, out)
    assert out.read_text() == "precious"
    predict_files(fitted, source, out, overwrite=True)
    assert read(out)[0]["predicted_label"] == fitted.predict("good film")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, sn.InputError])
def test_after_an_error_in_the_middle_the_old_file_is_as_it_was(fitted, tmp_path, monkeypatch, stop):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 2)
    source, out = write(tmp_path / "in.jsonl", [{"text": "good film"}] * 6), tmp_path / "out.jsonl"
    out.write_text("precious")
    calls, whole = [], fitted.output_blocks

    def stops_at_the_second_block(texts, *rest):
        calls.append(texts)
        if len(calls) == 2:
            raise stop
        return whole(texts, *rest)

    monkeypatch.setattr(fitted, "output_blocks", stops_at_the_second_block)
    with pytest.raises(stop):
        predict_files(fitted, source, out, overwrite=True)
    assert out.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"said": "good"}], {}, r"in\.jsonl: no column 'text'; it has 'said'"),
        ([{"text": "good", "predicted_label": 1}], {}, r"in\.jsonl: already has a column 'predicted_label'; rename"),
        ([{"text": "good"}], {"exit": "soon"}, "exit 'soon'; expected fixed"),
        ([{"text": "good"}], {"exit": "fixed:9"}, "no head at depth 9"),
        ([], {}, r"in\.jsonl: has no rows"),
    ],
)
def test_what_cannot_be_predicted_is_refused(fitted, tmp_path, rows, arguments, message):
    source = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(sn.InputError, match=message):
        predict_files(fitted, source, tmp_path / "out.jsonl", **arguments)
    assert not (tmp_path / "out.jsonl").exists()


def test_unknown_formats_and_missing_files_are_refused(fitted, tmp_path):
    with pytest.raises(sn.InputError, match=r"no\.csv: no such file"):
        predict_files(fitted, tmp_path / "no.csv", tmp_path / "out.csv")
    (tmp_path / "no.xlsx").touch()
    with pytest.raises(sn.InputError, match=r"no\.xlsx: unknown file format; expected a name that ends in \.csv"):
        predict_files(fitted, tmp_path / "no.xlsx", tmp_path / "out.csv")
    source = write(tmp_path / "in.csv", [{"text": "good"}])
    with pytest.raises(sn.InputError, match=r"out\.txt: unknown file format"):
        predict_files(fitted, source, tmp_path / "out.txt")


# The command.


def test_the_command_reports_rejected_and_truncated_rows_and_exits_with_3(spin, saved, fitted, tmp_path):
    rows = [{"text": "good film " * 30}, {"text": None}, {"other": 1}, {"text": "awful"}]
    source = write(tmp_path / "in.jsonl", rows)
    code, out, err = spin("predict", saved, "--in", source, "--out", tmp_path / "out.jsonl")
    assert (code, out) == (3, "")
    assert f"rejected: {source}: row 1 (the first is 0) has no text in column 'text'" in err
    assert err.count("warning: 1 of 4 texts were longer than the base model can read and were cut") == 1
    assert "4 rows written" in err
    assert "2 of them rejected" in err
    assert [row["predicted_label"] is None for row in read(tmp_path / "out.jsonl")] == [False, True, True, False]


def test_the_command_passes_its_options_on(spin, saved, fitted, reviews, tmp_path):
    rows = write(tmp_path / "in.jsonl", labelled(*reviews, text="said"))
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    command = ("predict", saved, "--in", rows, "--out", out, "--text", "said", "--exit", "patience:1")
    assert "already exists" in spin.fails(*command)
    code, shown, err = spin(*command, "--overwrite")
    assert (code, shown) == (0, "")
    assert f"80 rows written to {out}" in err
    _, depths = fitted.predict(reviews[0], exit="patience:1", return_depth=True)
    assert [row["exit_depth"] for row in read(out)] == depths.tolist()


def test_wrong_paths_are_refused_before_the_model_is_loaded(spin, tmp_path):
    source = write(tmp_path / "in.csv", [{"text": "good"}])
    assert "is the input itself" in spin.fails("predict", tmp_path / "no-classifier", "--in", source, "--out", source)


def test_a_failure_in_the_middle_leaves_no_partial_file(spin, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_ROWS", 1)
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "good"}\n{oops\n')
    assert "line 2 is not JSON" in spin.fails("predict", saved, "--in", source, "--out", tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier", "in.jsonl"]

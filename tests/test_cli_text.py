"""Text in and out of commands: lines of standard input, any locale, any path; labels of files as the classifier has them."""

import io
import json
import os
import subprocess
import sys
import time

import pytest
from commands import QUICK, QUICK_OPTIONS, Spin, labelled, write
from problems import nightly

import spin_native as sn
from spin_native.cli.main import run

TWO_HEADS = (*QUICK_OPTIONS, "--no-baseline", "--depth", 2, "--exits", "1")
PROGRAM = [sys.executable, "-c", "from spin_native.cli.main import run; run()"]


@pytest.fixture(scope="module")
def fitted(tiny_model, reviews):
    return sn.SpinClassifier(str(tiny_model), depth=1, **QUICK).fit(*reviews)


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


@pytest.fixture
def give(monkeypatch):
    """Set standard input."""

    def give(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


# Lines of standard input.


def test_each_line_of_standard_input_is_a_text(spin, saved, fitted, give):
    give("good film\r\n\n🎻 awful, \t room\nlast".encode())
    code, out, _ = spin("predict", saved, "-", "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    texts = ["good film", "", "🎻 awful, \t room", "last"]
    assert [row["text"] for row in rows] == texts
    assert [row["label"] for row in rows] == fitted.predict(texts).tolist()


@pytest.mark.parametrize(("encoding", "options"), [("utf-8-sig", ()), ("utf-16", ("--encoding", "utf-16"))])
def test_standard_input_has_an_encoding(spin, saved, give, encoding, options):
    give("señor\ncafé".encode(encoding))
    lines = spin("predict", saved, "-", *options)[1].splitlines()
    assert [line.split("\t")[2] for line in lines] == ["señor", "café"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\ncaf\xe9\n", "standard input: line 2 is not utf-8 text; it is probably cp1252: give --encoding cp1252"),
        ("good film\n".encode("utf-16"), "standard input: is in utf-16, not in utf-8; give --encoding utf-16"),
    ],
)
def test_undecodable_input_is_one_line(spin, saved, give, content, message):
    give(content)
    assert message in spin.fails("predict", saved, "-")


def test_no_input_is_no_output(spin, saved, give):
    give(b"")
    assert spin("predict", saved, "-") == (0, "", "")


def test_truncated_lines_are_counted_once(spin, saved, give):
    give(b"good film " * 30 + b"\ngood\n")
    assert spin("predict", saved, "-")[2] == "warning: 1 of 2 texts were longer than the base model can read and were cut\n"


def test_lines_are_labelled_as_they_arrive_and_a_closed_pipe_is_no_error(saved):
    process = subprocess.Popen(
        [*PROGRAM, "predict", str(saved), "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for text in (b"good film", b"awful room"):  # the second line is written after the first one's answer is read
        process.stdin.write(text + b"\n")
        process.stdin.flush()
        assert process.stdout.readline().endswith(b"\t" + text + b"\n")
    process.stdout.close()
    process.stdin.write(b"good film\n" * 1000)
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    process.wait()


# Locales, optimised Python, paths.


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_text_is_lost_whatever_the_encoding_of_the_streams(saved, monkeypatch, encoding):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    run(["predict", str(saved), "señor 🎻"])
    with pytest.raises(SystemExit):
        run(["predict", str(saved), "--in", "🎻.csv", "--out", "x.csv"])
    for stream in streams.values():
        stream.flush()
    assert streams["stdout"].buffer.getvalue().decode().endswith("\tseñor 🎻\n")
    assert streams["stderr"].buffer.getvalue().decode() == "error: 🎻.csv: no such file\n"


def test_a_locale_without_unicode_changes_nothing(saved, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(*arguments):
        return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, env=environment)

    texts = run("predict", saved, "señor 🎻")
    assert (texts.returncode, texts.stderr) == (0, b"")
    assert texts.stdout.decode().endswith("\tseñor 🎻\n")
    source, out = tmp_path / "in 🎻.jsonl", tmp_path / "out 🎻.csv"
    source.write_text('{"sé": "señor 🎻"}\n', encoding="utf-8")
    file = run("predict", saved, "--in", source, "--out", out, "--text", "sé")
    assert (file.returncode, file.stdout) == (0, b"")
    assert out.read_text(encoding="utf-8").splitlines()[1].startswith("señor 🎻,")


@nightly  # without compiled files of its own, python -O starts slowly
def test_python_without_asserts_checks_the_same(saved, tmp_path):
    (tmp_path / "in.csv").write_text("text,label\nawful,negative\nb\n")
    command = [PROGRAM[0], "-O", *PROGRAM[1:], "evaluate", str(saved), str(tmp_path / "in.csv")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "line 3 has 1 cells, the header has 2" in done.stderr


def test_a_text_that_is_no_utf_8_is_a_usage_error(spin, saved):
    code, out, err = spin("predict", saved, os.fsdecode(b"caf\xe9"))
    assert (code, out) == (2, "")
    assert "is not UTF-8" in err


def test_every_command_takes_a_path_with_spaces_and_emoji(spin, reviews, tiny_model, tmp_path):
    folder = tmp_path / "my data 🎻"
    folder.mkdir()
    rows = write(folder / "rows 1.csv", labelled(*reviews))
    clf = folder / "a classifier"
    assert (
        spin("fit", rows, "--model", tiny_model, *QUICK_OPTIONS, "--no-baseline", "--depth", 2, "--exits", "1", "--out", clf)[0]
        == 0
    )
    assert spin("predict", clf, "--in", folder / "rows ?.csv", "--out", tmp_path / "out 🎻.parquet")[0] == 0
    assert spin("evaluate", clf, rows)[0] == 0
    assert spin("extract", tiny_model, rows, "--out", folder / "the store")[0] == 0
    assert spin("calibrate", clf, rows, "--max-accuracy-drop", 0.3)[0] == 0


# Files.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("txt\na\n", "no column 'text'"),
        ("text\n", "has no rows"),
        ("text,n\na,1\n,2\n", "row 1 (the first is 0) has no value in column 'text'; expected a text"),
        (b"text\ncaf\xe9\n", "give --encoding cp1252"),
    ],
)
def test_extract_leaves_nothing_behind_after_a_typo(spin, tiny_model, tmp_path, content, message):
    source = tmp_path / "in.csv"
    if content is not None:
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in spin.fails("extract", tiny_model, source, "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_options_for_csv_reach_every_command(spin, reviews, tiny_model, tmp_path):
    rows = "said;mood\n" + "".join(f"{text} é;{mood}\n" for text, mood in zip(*reviews, strict=True))
    data = tmp_path / "in.csv"
    data.write_bytes(rows.encode("cp1252"))
    how = ("--delimiter", ";", "--encoding", "cp1252", "--text", "said")
    fit = (
        "fit",
        data,
        "--model",
        tiny_model,
        *QUICK_OPTIONS,
        "--no-baseline",
        "--depth",
        2,
        "--exits",
        "1",
        "--out",
        tmp_path / "clf",
    )
    assert spin(*fit, *how, "--label", "mood")[0] == 0
    assert spin("evaluate", tmp_path / "clf", data, *how, "--label", "mood")[0] == 0
    assert spin("calibrate", tmp_path / "clf", data, *how, "--label", "mood", "--max-accuracy-drop", 0.3)[0] == 0
    assert spin("extract", tiny_model, data, *how, "--out", tmp_path / "store")[0] == 0
    assert spin("predict", tmp_path / "clf", *how, "--in", data, "--out", tmp_path / "out.csv")[0] == 0
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").startswith("said;mood;predicted_label;")


@pytest.mark.filterwarnings("ignore::spin_native.errors.LeakWarning")
def test_labels_are_read_as_the_training_labels_were(spin, reviews, tiny_model, tmp_path):
    texts, moods = reviews
    codes = ["1" if mood == "positive" else "0" for mood in moods]
    as_text = write(tmp_path / "text.jsonl", labelled(texts, codes))
    as_int = write(tmp_path / "int.jsonl", labelled(texts, list(map(int, codes))))
    in_csv = write(tmp_path / "codes.csv", labelled(texts, list(map(int, codes))))
    fit = ("--model", tiny_model, *QUICK_OPTIONS, "--no-baseline", "--depth", 1, "--validation", in_csv, "--test", in_csv)
    for data, classes in ((as_text, ["0", "1"]), (as_int, [0, 1])):
        out = tmp_path / data.stem
        assert spin("fit", data, *fit, "--out", out)[0] == 0
        assert sn.SpinClassifier.from_pretrained(out).classes_.tolist() == classes
        assert json.loads(spin("evaluate", out, in_csv, "--json")[1])["labels"] == classes
        assert json.loads(spin("evaluate", out, data, "--json")[1])["accuracy"] > 0.9
    named = spin.fails("evaluate", tmp_path / "int", write(tmp_path / "odd.csv", [{"text": "a", "label": "007"}]))
    assert "row 0 (the first is 0) has '007' in column 'label'; expected a whole number" in named


def test_a_word_among_the_values_of_a_regression_is_named(spin, tiny_model, tmp_path):
    (tmp_path / "in.csv").write_text("text,label\na,1.5\nb,high\n")
    fit = ("fit", tmp_path / "in.csv", "--task", "regression", "--model", tiny_model, "--out", tmp_path / "clf")
    assert "row 1 (the first is 0) has 'high' in column 'label'; expected a number" in spin.fails(*fit)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
def test_a_run_that_is_terminated_leaves_no_file(saved, tmp_path):
    source = write(tmp_path / "in.jsonl", [{"text": f"good film {number}"} for number in range(200_000)])
    done = subprocess.Popen([*PROGRAM, "predict", str(saved), "--in", str(source), "--out", str(tmp_path / "out.jsonl")])
    while not list(tmp_path.glob(".out.jsonl.*")) and done.poll() is None:
        time.sleep(0.02)
    done.terminate()
    assert done.wait(60) == 143
    assert not list(tmp_path.glob("*out.jsonl*"))

"""The command line: data on stdout, one line per error on stderr, exit codes, and files written whole or not at all."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import confusion_matrix, f1_score

import spin_native as sn
from spin_native.cli import main as cli_main
from spin_native.text.tokenizer import TruncationWarning

NASTY = ['a, "quoted" film', "two\nlines", "🎻 wow", "007", "NA", "null", "nan", "good", " spaces ", "1e5"]


@pytest.fixture
def spin(capsys):
    """Run a command; its exit code, stdout and stderr."""

    def run(*arguments):
        code = 0
        try:
            cli_main.run([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    return run


@pytest.fixture
def failing(spin):
    """Run a command that must fail; its one line."""

    def run(*arguments, code=1):
        got, out, err = spin(*arguments)
        assert (got, out) == (code, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture
def data(reviews, tmp_path):
    """train.csv with the reviews."""
    return write(tmp_path / "train.csv", [{"text": t, "label": y} for t, y in zip(*reviews, strict=True)])


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_NONNUMERIC)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def read(path):
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.filterwarnings("ignore::spin_native.errors.LeakWarning")
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_fit_predict_evaluate_from_every_kind_of_file(spin, reviews, tiny_model, tmp_path, ending):
    texts, labels = reviews
    rows = write(
        tmp_path / f"rows{ending}",
        [{"said": t, "mood": y, "id": i} for i, (t, y) in enumerate(zip(texts, labels, strict=True))],
    )
    named = ("--text", "said", "--label", "mood")
    code, out, err = spin("fit", rows, *named, "--model", tiny_model, "--test", rows, "--out", tmp_path / "clf")
    assert code == 0
    assert "baseline: final hidden state" in out
    assert "peak memory" in err
    clf = sn.SpinClassifier.from_pretrained(tmp_path / "clf")
    truth = clf.predict(texts)

    code, out, err = spin("predict", tmp_path / "clf", "--in", rows, "--text", "said", "--out", tmp_path / f"out{ending}")
    assert (code, out) == (0, "")
    written = read(tmp_path / f"out{ending}")
    assert [row["said"] for row in written] == texts
    assert [row["predicted_label"] for row in written] == truth.tolist()
    assert [int(row["id"]) for row in written] == list(range(80))
    for row, probabilities in zip(written, clf.predict_proba(texts), strict=True):
        assert float(row["probability_negative"]) == pytest.approx(probabilities[0], rel=1e-5)
        assert float(row["probability_positive"]) == pytest.approx(probabilities[1], rel=1e-5)

    code, out, _ = spin("evaluate", tmp_path / "clf", rows, *named, "--json")
    result = json.loads(out)
    assert list(result) == ["accuracy", "macro_f1", "confusion", "labels", "rows"]
    assert result["accuracy"] == pytest.approx((truth == labels).mean())
    assert result["macro_f1"] == pytest.approx(f1_score(labels, truth, average="macro"))
    assert result["confusion"] == confusion_matrix(labels, truth).tolist()
    assert (result["labels"], result["rows"]) == (["negative", "positive"], 80)
    assert "macro-F1" in spin("evaluate", tmp_path / "clf", rows, *named)[1]


def test_whole_number_labels_of_a_csv_are_numbers(spin, data, tiny_model, tmp_path):
    numbered = write(tmp_path / "n.csv", [{"text": r["text"], "label": int(r["label"] == "positive")} for r in read(data)])
    code, out, _ = spin("fit", numbered, "--model", tiny_model, "--out", tmp_path / "clf", "--depth", 2, "--json")
    assert code == 0
    fitted = json.loads(out)
    assert fitted["depth"] == 2
    assert [row["depth"] for row in fitted["depth_curve"]] == [1, 2]
    assert json.loads((tmp_path / "clf" / "spin_classifier.json").read_text())["labels"] == [0, 1]


def test_single_texts_as_lines_and_as_json(spin, saved, fitted):
    code, out, _ = spin("predict", saved, "good film", "awful room", "--json")
    assert code == 0
    for line, text in zip(out.splitlines(), ["good film", "awful room"], strict=True):
        row = json.loads(line)
        assert (row["text"], row["label"]) == (text, fitted.predict(text))
        assert row["probabilities"] == pytest.approx(dict(zip(fitted.classes_, fitted.predict_proba(text), strict=True)))
    assert spin("predict", saved, "good film")[1].startswith(f"{fitted.predict('good film')}\t")


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_texts_survive_a_round_trip_to_the_letter(spin, saved, tmp_path, ending):
    rows = write(tmp_path / f"in{ending}", [{"text": text} for text in NASTY])
    assert spin("predict", saved, "--in", rows, "--out", tmp_path / f"out{ending}")[0] == 0
    assert [row["text"] for row in read(tmp_path / f"out{ending}")] == NASTY


def test_rows_without_text_are_rejected_and_the_others_labelled(spin, saved, fitted, tmp_path):
    rows = write(tmp_path / "in.jsonl", [{"text": "good film"}, {"text": None}, {"other": 1}, {"text": "awful"}])
    code, out, err = spin("predict", saved, "--in", rows, "--out", tmp_path / "out.jsonl")
    assert (code, out) == (3, "")
    assert "row 1 (the first is 0) has no text in column 'text'" in err
    assert "4 rows written" in err
    assert "2 of them rejected" in err
    labels = [row["predicted_label"] for row in read(tmp_path / "out.jsonl")]
    assert labels == [fitted.predict("good film"), None, None, fitted.predict("awful")]
    unquoted = tmp_path / "in.csv"
    unquoted.write_text('text,id\ngood film,1\n,2\n"",3\n')
    assert spin("predict", saved, "--in", unquoted, "--out", tmp_path / "out.csv")[0] == 3
    assert [bool(row["predicted_label"]) for row in read(tmp_path / "out.csv")] == [True, False, True]  # "" is an empty text


def test_texts_that_are_cut_are_counted_once(spin, saved, tmp_path):
    rows = write(tmp_path / "in.jsonl", [{"text": "good film " * 30}, {"text": "good"}])
    code, _, err = spin("predict", saved, "--in", rows, "--out", tmp_path / "out.jsonl")
    assert code == 0
    assert err.count("warning: 1 of 2 texts were longer than the base model holds and were cut") == 1
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than 24 tokens"):
        sn.SpinClassifier.from_pretrained(saved).predict(["good film " * 30, "good"])


def test_extract_keeps_a_store_and_goes_on(spin, data, tiny_model, tmp_path):
    arguments = ("extract", tiny_model, data, "--out", tmp_path / "store", "--depth", 2, "--site", "hidden", "--pooling", "max")
    for _ in range(2):
        code, out, err = spin(*arguments)
        assert (code, out) == (0, "")
        assert "80 rows, 2 arrays" in err
    assert sn.ActivationStore(tmp_path / "store").array(site="hidden", pooling="max", layer=1).shape == (80, 16)


def test_neurons_lists_every_salient_neuron(spin, saved, fitted):
    listed = json.loads(spin("neurons", saved, "--json")[1])
    assert listed["neurons"] == fitted.neuron_weights()
    assert listed["outputs"] == ["positive"]
    shown = spin("neurons", saved, "--top", 1)[1]
    assert all(f"layer {layer}: {len(n)} salient neurons" in shown for layer, n in fitted.salient_neurons_.items())


def test_verify_and_doctor_and_version(spin, tiny_model):
    code, out, _ = spin("verify", tiny_model, "--json")
    assert code == 0
    assert all(entry["passed"] for entry in json.loads(out))
    assert "largest error" in spin("verify", tiny_model)[1]
    found = json.loads(spin("doctor", "--json")[1])
    assert found["spin-native"] == sn.__version__
    reorders = not isinstance(sn.load_model(str(tiny_model)).blocks[0].attention.output, torch.nn.Linear)
    assert found["reordered_weights"] is reorders
    assert sn.__version__ in spin("--version")[1]


def test_a_difference_from_transformers_is_an_error(spin, tiny_model, monkeypatch):
    from spin_native.models.bert import Bert

    true = Bert.embed
    monkeypatch.setattr(Bert, "embed", lambda self, batch: true(self, batch) * 1.001)
    code, _, err = spin("verify", tiny_model)
    assert code == 1
    assert "differs from transformers" in err


# What goes wrong is one line.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("text,label\n", "holds no rows"),
        ("txt,label\na,b\n", "no column 'text'; it has 'txt', 'label'"),
        ("text,lab\na,b\n", "no column 'label'; it has 'text', 'lab'"),
        ("text,label\na,p\nb,\n", "row 1 (the first is 0) has nothing in column 'label'"),
        ("text,label\na,p\nb,NaN\n", "row 1 (the first is 0) has nothing in column 'label'"),
        ("text,label\n,p\nb,n\n", "row 0 (the first is 0) has nothing in column 'text'"),
        ("text,label\na,p\nb,p\n", "every row has the label 'p'"),
        ("text,label\na,p\nb\n", "not readable as CSV"),
        (b"text,label\n\xff\xfe,p\n", "not readable as CSV"),
    ],
)
def test_unusable_files_are_refused(failing, tiny_model, tmp_path, content, message):
    path = tmp_path / "in.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in failing("fit", path, "--model", tiny_model, "--out", tmp_path / "clf")
    assert not (tmp_path / "clf").exists()


def test_numbers_as_text_and_broken_lines_are_refused(failing, tiny_model, tmp_path):
    fit = ("--model", tiny_model, "--out", tmp_path / "clf")
    numbers = write(tmp_path / "n.parquet", [{"text": 5, "label": "a"}])
    assert "row 0 (the first is 0) has 5 (int) in column 'text'; expected a value, as text" in failing("fit", numbers, *fit)
    for line, message in (("{oops", "line 2 is not JSON"), ("[1]", "line 2 is no JSON object")):
        (tmp_path / "b.jsonl").write_text('{"text": "a", "label": "p"}\n' + line + "\n")
        assert message in failing("fit", tmp_path / "b.jsonl", *fit)
    assert "no such file" in failing("fit", tmp_path / "no.csv", *fit)
    assert "unknown kind of file" in failing("fit", tmp_path / "no.xlsx", *fit)


def test_unusable_models_and_depths_are_refused(failing, data, tmp_path, tiny_model):
    out = ("--out", tmp_path / "clf")
    assert "no such folder" in failing("fit", data, "--model", tmp_path / "none", *out)
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in failing("fit", data, "--model", tmp_path / "empty", *out)
    for depth in (0, 99, -1):
        assert f"depth is {depth}; expected 1 to 3" in failing("fit", data, "--model", tiny_model, *out, "--depth", depth)


def change_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors, "encoder.layer.1.intermediate.dense.weight")
        save_file(tensors, folder / "model.safetensors")

    return damage


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change_tensors(lambda t, name: t.pop(name)), "holds no encoder.layer.1.intermediate.dense.weight"),
        (
            change_tensors(lambda t, name: t.update(surprise=t[name].clone())),
            "holds surprise, which its config.json does not imply",
        ),
        (change_tensors(lambda t, name: t.update({name: t[name][1:]})), "is [31, 16], config.json implies [32, 16]"),
        (change_tensors(lambda t, name: t[name].fill_(float("nan"))), "holds NaN or infinity"),
        (cut, "damaged or cut short"),
        (lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"), "a git-lfs pointer"),
        (lambda f: (f / "vocab.txt").write_text((f / "vocab.txt").read_text() + "extra\n"), "the tokenizer has ids up to"),
        (lambda f: (f / "vocab.txt").unlink(), "holds no tokenizer.json"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    ],
)
def test_a_damaged_model_folder_is_one_line(failing, data, tiny_model, tmp_path, damage, message):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    damage(folder)
    assert message in failing("fit", data, "--model", folder, "--out", tmp_path / "clf")


def test_a_device_that_is_not_there_is_one_line(failing, saved):
    assert "device 'cuda:99' cannot be used" in failing("predict", saved, "good", "--device", "cuda:99")
    assert "device 'tpu9' cannot be used" in failing("predict", saved, "good", "--device", "tpu9")


def test_nothing_is_overwritten_unasked(failing, spin, saved, data, tmp_path, tiny_model):
    before = data.read_bytes()
    assert "is the input itself" in failing("predict", saved, "--in", data, "--out", data)
    assert "is the input itself" in failing("predict", saved, "--in", data, "--out", data, "--overwrite")
    assert data.read_bytes() == before
    (tmp_path / "out.csv").write_text("precious")
    assert "already there" in failing("predict", saved, "--in", data, "--out", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "precious"
    assert spin("predict", saved, "--in", data, "--out", tmp_path / "out.csv", "--overwrite")[0] == 0
    assert len(read(tmp_path / "out.csv")) == 80
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    assert "already there and no classifier" in failing("fit", data, "--model", tiny_model, "--out", tmp_path / "mine")


def test_a_failure_in_the_middle_leaves_no_half_file(failing, saved, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "good"}\n' * 9000 + "{oops\n")
    assert "line 9001 is not JSON" in failing("predict", saved, "--in", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier", "in.jsonl"]


def test_unknown_labels_and_changed_base_models_are_refused(failing, saved, tmp_path):
    rows = write(tmp_path / "in.csv", [{"text": "good", "label": "mixed"}])
    assert "row 0 has the label 'mixed'; known are 'negative', 'positive'" in failing("evaluate", saved, rows)
    description = json.loads((saved / "spin_classifier.json").read_text())
    description["base_model"]["fingerprint"] = "0" * 64
    (saved / "spin_classifier.json").write_text(json.dumps(description))
    assert "changed since the classifier was fitted" in failing("predict", saved, "good")


def test_usage_errors_exit_2_and_interrupts_130_and_surprises_1(spin, failing, monkeypatch, saved, tmp_path):
    assert spin("predict", saved)[0] == 2
    assert spin("fly")[0] == 2
    assert spin("fit", "x.csv", "--model", "m", "--out", tmp_path / "o", "--depth", "deep")[0] == 2

    def interrupt(*_given, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_main.SpinClassifier, "from_pretrained", interrupt)
    code, out, err = spin("predict", saved, "good")
    assert (code, out, err.strip()) == (130, "", "error: interrupted; what was finished is kept")

    def surprise(*_given, **_named):
        raise RuntimeError("what\nnow")

    monkeypatch.setattr(cli_main.SpinClassifier, "from_pretrained", surprise)
    assert "unexpected RuntimeError: what now" in failing("predict", saved, "good")


def test_a_reader_that_leaves_is_no_error(saved):
    program = "from spin_native.cli.main import run; run()"
    command = [sys.executable, "-c", program, "predict", str(saved), *["good film"] * 3000]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"TQDM_DISABLE": "1"})
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert b"Traceback" not in err
    assert b"error" not in err


def test_a_regression_from_fit_to_evaluate(spin, tiny_model, reviews, tmp_path):
    rows = [{"text": t, "label": len(t.split()) / 10 + (y == "positive")} for t, y in zip(*reviews, strict=True)]
    data = write(tmp_path / "values.csv", rows)
    how = ("--task", "regression", "--metric", "spearman", "--head", "frozen", "--eta", "0.9,1", "--poolings", "mean")
    code, out, _ = spin("fit", data, "--model", tiny_model, *how, "--out", tmp_path / "reg", "--json")
    assert code == 0
    fitted = json.loads(out)
    assert fitted["metric"] == "spearman"
    assert [row["depth"] for row in fitted["layer_curve"]] == [1, 2, 3]
    assert set(fitted["controls"]) == {"salient", "random", "bottom", "shuffled", "selectivity"}
    reg = sn.SpinRegressor.from_pretrained(tmp_path / "reg")
    assert json.loads(spin("predict", tmp_path / "reg", "good film", "--json")[1])["value"] == reg.predict("good film")
    assert spin("predict", tmp_path / "reg", "--in", data, "--out", tmp_path / "out.csv")[0] == 0
    found = [float(row["predicted_value"]) for row in read(tmp_path / "out.csv")]
    np.testing.assert_allclose(found, reg.predict(reviews[0]), rtol=1e-5)
    scores = json.loads(spin("evaluate", tmp_path / "reg", data, "--json")[1])
    assert set(scores) == {"pearson", "spearman", "mse", "mae", "rows"}
    assert scores["spearman"] == pytest.approx(reg.score(reviews[0], [row["label"] for row in rows]))
    assert "no head at depth 99" in spin("evaluate", tmp_path / "reg", data, "--exit", "fixed:99")[2]
    assert "neuron" in spin("neurons", tmp_path / "reg")[1]


def test_rows_leave_early_as_calibrated_or_as_asked(spin, data, reviews, tiny_model, tmp_path):
    clf, out = tmp_path / "clf", tmp_path / "out.jsonl"
    assert spin("fit", data, "--model", tiny_model, "--depth", 3, "--exits", "1,2", "--out", clf)[0] == 0
    assert set(json.loads((clf / "spin_classifier.json").read_text())["heads"]) == {"1", "2", "3"}
    code, shown, _ = spin("calibrate", clf, data, "--max-accuracy-drop", 0.3, "--json")
    assert code == 0
    promise = json.loads(shown)
    assert promise["exit"].startswith("confidence:")
    assert promise["n_rows"] == 80
    assert "with confidence 0.95 accuracy falls by at most 0.3" in spin("calibrate", clf, data, "--max-accuracy-drop", 0.3)[1]
    assert spin("predict", clf, "--in", data, "--out", out)[0] == 0
    depths = [row["exit_depth"] for row in read(out)]
    assert np.mean(depths) == pytest.approx(promise["mean_depth"])
    assert spin("predict", clf, "--in", data, "--out", out, "--overwrite", "--exit", "fixed:1")[0] == 0
    assert "exit_depth" not in read(out)[0]
    line = json.loads(spin("predict", clf, "good film", "--exit", "patience:1", "--json")[1])
    assert line["depth"] in (2, 3)
    clf, (texts, labels) = sn.SpinClassifier.from_pretrained(clf), reviews
    for way in ("fixed:1", "confidence:0.7"):
        told = json.loads(spin("evaluate", tmp_path / "clf", data, "--exit", way, "--json")[1])
        assert told["accuracy"] == clf.score(texts, labels, exit=way)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--exit", "soon"), "exit 'soon'; expected fixed"),
        (("--exit", "fixed:9"), "no head at depth 9"),
    ],
)
def test_an_exit_nobody_can_take_is_one_line(failing, saved, arguments, line):
    assert line in failing("predict", saved, "good film", *arguments)


def test_a_calibration_needs_a_folder_and_several_heads(failing, saved, data):
    assert "no folder; calibrate writes to the classifier" in failing("calibrate", "some/repository", data)
    assert "there is one head only" in failing("calibrate", saved, data)

"""The other commands: data on stdout, one line per error on stderr, and the exit codes."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from commands import QUICK, Spin, labelled, write
from sklearn.metrics import confusion_matrix, f1_score

import spin_native as sn
from spin_native.cli import main as cli_main
from spin_native.text.tokenizer import TruncationWarning


@pytest.fixture(scope="module")
def fitted(tiny_model, reviews):
    """A classifier with three heads, cheaper than the suite's."""
    return sn.SpinClassifier(str(tiny_model), depth=3, exits="all", **QUICK).fit(*reviews)


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


@pytest.fixture
def data(reviews, tmp_path):
    """reviews.csv."""
    return write(tmp_path / "reviews.csv", labelled(*reviews))


# Commands.


def test_texts_are_printed_with_their_label_as_lines_and_as_json(spin, saved, fitted):
    code, out, _ = spin("predict", saved, "good film", "awful room", "--json")
    assert code == 0
    for line, text in zip(out.splitlines(), ["good film", "awful room"], strict=True):
        row = json.loads(line)
        assert (row["text"], row["label"]) == (text, fitted.predict(text))
        assert row["probabilities"] == pytest.approx(dict(zip(fitted.classes_, fitted.predict_proba(text), strict=True)))
    expected = f"{fitted.predict('good film')}\t{fitted.predict_proba('good film').max():.4f}\tgood film\n"
    assert spin("predict", saved, "good film")[1] == expected


def test_the_depth_of_a_text_that_stopped_early_is_in_the_json(spin, saved):
    assert json.loads(spin("predict", saved, "good film", "--json")[1])["depth"] == 3
    assert json.loads(spin("predict", saved, "good film", "--exit", "fixed:1", "--json")[1])["depth"] == 1
    assert json.loads(spin("predict", saved, "good film", "--exit", "patience:1", "--json")[1])["depth"] in (2, 3)


def test_truncated_texts_on_the_command_line_are_one_warning_on_stderr(spin, saved):
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the suite turns warnings into errors
        code, out, err = spin("predict", saved, "good film " * 30, "good")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err.count("warning: 1 of 2 texts were longer than 24 tokens") == 1
    with pytest.warns(TruncationWarning, match="1 of 2 texts were longer than 24 tokens"):
        sn.SpinClassifier.from_pretrained(saved).predict(["good film " * 30, "good"])


def test_evaluate_scores_as_scikit_learn_does(spin, saved, fitted, data, reviews):
    texts, labels = reviews
    predicted = fitted.predict(texts)
    code, out, _ = spin("evaluate", saved, data, "--json")
    result = json.loads(out)
    assert code == 0
    assert list(result) == ["accuracy", "macro_f1", "ece", "log_loss", "reliability", "confusion", "labels", "rows"]
    assert result["accuracy"] == pytest.approx((predicted == labels).mean())
    assert result["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert result["confusion"] == confusion_matrix(labels, predicted).tolist()
    assert (result["labels"], result["rows"]) == (["negative", "positive"], 80)
    shown = spin("evaluate", saved, data)[1]
    assert shown.startswith(f"rows 80  accuracy {result['accuracy']:.4f}  macro-F1 {result['macro_f1']:.4f}\n")
    assert "true \\ predicted  negative  positive" in shown


def test_extract_fills_a_store_and_resumes(spin, data, tiny_model, tmp_path):
    lists = ("--sites", "activation,hidden", "--poolings", "max,last")
    for _ in range(2):
        code, out, err = spin("extract", tiny_model, data, "--out", tmp_path / "store", "--depth", 2, *lists)
        assert (code, out) == (0, "")
        assert "80 rows, 8 arrays" in err
    store = sn.ActivationStore(tmp_path / "store")
    assert store.array(site="hidden", pooling="max", layer=1).shape == (80, 16)
    assert store.array(site="activation", pooling="last", layer=0).shape == (80, 32)


def test_neurons_lists_every_salient_neuron(spin, saved, fitted):
    listed = json.loads(spin("neurons", saved, "--json")[1])
    assert listed["neurons"] == fitted.neuron_weights()
    assert listed["outputs"] == ["positive"]
    assert listed["labels"] == ["negative", "positive"]
    shown = spin("neurons", saved, "--top", 1)[1]
    assert all(f"layer {layer}: {len(n)} salient neurons" in shown for layer, n in fitted.salient_neurons_.items())
    strongest = max((w for w in listed["neurons"] if w["layer"] == 0), key=lambda w: abs(w["weights"][0]))
    line = shown.splitlines()[2].split()
    assert line == ["0", str(strongest["neuron"]), "activation", "mean", f"{strongest['weights'][0]:.4f}"]


def test_verify_prints_the_errors_of_every_layer(spin, tiny_model):
    code, out, _ = spin("verify", tiny_model, "--json")
    assert code == 0
    assert all(entry["passed"] for entry in json.loads(out))
    assert "largest error" in spin("verify", tiny_model)[1]


def test_a_difference_from_transformers_is_an_error(spin, tiny_model, monkeypatch):
    from spin_native.models.families.bert import Bert

    true = Bert.embed
    monkeypatch.setattr(Bert, "embed", lambda self, batch: true(self, batch) * 1.001)
    code, _, err = spin("verify", tiny_model)
    assert code == 1
    assert "differs from transformers" in err


def test_doctor_and_version(spin, tiny_model):
    report = json.loads(spin("doctor", "--json")[1])
    assert report["spin-native"] == sn.__version__
    reorders = not isinstance(sn.load_model(str(tiny_model)).blocks[0].attention.output, torch.nn.Linear)
    assert report["reordered_weights"] is reorders
    assert "torch_threads" in spin("doctor")[1]
    assert sn.__version__ in spin("--version")[1]


def test_the_program_lists_its_commands_and_each_has_help(spin):
    code, out, _ = spin("--help")
    assert code == 0
    for name in ("demo", "fit", "predict", "evaluate", "calibrate", "extract", "neurons", "verify", "doctor"):
        assert f"\n  {name} " in out
        code, shown, _ = spin(name, "--help")
        assert code == 0
        assert shown.startswith(f"Usage: spin-native {name} [OPTIONS]")


# Errors and exit codes.


def test_a_device_that_cannot_be_used_is_one_line(spin, saved):
    assert "device 'cuda:99' cannot be used" in spin.fails("predict", saved, "good", "--device", "cuda:99")
    assert "device 'tpu9' cannot be used" in spin.fails("predict", saved, "good", "--device", "tpu9")


@pytest.mark.parametrize(
    ("exit_", "line"),
    [("soon", "exit 'soon'; expected fixed"), ("fixed:9", "no head at depth 9")],
)
def test_an_unknown_exit_is_one_line(spin, saved, exit_, line):
    assert line in spin.fails("predict", saved, "good film", "--exit", exit_)


def test_unknown_labels_are_refused(spin, saved, tmp_path):
    rows = write(tmp_path / "in.csv", [{"text": "good", "label": "mixed"}])
    assert "row 0 has the label 'mixed'; known are 'negative', 'positive'" in spin.fails("evaluate", saved, rows)


def test_a_changed_base_model_is_refused(spin, saved):
    description = json.loads((saved / "spin_classifier.json").read_text())
    description["base_model"]["fingerprint"] = "0" * 64
    (saved / "spin_classifier.json").write_text(json.dumps(description))
    assert "changed since the classifier was fitted" in spin.fails("predict", saved, "good")


@pytest.mark.parametrize(
    "arguments",
    [("fly",), ("predict", "clf"), ("predict", "clf", "good", "--in", "a.csv"), ("predict", "clf", "--in", "a.csv")],
)
def test_a_usage_error_exits_with_2(spin, arguments):
    code, out, err = spin(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err


def test_an_interrupt_exits_with_130_and_a_surprise_with_1(spin, monkeypatch, saved):
    def interrupt(*_given, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr("spin_native.cli.predict.load_pretrained", interrupt)
    code, out, err = spin("predict", saved, "good")
    assert (code, out) == (130, "")
    assert err.strip() == "error: interrupted; finished shards of a store are kept, and no unfinished file"

    def surprise(*_given, **_named):
        raise RuntimeError("what\nnow")

    monkeypatch.setattr("spin_native.cli.predict.load_pretrained", surprise)
    assert "unexpected RuntimeError: what now" in spin.fails("predict", saved, "good")


def test_a_reader_that_closes_the_pipe_is_no_error(saved):
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


def test_the_list_of_commands_needs_neither_torch_nor_a_command():
    # The package is a stub here: only what main.py itself imports counts.
    program = (
        "import sys, types; package = types.ModuleType('spin_native'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['spin_native'] = package; from spin_native.cli.main import run; run(['--help']); "
        "assert not {'torch', 'numpy', 'spin_native.cli.options'} & set(sys.modules)"
    )
    folder = os.path.dirname(os.path.dirname(cli_main.__file__))
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
    assert "doctor" in done.stdout


OTHER_OPTIONS = [("-", "more"), ("a", "--overwrite"), ("a", "--delimiter", ";"), ("a", "--encoding", "x")]


@pytest.mark.parametrize("arguments", OTHER_OPTIONS)
def test_options_that_mean_nothing_beside_texts_are_refused(spin, saved, arguments):
    code, out, err = spin("predict", saved, *arguments)
    assert (code, out) == (2, "")
    assert "standard input" in err or "for --in" in err

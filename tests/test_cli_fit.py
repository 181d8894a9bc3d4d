"""`spin-native fit` and `calibrate`: files in, a saved classifier out; every setting reachable; wrong input is one line."""

import inspect
import json
import re
import shutil

import numpy as np
import pytest
from commands import ENDINGS, QUICK_OPTIONS, Spin, labelled, read, write
from safetensors.torch import load_file, save_file

import spin_native as sn
from spin_native.cli import fit as fit_command


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


@pytest.fixture
def data(reviews, tmp_path):
    """train.csv with the reviews."""
    return write(tmp_path / "train.csv", labelled(*reviews))


@pytest.fixture
def settings_of(spin, data, tmp_path, monkeypatch):
    """The settings that the estimator is constructed with when `fit` gets some options."""

    def record(*options):
        recorded = {}

        def estimator(**settings):
            recorded.update(settings)
            raise sn.InputError("recorded")

        monkeypatch.setattr(fit_command, "ESTIMATORS", {"classification": estimator})
        assert "recorded" in spin.fails("fit", data, "--model", "some/model", "--out", tmp_path / "clf", *options)
        assert recorded.pop("model") == "some/model"
        return recorded

    return record


@pytest.mark.filterwarnings("ignore::spin_native.errors.LeakWarning")
@pytest.mark.parametrize("ending", ENDINGS)
def test_fit_reads_every_kind_of_file_and_named_columns(spin, reviews, tiny_model, tmp_path, ending):
    rows = write(tmp_path / f"rows{ending}", labelled(*reviews, text="said", label="mood"))
    command = ("fit", rows, "--text", "said", "--label", "mood", "--model", tiny_model, "--test", rows, *QUICK_OPTIONS)
    code, out, err = spin(*command, "--depth", 1, "--out", tmp_path / "clf")
    assert code == 0
    for rows in ("validation", "test"):
        assert f"Baselines on {rows} rows, and the head at depth 1 against each:" in out
    assert re.search(r"^Validation rows: the most frequent class is 0\.\d{4} of them; macro-F1 at depth 1: \d", out, re.M)
    assert "One probe for each single layer" in out
    assert "peak memory" in err
    clf = sn.SpinClassifier.from_pretrained(tmp_path / "clf")
    assert clf.depth_curve_[0].test == pytest.approx(clf.score(*reviews))


def test_every_baseline_is_printed_and_in_json_and_an_unclear_difference_is_called_a_tie(spin, data, tiny_model, tmp_path):
    command = ("fit", data, "--model", tiny_model, *QUICK_OPTIONS, "--depth", 1, "--out", tmp_path / "clf")
    baselines = json.loads(spin(*command, "--json")[1])["baselines"]
    assert set(baselines) == {"majority", "final_hidden", "best_hidden", "all_hidden", "all_activations"}
    out = spin(*command)[1]
    table = out[out.index("Baselines on validation rows") :].split("\n\n")[0].splitlines()[2:]
    for line, one in zip(table, baselines.values(), strict=True):
        gain = one["held_out"]
        verdict = "tie" if gain["p_value"] >= 0.05 else "head is better" if gain["difference"] > 0 else "head is worse"
        assert line.endswith(verdict)
        numbers = [one["row"]["validation"], gain["difference"], gain["low"], gain["high"], gain["p_value"]]
        assert [float(number) for number in re.findall(r"[-+]?\d\.\d{4}", line)] == pytest.approx(numbers, abs=5e-5)
        assert one["test"] is None


@pytest.mark.filterwarnings("always::spin_native.errors.HiddenClassWarning")
def test_a_class_that_accuracy_hides_is_warned_of_and_named_in_json(spin, tiny_model, tmp_path):
    texts = [f"the film was {'a ' * (row % 5)}{'very ' * (row // 5 % 5)}{'food ' * (row // 25)}room" for row in range(150)]
    labels = ["rare" if row % 10 == 0 else "usual" for row in range(150)]  # follows from nothing in the text
    data = write(tmp_path / "rows.csv", labelled(texts, labels))
    command = ("fit", data, "--model", tiny_model, "--head", "dense", "--depth", 1, "--head-Cs", "1e-6", "--no-baseline")
    code, out, err = spin(*command, "--out", tmp_path / "clf", "--json")
    assert code == 0, err
    assert err.count("warning: class 'rare' is recognised in 0 of its 15 cross-validated rows") == 1
    beside = json.loads(out)["beside_accuracy"]
    assert beside["majority_share"] == pytest.approx(0.9)
    assert beside["macro_f1"] == pytest.approx((2 * 0.9 / 1.9) / 2)  # recall 1 and precision .9 of one class, 0 of the other
    assert beside["hidden_classes"] == [{"label": "rare", "rows": 15, "recognised": 0}]
    assert sn.SpinClassifier.from_pretrained(tmp_path / "clf").beside_accuracy_ == beside


def test_whole_number_labels_of_a_csv_are_numbers(spin, reviews, tiny_model, tmp_path):
    texts, labels = reviews
    numbered = write(tmp_path / "n.csv", labelled(texts, [int(label == "positive") for label in labels]))
    command = ("fit", numbered, "--model", tiny_model, *QUICK_OPTIONS, "--out", tmp_path / "clf", "--depth", 2, "--json")
    code, out, _ = spin(*command)
    assert code == 0
    summary = json.loads(out)
    assert summary["depth"] == 2
    assert [row["depth"] for row in summary["depth_curve"]] == [1, 2]
    assert json.loads((tmp_path / "clf" / "spin_classifier.json").read_text())["labels"] == [0, 1]


def test_a_regression_from_fit_to_evaluate(spin, tiny_model, reviews, tmp_path):
    values = [len(text.split()) / 10 + (label == "positive") for text, label in zip(*reviews, strict=True)]
    data = write(tmp_path / "values.csv", labelled(reviews[0], values))
    how = ("--task", "regression", "--metric", "spearman", "--head", "frozen", "--etas", "0.9,1", "--poolings", "mean")
    code, out, _ = spin("fit", data, "--model", tiny_model, *how, "--out", tmp_path / "reg", "--json")
    assert code == 0
    summary = json.loads(out)
    assert summary["metric"] == "spearman"
    assert [row["depth"] for row in summary["layer_curve"]] == [1, 2, 3]
    assert set(summary["controls"]) == {"salient", "random", "bottom", "shuffled", "selectivity"}
    reg = sn.SpinRegressor.from_pretrained(tmp_path / "reg")
    assert json.loads(spin("predict", tmp_path / "reg", "good film", "--json")[1])["value"] == reg.predict("good film")
    assert spin("predict", tmp_path / "reg", "good film")[1] == f"{reg.predict('good film'):.4f}\tgood film\n"
    scores = json.loads(spin("evaluate", tmp_path / "reg", data, "--json")[1])
    assert set(scores) == {"pearson", "spearman", "mse", "mae", "rows"}
    assert scores["spearman"] == pytest.approx(reg.score(reviews[0], values))
    assert f"pearson {scores['pearson']:.4f}  spearman {scores['spearman']:.4f}" in spin("evaluate", tmp_path / "reg", data)[1]
    assert "no head at depth 99" in spin.fails("evaluate", tmp_path / "reg", data, "--exit", "fixed:99")
    assert "weight for value" in spin("neurons", tmp_path / "reg")[1]
    assert json.loads(spin("neurons", tmp_path / "reg", "--json")[1])["labels"] == []


def test_rows_stop_early_as_calibrated(spin, data, reviews, tiny_model, tmp_path):
    clf, out = tmp_path / "clf", tmp_path / "out.jsonl"
    command = ("fit", data, "--model", tiny_model, *QUICK_OPTIONS, "--no-baseline", "--depth", 3, "--exits", "1,2")
    assert spin(*command, "--out", clf)[0] == 0
    description = json.loads((clf / "spin_classifier.json").read_text())
    assert set(description["heads"]) == {"1", "2", "3"}
    assert description["scores"]["baselines"] is None
    code, shown, _ = spin("calibrate", clf, data, "--max-accuracy-drop", 0.3, "--json")
    assert code == 0
    promise = json.loads(shown)
    assert promise["exit"].startswith("confidence:")
    assert promise["n_rows"] == 80
    assert "with confidence 0.95, accuracy drops by at most 0.3" in spin("calibrate", clf, data, "--max-accuracy-drop", 0.3)[1]
    assert spin("predict", clf, "--in", data, "--out", out)[0] == 0
    assert np.mean([row["exit_depth"] for row in read(out)]) == pytest.approx(promise["mean_depth"])
    loaded = sn.SpinClassifier.from_pretrained(clf)
    assert loaded.promise_.mean_depth == promise["mean_depth"]
    for exit_ in ("fixed:1", "confidence:0.7"):
        scores = json.loads(spin("evaluate", clf, data, "--exit", exit_, "--json")[1])
        assert scores["accuracy"] == loaded.score(*reviews, exit=exit_)


def test_a_calibration_needs_a_folder_and_several_heads(spin, saved, data):
    assert "not a folder; calibrate changes the classifier" in spin.fails("calibrate", "some/repository", data)
    assert "there is one head only" in spin.fails("calibrate", saved, data)


@pytest.fixture(scope="module")
def fitted(tiny_model, reviews):
    """A classifier with one head, cheaper than the suite's."""
    return sn.SpinClassifier(str(tiny_model), depth=1, head="refit", poolings=("mean",), etas=(1.0,), baseline=False).fit(
        *reviews
    )


# Options.


@pytest.mark.parametrize("estimator", [sn.SpinClassifier, sn.SpinRegressor])
def test_every_parameter_of_the_estimator_is_an_option_of_fit(estimator):
    options = {parameter.name for parameter in fit_command.fit.params}
    assert set(inspect.signature(estimator).parameters) <= options


def test_an_option_that_is_not_given_is_left_to_the_estimator(settings_of):
    assert settings_of() == {}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (("--sites", "activation,hidden"), {"sites": ("activation", "hidden")}),
        (("--poolings", "mean, max"), {"poolings": ("mean", "max")}),
        (("--etas", "0.5,1"), {"etas": (0.5, 1.0)}),
        (("--eta", "0.5,1"), {"etas": (0.5, 1.0)}),
        (("--top-k", "5,10"), {"top_k": (5, 10)}),
        (("--top-share", "0.1"), {"top_share": (0.1,)}),
        (("--Cs", "1,2.5", "--head-Cs", "3"), {"Cs": (1.0, 2.5), "head_Cs": (3.0,)}),
        (("--depth", "4"), {"depth": 4}),
        (("--depth", "best"), {"depth": "best"}),
        (("--depth", "all"), {"depth": None}),
        (("--exits", "2,4"), {"exits": (2, 4)}),
        (("--exits", "all"), {"exits": "all"}),
        (("--no-baseline",), {"baseline": False}),
        (("--baseline", "--allow-pickle"), {"baseline": True, "allow_pickle": True}),
        (("--scaling", "none", "--validation-share", "0.3"), {"scaling": "none", "validation_share": 0.3}),
        (("--final-rows", "training", "--phase-two", "both"), {"final_rows": "training", "phase_two": "both"}),
        (("--tolerance", "one-se", "--head", "dense"), {"tolerance": "one-se", "head": "dense"}),
        (("--sample", "100", "--seed", "3", "--tolerance", "0.01"), {"sample": 100, "seed": 3, "tolerance": 0.01}),
        (("--dtype", "bfloat16", "--device", "cuda:1"), {"dtype": "bfloat16", "device": "cuda:1"}),
        (("--ranker", "f_statistic", "--metric", "macro_f1"), {"ranker": "f_statistic", "metric": "macro_f1"}),
    ],
)
def test_an_option_reaches_the_estimator_with_its_type(settings_of, options, settings):
    assert settings_of(*options) == settings


def test_the_help_lists_every_option_under_its_heading_with_the_estimators_default(spin):
    code, out, _ = spin("fit", "--help")
    assert code == 0
    headings = [line.rstrip(":") for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Data", "Model", "How deep", "Speed", "Research", "Output"]
    of_depth = out[out.index("How deep:") : out.index("Speed:")]
    assert all(option in of_depth for option in ("--depth NUMBER|best|all", "--tolerance", "--exits", "[default: best]"))
    assert out.count("spin-native fit ") == 3  # the usage and two examples
    options = [option for parameter in fit_command.fit.params for option in parameter.opts if option.startswith("--")]
    assert [option for option in options if out.count(option) < 1] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--depth", "deep"), "'deep' is not a valid integer; or give 'best' or 'all'"),
        (("--exits", "1,x"), "'x' is not a valid integer; or give 'all'"),
        (("--poolings", "mean,sum"), "'sum' is not one of 'mean', 'max', 'first', 'last'"),
        (("--Cs", "1;2"), "'1;2' is not a valid float"),
    ],
)
def test_a_wrong_value_is_a_usage_error_that_names_it(spin, tmp_path, options, message):
    code, out, err = spin("fit", "x.csv", "--model", "m", "--out", tmp_path / "o", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


# Wrong input is one line.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ("text,label\n", "has no rows"),
        ("txt,label\na,b\n", "no column 'text'; it has 'txt', 'label'"),
        ("text,lab\na,b\n", "no column 'label'; it has 'text', 'lab'"),
        ("text,label\na,p\nb,\n", "row 1 (the first is 0) has no value in column 'label'; expected a label"),
        ("text,label\na,p\nb,NaN\n", "row 1 (the first is 0) has no value in column 'label'"),
        ("text,label\n,p\nb,n\n", "row 0 (the first is 0) has no value in column 'text'; expected a text"),
        ("text,label\na,p\nb,p\n", "every row has the label 'p'"),
        ("text,label\na,p\nb\n", "not readable as CSV"),
        (b"text,label\n\xff\xfe,p\n", "not readable as CSV"),
    ],
)
def test_unusable_files_are_refused(spin, tiny_model, tmp_path, content, message):
    path = tmp_path / "in.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in spin.fails("fit", path, "--model", tiny_model, "--out", tmp_path / "clf")
    assert not (tmp_path / "clf").exists()


def test_numbers_as_text_and_broken_lines_are_refused(spin, tiny_model, tmp_path):
    fit = ("--model", tiny_model, "--out", tmp_path / "clf")
    numbers = write(tmp_path / "n.parquet", [{"text": 5, "label": "a"}])
    assert "row 0 (the first is 0) has 5 (int) in column 'text'; expected a text" in spin.fails("fit", numbers, *fit)
    for line, message in (("{oops", "line 2 is not JSON"), ("[1]", "line 2 is not a JSON object")):
        (tmp_path / "b.jsonl").write_text('{"text": "a", "label": "p"}\n' + line + "\n")
        assert message in spin.fails("fit", tmp_path / "b.jsonl", *fit)
    assert "no such file" in spin.fails("fit", tmp_path / "no.csv", *fit)
    (tmp_path / "no.xlsx").touch()
    assert "unknown file format" in spin.fails("fit", tmp_path / "no.xlsx", *fit)


def test_unusable_models_and_depths_are_refused(spin, data, tmp_path, tiny_model):
    out = ("--out", tmp_path / "clf")
    assert "no such folder" in spin.fails("fit", data, "--model", tmp_path / "none", *out)
    (tmp_path / "empty").mkdir()
    assert "holds no config.json" in spin.fails("fit", data, "--model", tmp_path / "empty", *out)
    for depth in (0, 99, -1):
        assert f"depth is {depth}; expected 1 to 3" in spin.fails("fit", data, "--model", tiny_model, *out, "--depth", depth)


def test_a_folder_that_is_not_a_classifier_is_not_written_to(spin, data, tmp_path, tiny_model):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    message = spin.fails("fit", data, "--model", tiny_model, "--out", tmp_path / "mine")
    assert "already exists and is not a classifier" in message
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def change_tensors(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors, "encoder.layer.1.intermediate.dense.weight")
        save_file(tensors, folder / "model.safetensors")

    return damage


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def past_the_embedding(folder):
    """A word that the texts use gets the id after the last row."""
    words = (folder / "vocab.txt").read_text().replace("good\n", "spare\n")
    (folder / "vocab.txt").write_text(words + "good\n")


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
        (past_the_embedding, "has token 'good' of id 24, the embedding has rows 0 to 23"),
        (lambda f: (f / "vocab.txt").unlink(), "holds no tokenizer.json"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    ],
)
def test_a_damaged_model_folder_is_one_line(spin, data, tiny_model, tmp_path, damage, message):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    damage(folder)
    assert message in spin.fails("fit", data, "--model", folder, "--out", tmp_path / "clf")

"""explain(): tokens add up to the logit and equal a sum over transformers' values; words, training rows, the command."""

import json
import math
import shutil
from contextlib import suppress
from dataclasses import replace

import click
import numpy as np
import pytest
import torch
import transformers
from commands import Spin
from conftest import FILLERS
from inside import TEXT, add_tokenizer
from test_forged_classifiers import forge
from test_text import NASTY, needs_shared, real
from tiny import QUICK, checkpoint, reference_values

import spin_native as sn
from spin_native.checkpoints import Checkpoint, Location
from spin_native.classifier.deployed import Deployed
from spin_native.classifier.examples import exciting_rows
from spin_native.classifier.explain import explain
from spin_native.classifier.fitting import Standardizer
from spin_native.classifier.heads import RefitHead
from spin_native.classifier.tasks import Classes, Values
from spin_native.classifier.token_shares import token_shares
from spin_native.classifier.words import words_of_tokens
from spin_native.features.store import FeatureKey
from spin_native.probes.importance import Cut

SITES, POOLINGS, DEPTH = ("activation", "hidden"), ("mean", "max", "first", "last"), 2
LONG = "the movie was great but the movie was long"  # of 9 tokens at most


@pytest.fixture
def worded(family, tmp_path):
    """The family's tiny checkpoint with a tokenizer, and transformers' model."""
    folder, reference = checkpoint(family)
    shutil.copytree(folder, tmp_path / "worded")
    add_tokenizer(family, tmp_path / "worded")
    return str(tmp_path / "worded"), reference


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


def random_head(task, sites=SITES, poolings=POOLINGS, n_layers=DEPTH):
    """A head that reads ten random neurons of every site and pooling of every layer, with random numbers."""
    rng = np.random.default_rng(5)
    features = [FeatureKey(site, pooling, layer) for layer in range(n_layers) for site in sites for pooling in poolings]
    neurons = {f: np.sort(rng.choice(40 if f.site == "activation" else 16, 10, replace=False)) for f in features}
    width = 10 * len(features)
    mean, scale = rng.normal(size=width).astype(np.float32), rng.uniform(0.5, 2, width).astype(np.float32)
    model = task.probe_type.from_weights(rng.normal(size=(task.n_scores, width)), rng.normal(size=task.n_scores))
    return RefitHead(task, Cut("top_k", 10), neurons, Standardizer(mean, scale), model)


def explained_by(folder, head, text=TEXT, dtype=torch.float32, depth=DEPTH):
    deployed = Deployed(Checkpoint(Location(folder)), {depth: head}, dtype, "cpu")
    return explain(deployed, text, depth, 5, None)


def added(explained, of="words"):
    """bias + special tokens + words, or bias + tokens."""
    special = [explained.special] if of == "words" else []
    return math.fsum([explained.bias, *special, *(one.contribution for one in getattr(explained, of))])


def shares_by_hand(head, values):
    """[token, score], neuron by neuron: mean to all tokens, max to the token that has it, first and last to that token."""
    n_tokens = len(values["hidden", 0])
    shares = np.zeros((n_tokens, head.task.n_scores))
    for column, (feature, neuron) in enumerate(head.places):
        a = values[feature.site, feature.layer][:, neuron].numpy()
        w, m, s = head.model.coef_[:, column], head.standardizer.mean[column], head.standardizer.scale[column]
        for token in range(n_tokens):
            if feature.pooling == "mean":
                shares[token] += w * (a[token] - m) / (s * n_tokens)
            elif token == {"max": a.argmax(), "first": 0, "last": n_tokens - 1}[feature.pooling]:
                shares[token] += w * (a[token] - m) / s
    return shares


# What tokens add.


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("site", SITES)
def test_tokens_and_words_add_up_to_the_logit_in_every_family(worded, site, pooling):
    head = random_head(Classes(np.array(["no", "yes"])), (site,), (pooling,))
    for text in (TEXT, "great"):
        explained = explained_by(worded[0], head, text)
        assert added(explained, "tokens") == pytest.approx(explained.logit, abs=1e-6)
        assert added(explained) == pytest.approx(explained.logit, abs=1e-6)
        odds = explained.output["probabilities"]
        other = "no" if explained.answer == "yes" else "yes"
        assert math.log(odds[explained.answer] / odds[other]) == pytest.approx(explained.logit, abs=1e-6)


def test_tokens_equal_a_sum_by_hand_over_the_values_of_transformers(worded):
    folder, reference = worded
    ids = sn.load_tokenizer(folder).encode([TEXT]).ids
    values = reference_values(reference, ids)
    for task in (Classes(np.array(["no", "yes"])), Classes(np.array(["a", "b", "c"])), Values()):
        head = random_head(task)
        explained = explained_by(folder, head, dtype=torch.float64)
        shares = shares_by_hand(head, values)
        scores = shares.sum(0) + head.model.intercept_
        score, sign = (0, 1) if task.name == "regression" else (int(scores.argmax()), 1)
        if task.n_outputs == 2:
            score, sign = 0, 1 if scores[0] > 0 else -1
        np.testing.assert_allclose([t.contribution for t in explained.tokens], sign * shares[:, score], rtol=0, atol=1e-5)
        assert explained.logit == pytest.approx(sign * scores[score], abs=1e-4)
        assert explained.bias == sign * head.model.intercept_[score]


def test_the_final_hidden_state_is_explained_as_any_other_layer(worded):
    folder, reference = worded
    head = random_head(Values(), ("hidden",), ("mean", "max"), n_layers=4)
    values = reference_values(reference, sn.load_tokenizer(folder).encode([TEXT]).ids)
    explained = explained_by(folder, head, dtype=torch.float64, depth=3)
    expected = shares_by_hand(head, values)[:, 0]
    np.testing.assert_allclose([t.contribution for t in explained.tokens], expected, rtol=0, atol=1e-5)


def test_a_text_that_was_cut_is_explained_as_far_as_it_was_read(worded):
    head = random_head(Values())
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than 9 tokens and were cut"):
        explained = explained_by(worded[0], head, LONG + " but long")
    assert len(explained.tokens) == 9
    assert added(explained) == pytest.approx(explained.logit, abs=1e-6)
    n_special = sum(token.start is None for token in explained.tokens)
    assert [word.word for word in explained.words] == (LONG + " but long").split()[: 9 - n_special]


def test_shares_of_three_tokens_equal_a_hand_calculation():
    values = np.array([[1.0, 4.0], [3.0, 4.0], [2.0, 0.0]])
    weights, scale, mean = np.array([[2.0, -3.0]]), np.array([0.5, 2.0]), np.array([1.0, 2.0])
    by_hand = {
        "mean": [2 * 0 / 1.5 - 3 * 2 / 6, 2 * 2 / 1.5 - 3 * 2 / 6, 2 * 1 / 1.5 - 3 * -2 / 6],
        "max": [-3 * 2 / 2, 2 * 2 / 0.5, 0],  # the second neuron is largest at two tokens: the first one counts
        "first": [2 * 0 / 0.5 - 3 * 2 / 2, 0, 0],
        "last": [0, 0, 2 * 1 / 0.5 - 3 * -2 / 2],
    }
    pooled = {"mean": values.mean(0), "max": values.max(0), "first": values[0], "last": values[2]}
    for pooling, expected in by_hand.items():
        shares = token_shares(pooling, values, (pooled[pooling] - mean) / scale, weights, scale)
        np.testing.assert_allclose(shares[:, 0], expected, rtol=0, atol=1e-12)


def test_the_model_runs_once_and_no_deeper_than_the_head_reads(worded, monkeypatch):
    run, layers = [], sn.models.Transformer.layers

    def counted(self, *given, **named):
        for layer in layers(self, *given, **named):
            run.append(layer.index)
            yield layer

    monkeypatch.setattr("spin_native.models.Transformer.layers", counted)
    explained_by(worded[0], random_head(Values(), n_layers=1))
    assert run == [0]


def test_a_planted_word_has_the_largest_contribution(tiny_model, tmp_path):
    """A word of value 1 or -1 among words of no value, in embeddings that do not know a word's position."""
    shutil.copytree(tiny_model, tmp_path / "model")
    model = transformers.BertModel.from_pretrained(tiny_model)
    torch.nn.init.zeros_(model.embeddings.position_embeddings.weight)
    model.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    planted = {1.0: "lovely", -1.0: "sad"}
    values = [1.0, -1.0] * 100
    texts = []
    for value in values:
        words = rng.choice(FILLERS, 8).tolist()
        words[rng.integers(8)] = planted[value]
        texts.append(" ".join(words))
    how = {**QUICK, "depth": 1, "etas": (1.0,), "Cs": (1e4,), "head_Cs": (1e4,)}  # all dimensions, no penalty to speak of
    reg = sn.SpinRegressor(tmp_path / "model", **how, sites=("hidden",)).fit(texts[:150], values[:150])
    for text, value in zip(texts[150:], values[150:], strict=True):
        assert max(reg.explain(text).words, key=lambda word: value * word.contribution).word == planted[value]


def test_a_regressor_explains_its_value(tiny_model, texts):
    reg = sn.SpinRegressor(tiny_model, **QUICK).fit(texts, [float(len(text)) for text in texts])
    explained = reg.explain(texts[3])
    assert explained.answer == explained.output["value"] == pytest.approx(reg.predict(texts[3]), rel=1e-6)
    assert added(explained) == pytest.approx(explained.answer, abs=1e-6)
    assert explained.shown().startswith(f"{explained.answer:.4f}: value {explained.answer:+.2f} = bias")


def test_neurons_of_a_perceptron_are_given_and_its_words_refused(tiny_model, texts, labels):
    clf = sn.SpinClassifier(tiny_model, **{**QUICK, "head": "weighted"}).fit(texts, labels)
    explained = clf.explain(texts[0], 3)
    assert len(list(explained)) == len(explained) == 3
    for name in ("words", "tokens", "bias", "special"):
        with pytest.raises(sn.InputError, match=r"a perceptron .*: its logit is no sum over words; its neurons are"):
            getattr(explained, name)
        assert explained.to_dict()[name] is None
    assert "its logit is no sum over words" in explained.shown()
    assert any(explained.example(neuron) for neuron in clf.explain(texts[0], 1000))


# Words.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A great, well-made film!!", ["A", "great", ",", "well-made", "film", "!!"]),
        ("it's 3.5 of 1,000 (really)", ["it's", "3.5", "of", "1,000", "(", "really", ")"]),
        ("lines\nof  text\t'quoted'", ["lines", "of", "text", "'", "quoted", "'"]),
        ("e\u0301te\u0301 \u0939\u093f\u0928\u094d\u0926\u0940", ["e\u0301te\u0301", "\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("\u65e5\u672c \u8a9e", ["\u65e5", "\u672c", "\u8a9e"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_are_runs_of_letters_or_of_punctuation(text, words):
    """One token per character."""
    spans, word_of = words_of_tokens(text, [None, *((at, at + 1) for at in range(len(text))), None])
    assert [text[start:end] for start, end in spans] == words
    assert word_of[0] == word_of[-1] == -1


def test_runs_that_one_token_spells_are_one_word_and_a_token_of_spaces_belongs_to_the_next():
    spans, word_of = words_of_tokens("so (it) is", [(0, 2), (2, 3), (3, 6), (6, 7), (7, 7), (8, 10)])
    assert spans == [(0, 2), (3, 6), (6, 7), (8, 10)]
    assert word_of.tolist() == [0, 1, 1, 2, 3, 3]
    assert words_of_tokens("so ", [(0, 2), (2, 3)]).word_of.tolist() == [0, 0]
    assert words_of_tokens("  ", [(0, 1), (1, 2)]).word_of.tolist() == [-1, -1]


@needs_shared
@pytest.mark.parametrize("kind", ["bert", "distilbert-json", "roberta", "gpt2"])
def test_words_of_real_tokenizers_rebuild_the_text(kind):
    tokenizer, _ = real(kind)
    for text in NASTY:
        offsets = tokenizer.offsets(text)
        spans, word_of = words_of_tokens(text, offsets)
        assert len(word_of) == len(offsets)
        end = 0
        for start, next_end in [*spans, (len(text), len(text))]:
            assert end <= start <= next_end
            assert len(offsets) == 512 or not any(letter.isalnum() for letter in text[end:start])
            end = next_end
        for span, word in zip(offsets, word_of, strict=True):
            if span is not None and any(letter.isprintable() and letter != " " for letter in text[slice(*span)]):
                assert spans[word][0] <= span[1]
                assert span[0] <= spans[word][1]


# Training rows.


def test_exciting_rows_are_those_with_the_largest_and_smallest_values_of_the_neurons_with_the_largest_weights():
    task = Classes(np.array(["a", "b", "c"]))
    probe = task.probe_type.from_weights(np.array([[1.0, 0, 0.5], [0, -4, 0], [0, 0, 2.0]]), np.zeros(3))
    neurons, ones = {FeatureKey("hidden", "mean", 0): np.arange(3)}, np.ones(3, np.float32)
    head = RefitHead(task, Cut("top_k", 3), neurons, Standardizer(ones, ones), probe)
    features = np.array([[0, 5, 1], [1, 2, 1], [2, 9, 7], [3, 5, 0]], np.float32)
    columns, highest, lowest = exciting_rows(features, head, n_neurons=2, n_rows=3)
    assert columns.tolist() == [1, 2]
    assert highest.tolist() == [[2, 0, 3], [2, 0, 1]]  # of equal values the first row
    assert lowest.tolist() == [[1, 0, 3], [3, 0, 1]]


def test_a_fit_keeps_the_training_rows_that_excite_its_main_neurons(tiny_model, texts, labels):
    some = sn.SpinClassifier(tiny_model, **QUICK, examples="texts")
    some.fit(texts[:60], labels[:60], validation=(texts[60:], labels[60:]))
    features = sn.extract(sn.load_model(tiny_model), sn.load_tokenizer(tiny_model), texts[:60])
    n_neurons = min(64, some.head_.n_neurons)
    assert len(some.examples_.neurons) == n_neurons
    weights = np.abs(some.head_.weights[0])
    largest = {some.head_.places[column] for column in np.argsort(-weights)[:n_neurons]}
    assert set(some.examples_.neurons) == largest
    for (feature, neuron), examples in some.examples_.by_neuron().items():
        values = features.array(**feature._asdict())[:, neuron]
        for rows, expected in ((examples.highest, -np.sort(-values)[:3]), (examples.lowest, np.sort(values)[:3])):
            np.testing.assert_allclose(values[list(rows)], expected, rtol=1e-5, atol=1e-6)
            assert [texts[row] for row in rows] == list(rows.values())


@pytest.mark.parametrize("how", [{}, {"sample": 40}, {"head": "frozen", "phase_two": "unseen", "final_rows": "training"}])
def test_rows_have_the_numbers_that_the_caller_gave_them(tiny_model, texts, labels, how):
    some = sn.SpinClassifier(tiny_model, **{**QUICK, **how}, examples="texts").fit(texts, labels)
    assert some.examples_.texts
    for row, text in some.examples_.texts.items():
        assert texts[row] == text


def test_equal_texts_are_one_example(tiny_model, texts, labels):
    some = sn.SpinClassifier(tiny_model, **QUICK, examples="texts").fit(texts * 2, labels * 2)
    for examples in some.examples_.by_neuron().values():
        assert len(set(examples.highest.values())) == 3


@pytest.mark.parametrize("keeps", ["rows", "texts", None])
def test_examples_are_saved_as_the_caller_chose(tiny_model, texts, labels, tmp_path, keeps):
    some = sn.SpinClassifier(tiny_model, **QUICK, examples=keeps).fit(texts, labels)
    some.save_pretrained(tmp_path)
    again = sn.SpinClassifier.from_pretrained(tmp_path)
    assert again.examples_ == some.examples_
    assert again.examples == keeps
    assert (some.examples_ is None) == (keeps is None)
    assert again.explain(texts[0]) == some.explain(texts[0])
    written = (tmp_path / "spin_classifier.json").read_text()
    assert any(text in written for text in texts) == (keeps == "texts")


def test_a_classifier_that_was_saved_without_examples_is_explained_without_them(saved, fitted):
    forge(saved, edit=lambda description: [description.pop("examples"), description["settings"].pop("examples")])
    again = sn.SpinClassifier.from_pretrained(saved)
    assert again.examples_ is None
    assert again.explain("good film").words == fitted.explain("good film").words
    assert all(neuron["examples"] is None for neuron in again.explain("good film").to_dict()["neurons"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(texts={}), "examples has no text of row"),
        (lambda e: e["neurons"].append(e["neurons"][0]), "examples names a neuron twice"),
        (lambda e: e["neurons"][0].update(neuron=-1), "neuron"),
        (lambda e: e["neurons"][0].update(highest=[1.5]), "highest"),
    ],
)
def test_forged_examples_are_refused(saved, change, message):
    forge(saved, edit=lambda description: change(description["examples"]))
    with pytest.raises(sn.InputError, match=message):
        sn.SpinClassifier.from_pretrained(saved)


def test_unknown_examples_are_refused(tiny_model, texts, labels, unchecked):
    with pytest.raises(sn.InputError, match="examples is 'all'; expected one of rows, texts, None"):
        sn.SpinClassifier(tiny_model, **QUICK, examples="all").fit(texts, labels)


# What is shown.


def test_the_coloured_text_is_the_text_with_red_and_blue_words(fitted):
    text = "the film\n  was good, not bad"
    explained = fitted.explain(text)
    coloured = explained.shown(color=True)
    assert text in click.unstyle(coloured)
    assert "\x1b" not in explained.shown()
    strongest = max(explained.words, key=lambda word: abs(word.contribution))
    background = 196 if strongest.contribution > 0 else 21
    assert f"48;5;{background}m{strongest.word}\x1b[0m" in coloured


def test_the_command_prints_a_line_per_word_and_the_neurons(spin, saved, fitted):
    code, out, err = spin("explain", saved, "the film was good", "awful\nroom", "--neurons", 2)
    assert (code, err) == (0, "")
    explained = [fitted.explain(text, 2) for text in ("the film was good", "awful\nroom")]
    assert out == f"{explained[0].shown()}\n\n{explained[1].shown()}\n"
    for of in explained:
        for word in of.words:
            assert f"\n{word.contribution:+.2f} {word.word}\n" in out
        for neuron in of.neurons:
            assert f"\n  {neuron.contribution:+.2f} {neuron.layer}.{neuron.neuron} (activation, {neuron.pooling})\n" in out


def test_the_probability_beside_the_answer_is_the_answers_own(fitted, monkeypatch):
    """Priorities of classes, as metric="macro_f1" chooses, may prefer a class that is not the most probable one."""
    text = "the film was good"
    probability = fitted.predict_proba(text)
    least = int(probability.argmin())
    priorities = np.where(np.arange(len(probability)) == least, 1e6, 1.0)
    head = replace(fitted.head_, task=Classes(fitted.classes_, priorities))
    monkeypatch.setitem(fitted._deployed.heads, fitted.depth_, head)
    explained = fitted.explain(text)
    assert explained.answer == fitted.classes_[least]
    assert explained.shown().startswith(f"{fitted.classes_[least]} ({probability[least]:.4f}): logit {explained.logit:+.2f}")
    assert explained.logit == pytest.approx(np.log(probability[least] / (1 - probability[least])), rel=1e-5)


def test_an_explanation_of_several_labels_names_the_one_that_it_is_about(tiny_model, texts):
    names = ["film", "good"]
    clf = sn.SpinMultilabelClassifier(tiny_model, **QUICK).fit(texts, [[n for n in names if n in text] for text in texts])
    probability = clf.predict_proba(texts[0])
    clf.set_thresholds([0.0, 1.0])
    shares = dict(zip(names, probability, strict=True))
    explained = clf.explain(texts[0])
    assert explained.to_dict()["explained_label"] == "film"
    assert explained.logit == pytest.approx(np.log(shares["film"] / (1 - shares["film"])), rel=1e-5)
    assert explained.shown().startswith(f"film ({shares['film']:.4f}): logit of film {explained.logit:+.2f}")
    clf.set_thresholds([1.0, 1.0])
    top = max(names, key=shares.get)
    without = clf.explain(texts[0])
    assert without.logit == pytest.approx(-np.log(shares[top] / (1 - shares[top])), rel=1e-5)
    assert without.shown().startswith(f"no label ({top} {shares[top]:.4f}): logit that it is not {top} {without.logit:+.2f}")


def test_the_command_explains_one_pair_to_a_classifier_of_pairs(spin, tiny_model, texts, labels, tmp_path):
    pairs = list(zip(texts, reversed(texts), strict=True))
    clf = sn.SpinClassifier(tiny_model, **QUICK).fit(pairs, labels)
    clf.save_pretrained(tmp_path / "pairs")
    code, out, err = spin("explain", tmp_path / "pairs", *pairs[0])
    assert (code, out, err) == (0, clf.explain(pairs[0]).shown() + "\n", "")
    code, _, err = spin("explain", tmp_path / "pairs", "one text")
    assert code == 1
    assert "was fitted on pairs of texts; give two TEXTS, the first and the second text of one pair\n" in err


def test_the_commands_json_holds_the_whole_explanation(spin, saved, fitted):
    texts = ["good \u00e9 film", "sad"]
    lines = spin("explain", saved, *texts, "--json", "--neurons", 3)[1].splitlines()
    for text, line in zip(texts, lines, strict=True):
        read = json.loads(line)
        assert read == json.loads(json.dumps(fitted.explain(text, 3).to_dict()))
        assert read["text"] == text
        assert read["probabilities"] == pytest.approx(dict(zip(fitted.classes_, fitted.predict_proba(text), strict=True)))
        assert len(read["neurons"]) == min(3, fitted.head_.n_neurons)
        assert [text[word["start"] : word["end"]] for word in read["words"]] == text.split()
        sums = read["bias"] + read["special"] + sum(word["contribution"] for word in read["words"])
        assert sums == pytest.approx(read["logit"], abs=1e-6)


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_no_color_is_set(saved, monkeypatch, capsys, no_color, coloured):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with suppress(SystemExit):
        sn.cli.main.run(["explain", str(saved), "good film"])
    assert ("\x1b[" in capsys.readouterr().out) == coloured


def test_wrong_arguments_of_explain_are_one_line(spin, saved, tmp_path):
    assert "none" in spin.fails("explain", tmp_path / "none", "good film")
    code, out, err = spin("explain", saved)
    assert (code, out) == (2, "")
    assert "Missing argument 'TEXTS...'" in err

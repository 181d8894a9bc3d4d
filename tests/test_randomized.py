"""The random-weights baseline: same shapes, other numbers, and a source that says so."""

import pickle

import numpy as np
import pytest
import torch
import transformers
from tiny import FAMILIES, N_VOCAB, checkpoint, padded, rows_of_every_length

import spin_native as sn
from spin_native.analyses.results import provenance
from spin_native.text.batch import TokenBatch

LOADED = {"default": {}, "plain": {"prepack": False}, "reordered": {"prepack": True}, "float64": {"dtype": torch.float64}}


def load(family="bert", **settings):
    return sn.load_model(checkpoint(family)[0], **settings)


def numbers(model):
    """Name -> parameter, in ordinary order."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("settings", LOADED.values(), ids=LOADED)
def test_every_parameter_keeps_its_shape_and_gets_other_numbers(family, settings):
    model = load(family, **settings)
    before, random = numbers(model), numbers(sn.analyses.randomized(model, 1))
    assert {name: (t.shape, t.dtype) for name, t in random.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    assert not any(torch.equal(random[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(after, before[name]) for name, after in numbers(model).items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_runs_and_computes_something_else(family):
    model = load(family)
    batch = padded(rows_of_every_length(), "none")
    with torch.inference_mode():
        one, other = ([layer.hidden for layer in m.layers(batch)] for m in (model, sn.analyses.randomized(model, 0)))
    assert len(one) == len(other)
    assert all(b.isfinite().all() and (a - b).norm() > 0.5 * a.norm() for a, b in zip(one, other, strict=True))


def test_a_normal_draw_has_the_mean_and_spread_of_the_trained_parameter():
    model = load()
    before, random = numbers(model), numbers(sn.analyses.randomized(model, 0))
    for name, tensor in before.items():
        error = tensor.std(correction=0) / tensor.numel() ** 0.5  # standard error of the mean
        assert abs(random[name].mean() - tensor.mean()) < 5 * error
        if tensor.numel() > 300:
            assert random[name].std() == pytest.approx(tensor.std().item(), rel=0.15)


def test_a_permuted_draw_has_the_same_numbers_in_another_order():
    model = load()
    before, random = numbers(model), numbers(sn.analyses.randomized(model, 0, draw="permuted"))
    for name, tensor in before.items():
        assert torch.equal(random[name].flatten().sort().values, tensor.flatten().sort().values)
        assert not torch.equal(random[name], tensor)


@pytest.mark.parametrize("draw", ["normal", "permuted"])
def test_a_seed_gives_one_model_and_another_seed_another(draw):
    model = load()
    first, again, other = (numbers(sn.analyses.randomized(model, seed, draw=draw)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("draw", ["normal", "permuted"])
def test_how_a_model_was_loaded_does_not_change_the_draw(draw):
    models = [load(), load(prepack=True), load(prepack=False), load(depth=2)]
    whole, *others = (numbers(sn.analyses.randomized(model, 0, draw=draw)) for model in models)
    assert all(torch.equal(tensor, whole[name]) for other in others for name, tensor in other.items())


def test_the_source_says_random_and_has_a_fingerprint_of_its_own():
    model = load()
    randoms = [
        sn.analyses.randomized(model, 0),
        sn.analyses.randomized(model, 1),
        sn.analyses.randomized(model, 0, draw="permuted"),
    ]
    prints = {m.source.fingerprint(m.depth) for m in (model, *randoms)}
    assert len(prints) == 4
    shown = provenance(randoms[1], None)
    assert shown["model"] == f"{model.source.name} with random weights (normal, seed 1)"
    assert shown["model_fingerprint"] == randoms[1].source.fingerprint(3)
    again = pickle.loads(pickle.dumps(randoms[0]))
    assert again.source.fingerprint(2) == randoms[0].source.fingerprint(2)
    twice = sn.analyses.randomized(randoms[0], 0)
    assert twice.source.fingerprint(3) not in prints


def test_extracted_features_of_a_random_model_are_recorded_as_such(tiny_model, tmp_path):
    tokenizer = sn.load_tokenizer(tiny_model)
    model = sn.load_model(tiny_model)
    for name, one in (("trained", model), ("random", sn.analyses.randomized(model, 0))):
        sn.extract(one, tokenizer, ["good film", "bad food"], store=tmp_path / name)
    descriptions = [(tmp_path / name / "manifest.json").read_text() for name in ("trained", "random")]
    assert "random weights" in descriptions[1]
    assert "random weights" not in descriptions[0]


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_drawn_too_and_stays_tied(tmp_path, tied):
    config = transformers.GPT2Config(
        vocab_size=N_VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=9, tie_word_embeddings=tied
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = sn.load_model(tmp_path, head=True)
    random = sn.analyses.randomized(model, 0)
    assert (random.head.words.weight is random.embedding.word.weight) == tied
    assert not torch.equal(random.head.words.weight, model.head.words.weight)


def test_a_random_model_of_reordered_weights_can_be_moved_and_gives_gradients():
    random = sn.analyses.randomized(load(prepack=True), 0).double()
    batch = TokenBatch.from_rows([[5, 6, 7]])
    hidden = random.embed(batch).requires_grad_()
    *_, last = random.layers(batch, embedded=hidden)
    last.hidden[0, 0].backward()
    assert hidden.grad.abs().sum() > 0


def test_a_probe_on_random_weights_loses_a_task_that_trained_weights_hold():
    """The label is whether one neuron of the trained model is above its median."""
    rng = np.random.default_rng(0)
    rows = [rng.integers(4, N_VOCAB, 8).tolist() for _ in range(400)]
    model = load("bert", depth=3)
    accuracy, features = {}, {}
    for name, one in (("trained", model), ("random", sn.analyses.randomized(model, 0))):
        with torch.inference_mode():
            layer = next(layer for layer in one.layers(TokenBatch.from_rows(rows)) if layer.index == 2)
        features[name] = layer.activation.reshape(400, 8, -1).mean(1).numpy()
    neuron = features["trained"][:, 5]
    labels = (neuron > np.median(neuron)).astype(int)
    for name, X in features.items():
        X = (X - X.mean(0)) / X.std(0)
        accuracy[name] = sn.LogisticProbe(C=1.0).fit(X[:200], labels[:200]).score(X[200:], labels[200:])
    assert accuracy["trained"] > 0.95
    assert accuracy["random"] < 0.8


def test_wrong_arguments_are_refused(unchecked):
    model = load()
    with pytest.raises(sn.InputError, match="draw is 'uniform'; expected one of normal, permuted"):
        sn.analyses.randomized(model, 0, draw="uniform")
    with pytest.raises(sn.InputError, match=r"seed is 0\.5; expected a whole number"):
        sn.analyses.randomized(model, 0.5)
    model.source = None
    with pytest.raises(sn.InputError, match="the model has no source"):
        sn.analyses.randomized(model, 0)

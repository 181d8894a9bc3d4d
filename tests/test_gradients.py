"""Neuron gradients equal finite differences and transformers' own; interventions, reductions and bad input."""

import copy
import csv
import json

import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers
from commands import Spin, write
from test_logits import language_model
from tiny import FAMILIES, N_VOCAB, SHARED, rows_of_every_length

import spin_native as sn
from spin_native.analyses.reductions import EDGES
from spin_native.analyses.results import provenance
from spin_native.models.fast import FusedAttention, multiplies_faster
from spin_native.models.products import FrozenLinear
from spin_native.parity import activation_functions

ROWS = [row for row in rows_of_every_length() if len(row) > 1]
TARGETS = [[5 + row, 20 + row] for row in range(len(ROWS))]
NEURONS = [(0, 3), (1, 0), (1, 39), (2, 17)]


def loaded(family, folder, **options):
    language_model(family).save_pretrained(folder)
    return sn.load_model(str(folder), head=True, **{"prepack": False, "dtype": torch.float64, **options})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny GPT-2 with its head, in float64."""
    return loaded("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def folder_with_mask(tmp_path_factory):
    """A tiny BERT language model with a vocabulary of words."""
    folder = tmp_path_factory.mktemp("bert-words")
    language_model("bert").save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "the", "film", "was", "un", "##real", "."]
    words += [f"w{index}" for index in range(N_VOCAB - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture(scope="module")
def masked(folder_with_mask):
    model = sn.load_model(str(folder_with_mask), dtype=torch.float64, head=True, prepack=False)
    return model, sn.load_tokenizer(str(folder_with_mask))


def slope_at_zero(model, prompts, targets, neurons, convention, of):
    """A central difference of the model's output, from interventions of 1e-5."""
    curves = sn.analyses.intervention_curves(
        model, None, prompts, targets, neurons=neurons, grid=(-1e-5, 1e-5), convention=convention, of=of, position="last"
    )
    return (curves["output"][..., 1] - curves["output"][..., 0]) / 2e-5


@pytest.mark.parametrize("convention", ["magnitude", "additive"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_finite_differences(family, convention, tmp_path):
    model = loaded(family, tmp_path)
    for of in ("probability", "logit", "log_probability"):
        gradients = sn.analyses.neuron_gradients(
            model, None, ROWS, TARGETS, convention=convention, of=of, position="last", max_tokens=12
        )
        expected = slope_at_zero(model, ROWS, TARGETS, NEURONS, convention, of)
        error = np.abs(gradients.of(NEURONS) - expected).max()
        assert error <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_of_transformers_through_hooks(family, tmp_path):
    reference = language_model(family)
    model = loaded(family, tmp_path)
    ours = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, convention="magnitude", position="last")
    kept = []
    for module in activation_functions(reference.base_model):
        module.register_forward_hook(lambda _module, _inputs, output: (output.retain_grad(), kept.append(output))[1])
    for row, (ids, targets) in enumerate(zip(ROWS, TARGETS, strict=True)):
        for label, target in enumerate(targets):
            kept.clear()
            probability = reference(torch.tensor([ids])).logits[0, -1].softmax(-1)[target]
            probability.backward()
            theirs = torch.stack([activation.grad[0, -1] * activation[0, -1].detach().sign() for activation in kept])
            error = np.abs(ours["gradient"][row, label] - theirs.numpy()).max()
            assert error <= 1e-12 * float(theirs.abs().max())
            assert ours.output[row, label] == pytest.approx(float(probability.detach()), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_kernels_on_ordinary_weights_give_the_gradients_of_the_plain_parts(family, tmp_path):
    plain, kernels = loaded(family, tmp_path), loaded(family, tmp_path, prepack="kernels")
    for of in ("probability", "logit"):
        expected, ours = (
            sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, of=of, position="last") for model in (plain, kernels)
        )
        np.testing.assert_allclose(ours.output, expected.output, rtol=1e-12)
        assert np.abs(ours["gradient"] - expected["gradient"]).max() <= 1e-12 * np.abs(expected["gradient"]).max()


def test_a_float32_model_with_kernels_has_ordinary_weights_that_give_gradients(tmp_path):
    """Everywhere: the default reorders float32 weights on a CPU with AVX-512."""
    kernels = loaded("roberta", tmp_path, dtype=torch.float32, prepack="kernels")
    exact = loaded("roberta", tmp_path)
    expected = FrozenLinear if multiplies_faster(torch.float32, "cpu") else torch.nn.Linear
    assert {type(block.feed_forward.up) for block in kernels.blocks} == {expected}
    assert isinstance(kernels.blocks[0].attention.attend, FusedAttention)
    ours, expected = (
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, position="last")["gradient"] for model in (kernels, exact)
    )
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def frozen_and_exact():
    """A product for gradients, and torch's own in float64 by the same weights."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(48, 96).requires_grad_(False)
    return FrozenLinear(plain), copy.deepcopy(plain).double()


def first_and_second_gradient(product, x, weights):
    """Of a function of the product that is not linear in it."""
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad((product(x).sin() * weights).sum(), x, create_graph=True)
    return first.detach(), torch.autograd.grad(first.square().sum(), x)[0]


@pytest.mark.parametrize("n_tokens", [1, 2, 37])
def test_a_product_for_gradients_has_the_value_and_both_gradients_of_torchs_own(n_tokens):
    frozen, exact = frozen_and_exact()
    x, weights = torch.randn(n_tokens, 48), torch.randn(n_tokens, 96)
    torch.testing.assert_close(frozen(x).double(), exact(x.double()), rtol=0, atol=5e-6)
    ours = first_and_second_gradient(frozen, x, weights)
    expected = first_and_second_gradient(exact, x.double(), weights.double())
    for one, other in zip(ours, expected, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_a_product_for_gradients_can_be_converted_and_trained_like_any_other():
    frozen, exact = frozen_and_exact()
    x = torch.randn(5, 48)
    trained = copy.deepcopy(frozen).requires_grad_()
    trained(x).sum().backward()
    torch.testing.assert_close(trained.weight.grad, x.sum(0).expand(96, 48))
    assert torch.equal(frozen.double()(x.double()), exact(x.double()))


def test_batches_do_not_change_gradients(model):
    alone, together = (
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, max_tokens=size)["gradient"] for size in (1, 10_000)
    )
    np.testing.assert_allclose(alone, together, rtol=1e-9, atol=1e-15)


def test_gradients_work_where_the_caller_has_switched_gradients_off(model):
    with torch.inference_mode():
        inside = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS)
    np.testing.assert_array_equal(inside["gradient"], sn.analyses.neuron_gradients(model, None, ROWS, TARGETS)["gradient"])


def test_a_subset_of_layers_has_the_same_gradients(model):
    whole = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS)
    part = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, layers=[2, 0])
    assert part.axes["layer"].tolist() == [0, 2]
    np.testing.assert_allclose(part["gradient"], whole["gradient"][:, :, [0, 2]], rtol=1e-9, atol=1e-15)


def test_the_mask_token_of_a_text_is_probed(masked):
    """Against the same prompt as token ids, with the mask brought to the end by hand: position 3 of 5."""
    model, tokenizer = masked
    ours = sn.analyses.neuron_gradients(model, tokenizer, ["the film [MASK]."], [["good", "bad"]], of="logit")
    batch = sn.TokenBatch.from_rows([[2, 7, 8, 4, 12, 3]])
    *_, last = model.layers(batch)
    np.testing.assert_allclose(ours.output[0], model.logits(last.hidden, batch)[3, [5, 6]].numpy(), rtol=1e-12)
    first = next(model.layers(batch))
    np.testing.assert_allclose(ours["activation"][0, 0, 0], first.activation[3].numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_prompts_with_a_mask_are_encoded_as_by_transformers(name):
    from spin_native.text.tokenizer import Tokenizer

    folder = SHARED / "tokenizers" / {"roberta": "roberta-base", "bert": "bert-base-uncased"}[name]
    if not folder.is_dir():
        pytest.skip("real tokenizer files lie in ../shared, which is not here")
    files = {path.name: path for path in folder.iterdir() if path.name in ("vocab.txt", "vocab.json", "merges.txt")}
    ours = Tokenizer.from_files(files, 512, name)
    theirs = (
        transformers.RobertaTokenizer(vocab=str(files["vocab.json"]), merges=str(files["merges.txt"]))
        if name == "roberta"
        else transformers.BertTokenizer(vocab=str(files["vocab.txt"]))
    )
    prompts = [f"It was {theirs.mask_token}.", f"{theirs.mask_token} is a city", f"so{theirs.mask_token}good , really"]
    assert ours.encode_prompts(prompts) == theirs(prompts)["input_ids"]


def test_a_function_of_the_logits_can_be_the_output(model):
    """The difference of two logits: its gradient is the difference of theirs."""
    ours = sn.analyses.neuron_gradients(model, None, ROWS, of=lambda logits: logits[:, 5] - logits[:, 9])
    logits = sn.analyses.neuron_gradients(model, None, ROWS, [[5, 9]] * len(ROWS), of="logit")
    np.testing.assert_allclose(
        ours["gradient"][:, 0], logits["gradient"][:, 0] - logits["gradient"][:, 1], rtol=1e-9, atol=1e-14
    )


def test_a_model_without_a_head_is_followed_through_a_probe(tmp_path):
    language_model("bert").save_pretrained(tmp_path)
    model = sn.load_model(str(tmp_path), dtype=torch.float64, prepack=False)
    generator = np.random.default_rng(0)
    probe = sn.LogisticProbe.from_weights(generator.normal(size=(3, 16)), np.array([0.1, 0.2, 0.3]))
    ours = sn.analyses.neuron_gradients(model, None, ROWS, of=probe, position="first", convention="additive")
    assert ours.shape == (len(ROWS), 3, 3, 40)
    *_, last = model.layers(sn.TokenBatch.from_rows(ROWS[:1]))
    np.testing.assert_allclose(ours.output[:1], probe.decision_function(last.hidden[:1].numpy()), rtol=1e-12)
    curves = sn.analyses.intervention_curves(
        model, None, ROWS, neurons=NEURONS, grid=(-1e-5, 1e-5), of=probe, position="first", convention="additive"
    )
    np.testing.assert_allclose(ours.of(NEURONS), curves.slope(), rtol=1e-5, atol=1e-9)


# Reductions.


def test_reductions_equal_the_full_arrays_reduced_by_numpy(model, monkeypatch):
    monkeypatch.setattr("spin_native.analyses.gradients.BLOCK_BYTES", 1)  # one row per block
    everything = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS)["gradient"]
    top = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, reduce="top", top=4)
    order = np.argsort(-np.abs(everything), axis=-1, kind="stable")[..., :4]
    np.testing.assert_array_equal(top["neuron"], order)
    np.testing.assert_array_equal(top["gradient"], np.take_along_axis(everything, order, -1))
    mean = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, reduce="mean")
    np.testing.assert_allclose(mean["mean"], everything.mean(0), rtol=1e-9, atol=1e-16)
    np.testing.assert_allclose(mean["mean_absolute"], np.abs(everything).mean(0), rtol=1e-9)
    np.testing.assert_array_equal(mean["positive_share"], (everything > 0).mean(0))
    assert np.abs(everything).mean(0)[1].ravel().argmax() == mean["rank"][1].ravel().tolist().index(0)
    histogram = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, reduce="histogram")
    for label in range(2):
        for layer in range(3):
            counts, _ = np.histogram(everything[:, label, layer], EDGES)
            np.testing.assert_array_equal(histogram["count"][label, layer], counts)


def test_blocks_hold_every_row_in_order(model, monkeypatch):
    whole = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS)
    monkeypatch.setattr("spin_native.analyses.gradients.BLOCK_BYTES", 3 * 2 * 3 * 40 * 8)  # three rows
    blocks = list(sn.analyses.gradient_blocks(model, None, ROWS, TARGETS))
    assert [block.axes["row"].tolist() for block in blocks] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    joined = np.concatenate([block["gradient"] for block in blocks])
    np.testing.assert_allclose(joined, whole["gradient"], rtol=1e-9, atol=1e-15)


# Tables.


def test_a_table_holds_every_gradient_with_its_address_and_its_origin(masked, tmp_path):
    model, tokenizer = masked
    result = sn.analyses.neuron_gradients(model, tokenizer, ["the film was [MASK]"], ["good"], layers=[1])
    result.write(tmp_path / "gradients.parquet")
    result.write(tmp_path / "gradients.csv")
    table = pyarrow.parquet.read_table(tmp_path / "gradients.parquet")
    assert table.column_names == ["row", "label", "layer", "neuron", "gradient", "activation"]
    assert table.to_pylist()[7] == {
        "row": 0,
        "label": 0,
        "layer": 1,
        "neuron": 7,
        "gradient": result["gradient"][0, 0, 0, 7],
        "activation": result["activation"][0, 0, 0, 7],
    }
    metadata = json.loads(table.schema.metadata[b"spin_native"])
    assert metadata["model_fingerprint"] == model.source.fingerprint(3, head=True)
    assert (metadata["convention"], metadata["position"]) == ("magnitude", "mask")
    assert metadata["labels"] == ["good"]
    assert metadata["torch"] == torch.__version__
    with (tmp_path / "gradients.csv").open() as file:
        assert float(list(csv.DictReader(file))[7]["gradient"]) == result["gradient"][0, 0, 0, 7]
    assert json.loads((tmp_path / "gradients.csv.metadata.json").read_text()) == metadata


@pytest.mark.parametrize("tied", [True, False])
def test_another_head_is_another_model_to_the_metadata(tied, tmp_path):
    """The same body: only where the head is loaded does the recorded fingerprint change."""
    reference = language_model("bert", tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path / "one")
    with torch.no_grad():
        reference.cls.predictions.transform.dense.weight[0, 0] += 1
    reference.save_pretrained(tmp_path / "other")
    prints = {
        (name, head): provenance(sn.load_model(tmp_path / name, head=head), None)["model_fingerprint"]
        for name in ("one", "other")
        for head in (True, False)
    }
    assert prints["one", False] == prints["other", False]
    assert len(set(prints.values())) == 3


def test_the_words_of_an_untied_head_are_in_its_fingerprint(tmp_path):
    reference = language_model("gpt2", tie_word_embeddings=False)
    prints = []
    for name in ("one", "other"):
        reference.save_pretrained(tmp_path / name)
        prints.append(provenance(sn.load_model(tmp_path / name, head=True), None)["model_fingerprint"])
        with torch.no_grad():
            reference.lm_head.weight[0, 0] += 1
    assert prints[0] != prints[1]


# Interventions.


def test_slope_and_linearity_equal_a_hand_calculation():
    """change = 2 delta exactly, and change = delta^2: slope of the latter is sum(delta^3) / sum(delta^2)."""
    delta = np.array([-1.0, 0.5, 2.0])
    output = np.stack([1 + 2 * delta, 1 + delta**2, np.ones(3)])[None, None]
    curves = sn.analyses.InterventionCurves(
        {"row": np.arange(1), "label": np.arange(1), "intervention": np.arange(3), "delta": delta},
        {"output": output},
        {},
        np.ones((1, 1)),
        [[(0, 0)], [(0, 1)], [(0, 2)]],
    )
    np.testing.assert_allclose(curves.slope()[0, 0], [2, (-1 + 0.125 + 8) / (1 + 0.25 + 4), 0], rtol=1e-12)
    expected = np.corrcoef(delta, delta**2)[0, 1]
    np.testing.assert_allclose(curves.linearity()[0, 0], [1, expected, np.nan], rtol=1e-12)
    assert curves.shares() == {"linear": 1 / 3, "positive": 2 / 3, "negative": 0}
    np.testing.assert_allclose(curves.slope(within=1)[0, 0, 1], (-1 + 0.125) / 1.25, rtol=1e-12)
    assert curves.summary(within=1)["slope"].tolist() == curves.slope(within=1).tolist()
    assert curves.to_table().column("neurons").to_pylist()[3:6] == ["0:1"] * 3


@pytest.mark.parametrize("convention", ["magnitude", "additive"])
def test_slopes_are_exact_where_the_output_is_linear_in_the_neuron(convention, tmp_path):
    """Without the final norm a logit is linear in the last layer's neurons: its slope is the product of two weight vectors."""
    model = loaded("gpt2", tmp_path)
    model.final_norm = torch.nn.Identity()
    curves = sn.analyses.intervention_curves(
        model, None, ROWS[:2], [9, 8], neurons=[(2, 4), (2, 30)], grid=(-3, 1, 10), convention=convention, of="logit"
    )
    for row, target in enumerate((9, 8)):
        *_, before, _ = model.layers(sn.TokenBatch.from_rows([ROWS[row]]))
        for index, neuron in enumerate((4, 30)):
            sign = float(before.activation[-1, neuron].sign()) if convention == "magnitude" else 1.0
            expected = sign * model.blocks[2].feed_forward.down.weight[:, neuron] @ model.head.words.weight[target]
            assert curves.slope()[row, 0, index] == pytest.approx(float(expected), rel=1e-9)
    np.testing.assert_allclose(np.abs(curves.linearity()), 1, rtol=1e-12)


@pytest.mark.parametrize("convention", ["magnitude", "additive"])
@pytest.mark.parametrize("prepack", ["auto", False])
@pytest.mark.parametrize("family", ["mpnet", "gpt2"])
def test_interventions_equal_edits_of_whole_runs(family, prepack, convention, tmp_path):
    """Every point against a run of the whole model from layer 0, one at a time."""
    model = loaded(family, tmp_path, prepack=prepack)
    sets = [(0, 3), [(2, 17)], [(0, 5), (1, 6), (1, 7)]]
    curves = sn.analyses.intervention_curves(
        model, None, ROWS[:3], [9, 8, 7], neurons=sets, grid=(-1.5, 0, 2), convention=convention, position="last", max_tokens=9
    )
    for row, (ids, target) in enumerate(zip(ROWS[:3], (9, 8, 7), strict=True)):
        batch = sn.TokenBatch.from_rows([ids])
        clean = [layer.activation for layer in model.layers(batch)]
        for index, members in enumerate([[(0, 3)], [(2, 17)], sets[2]]):
            for step, delta in enumerate((-1.5, 0, 2)):

                def edit(layer, members=members, delta=delta, clean=clean):
                    activation = layer.activation.clone()
                    for at, neuron in members:
                        if at == layer.index:
                            sign = clean[at][-1, neuron].sign() if convention == "magnitude" else 1
                            activation[-1, neuron] += sign * delta
                    return activation

                *_, last = model.layers(batch, edit=edit)
                expected = model.logits(last.hidden)[-1].softmax(-1)[target]
                assert curves["output"][row, 0, index, step] == pytest.approx(float(expected), rel=1e-9)


def test_a_run_from_a_later_layer_needs_what_enters_it(model):
    batch = sn.TokenBatch.from_rows(ROWS)
    whole = list(model.layers(batch))
    later = list(model.layers(batch, embedded=whole[1].hidden, first=1))
    assert [layer.index for layer in later] == [1, 2, 3]
    assert torch.equal(later[-1].hidden, whole[-1].hidden)
    for options in ({"first": 1}, {"first": 3, "embedded": whole[1].hidden}):
        with pytest.raises(sn.InputError, match="expected 0 to 2, and above 0 the hidden state that enters it"):
            next(model.layers(batch, **options))


def test_a_joint_shift_has_the_sum_of_the_gradients(model):
    sets = [[(0, 1), (1, 2), (2, 3)], [(1, 5), (1, 6)]]
    gradients = sn.analyses.neuron_gradients(model, None, ROWS, TARGETS)
    measured = slope_at_zero(model, ROWS, TARGETS, sets, "magnitude", "probability")
    assert np.abs(gradients.of(sets) - measured).max() <= 1e-6 * np.abs(measured).max()


# Integrated gradients.


def test_the_integrated_gradients_of_a_layer_sum_to_the_change_from_zero(model):
    """Completeness (Sundararajan et al. 2017, proposition 1), against a run with the layer's neurons at 0."""
    result = sn.analyses.integrated_gradients(model, None, ROWS[:2], [9, 8], steps=400, layers=[0, 1])
    for row, target in enumerate((9, 8)):
        batch = sn.TokenBatch.from_rows([ROWS[row]])
        for at in (0, 1):

            def edit(layer, at=at):
                activation = layer.activation.clone()
                if layer.index == at:
                    activation[-1] = 0
                return activation

            with_layer, without = (
                float(model.logits(list(model.layers(batch, edit=e))[-1].hidden)[-1].softmax(-1)[target]) for e in (None, edit)
            )
            assert result["attribution"][row, 0, at].sum() == pytest.approx(with_layer - without, rel=1e-4)


def test_one_step_of_integrated_gradients_is_the_gradient_at_half_the_layers_activations(model):
    result = sn.analyses.integrated_gradients(model, None, ROWS[:1], [9], steps=1, scaled="layer", layers=[2])
    batch = sn.TokenBatch.from_rows(ROWS[:1])
    kept = []

    def edit(layer):
        if layer.index < 2:
            return layer.activation
        kept.append((layer.activation * 0.5).requires_grad_())
        return kept[0]

    *_, last = model.layers(batch, edit=edit)
    (gradient,) = torch.autograd.grad(model.logits(last.hidden)[-1].softmax(-1)[9], kept)
    np.testing.assert_allclose(result["attribution"][0, 0, 0], (gradient * kept[0] * 2)[-1].detach().numpy(), rtol=1e-9)


# Bad input.


def fails(match):
    return pytest.raises(sn.InputError, match=match)


def test_a_reordered_model_is_refused_with_the_remedy(tmp_path):
    language_model("gpt2").save_pretrained(tmp_path)
    model = sn.load_model(str(tmp_path), head=True, prepack=True)
    with fails("reordered for speed and give no gradients: load it with prepack='kernels'"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS)


def test_targets_that_are_no_token_are_refused(masked, unchecked):
    model, tokenizer = masked
    prompts = ["the film was [MASK]"]
    with fails(r"'unreal' is 2 tokens \(un, ##real\); expected one"):
        sn.analyses.neuron_gradients(model, tokenizer, prompts, ["unreal"])
    with fails(r"'xyz' is not in the vocabulary \(\[UNK\]\)"):
        sn.analyses.neuron_gradients(model, tokenizer, prompts, ["xyz"])
    with fails("target 50 of prompt 0 is not in the vocabulary, whose ids run from 0 to 49"):
        sn.analyses.neuron_gradients(model, tokenizer, prompts, [50])
    with fails("target 5.5 of prompt 0 is not in the vocabulary"):
        sn.analyses.neuron_gradients(model, tokenizer, prompts, [[5.5]])
    with fails("targets: got 2; expected one word or token id"):
        sn.analyses.neuron_gradients(model, tokenizer, prompts, ["good", "bad"])
    with fails("prompt 1 has 1, prompt 0 has 2"):
        sn.analyses.neuron_gradients(model, tokenizer, prompts * 2, [["good", "bad"], "good"])


def test_prompts_and_targets_of_a_wrong_type_are_refused_by_number(model, masked, unchecked):
    gradients = sn.analyses.neuron_gradients
    for wrong in (None, float("nan"), True, ["a"]):
        with fails(r"target .* of prompt 1 is not in the vocabulary, .*; expected a word, or one of these ids"):
            gradients(model, None, ROWS[:2], [[3], [wrong]])
    with fails("targets of prompt 1: the word 'unreal' is 2 tokens"):
        gradients(*masked, ["a [MASK]", "the [MASK]"], ["good", "unreal"])
    for wrong in ([1, 2.5], 7, float("nan"), []):
        with fails("prompt 1 is .*; expected a text, or a list of token ids"):
            gradients(model, None, [ROWS[0], wrong], [3, 3])
    with fails("prompt 1 has the token id 50, which is not in the vocabulary: its ids run from 0 to 49"):
        gradients(model, None, [[1], [50]], [3, 3])
    with fails("prompts is None; expected a list of one or more prompts"):
        gradients(model, None, None, [3])
    with fails("text 1 is missing"):
        gradients(*masked, ["a [MASK]", None], ["good", "good"])
    with fails("model is a NoneType; expected what sn.load_model returns"):
        gradients(None, None, ROWS, TARGETS)


def test_layers_grids_and_neurons_of_a_wrong_type_are_refused(model, unchecked):
    for wrong in (3, "0", [None, 1]):
        with fails("layers are .*; expected one or more of 0 to 2"):
            sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, layers=wrong)
    for wrong in (1.0, None, ["a", "b"], [[0, 1], [1, 2]]):
        with fails("the grid of shifts is .*; expected two or more different finite numbers"):
            sn.analyses.intervention_curves(model, None, ROWS, TARGETS, neurons=[(0, 1)], grid=wrong)
    for wrong in ((0, 1), [5], [[(0, 1.7), (0, 2)]], ["ab"]):
        with fails(r"neurons: got .*; expected a pair \(layer, neuron\), or a list of such pairs"):
            sn.analyses.intervention_curves(model, None, ROWS, TARGETS, neurons=wrong)
    with fails(r"neurons is 5; expected a list of \(layer, neuron\) pairs"):
        sn.analyses.intervention_curves(model, None, ROWS, TARGETS, neurons=5)


def test_a_neuron_that_a_set_names_twice_is_refused(model):
    """Its shift would count twice."""
    with fails(r"\[\(0, 1\), \(0, 1\)\] names a neuron twice"):
        sn.analyses.intervention_curves(model, None, ROWS, TARGETS, neurons=[[(0, 1), (0, 1)]])


def test_a_function_of_the_logits_that_gives_no_gradient_is_refused(model, unchecked):
    for wrong, message in (
        (lambda logits: logits[:, 0].detach(), "returned a tensor without a gradient"),
        (lambda logits: 3, "returned a int; expected a tensor"),
    ):
        with fails(message):
            sn.analyses.neuron_gradients(model, None, ROWS, of=wrong)
    with fails("of is 3; expected one of probability"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, of=3)


def test_prompts_without_their_mask_are_refused(masked, model):
    bert, tokenizer = masked
    with fails(r"prompt 1 has 0 mask tokens; expected \[MASK\] exactly once"):
        sn.analyses.neuron_gradients(bert, tokenizer, ["a [MASK]", "the film was good"], ["good", "bad"])
    with fails("prompts: text 0 has more than 9 tokens"):
        sn.analyses.neuron_gradients(bert, tokenizer, ["the " * 10 + "[MASK]"], ["good"])
    with fails("position='mask' needs the tokenizer"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, position="mask")


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):

    folder = SHARED / "models" / "gpt2-4l128-shakespeare" / "safetensors"
    if not folder.is_dir():
        pytest.skip("the shared trained models are not here")
    model = sn.load_model(str(folder), head=True, prepack=False)
    with fails("no mask token: use position='last'"):
        sn.analyses.neuron_gradients(model, sn.load_tokenizer(str(folder)), ["To be"], [5], position="mask")


def test_a_model_without_a_head_is_refused(tmp_path):
    language_model("gpt2").save_pretrained(tmp_path)
    model = sn.load_model(str(tmp_path), prepack=False)
    with fails("no language-model head: load it with head=True"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS)
    with fails("the probe reads 7 features; expected 16"):
        probe = sn.LogisticProbe.from_weights(np.ones((1, 7)), np.zeros(1))
        sn.analyses.neuron_gradients(model, None, ROWS, of=probe, position="last")


def test_settings_that_cannot_be_used_are_refused(model, unchecked):
    with fails(r"layers are \[3\]; expected one or more of 0 to 2"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, layers=[3])
    with fails("top is 2.5; expected 1 or more"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, reduce="top", top=2.5)
    with fails("got steps=0, scaled='token'; expected 1 or more"):
        sn.analyses.integrated_gradients(model, None, ROWS, TARGETS, steps=0)
    with fails(r"layers are \[0.5\]; expected one or more of 0 to 2"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, layers=[0.5])
    with fails("top is 3; expected 1 or more, and only with reduce='top'"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, top=3)
    with fails("convention is 'relative'"):
        sn.analyses.neuron_gradients(model, None, ROWS, TARGETS, convention="relative")
    with fails(r"the grid of shifts is \[1.0\]; expected two or more different"):
        sn.analyses.intervention_curves(model, None, ROWS, TARGETS, neurons=NEURONS, grid=[1.0])
    with fails("neuron 40 of layer 0: expected 0 to 39"):
        sn.analyses.intervention_curves(model, None, ROWS, TARGETS, neurons=[(0, 40)])


# The command.


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


def test_the_command_writes_the_same_table_as_the_function(spin, masked, folder_with_mask, tmp_path):
    _, tokenizer = masked
    model = sn.load_model(folder_with_mask, dtype=torch.float64, head=True, prepack="kernels")
    prompts = ["the film was [MASK]", "[MASK] film"]
    data = write(tmp_path / "prompts.csv", [{"text": prompt, "word": "good"} for prompt in prompts])
    options = ["--target", "word", "--out", tmp_path / "out.parquet", "--model-dtype", "float64", "--top", "3"]
    code, out, err = spin("neuron-gradients", folder_with_mask, data, *options)
    assert (code, out) == (0, "")
    assert err.splitlines()[-1] == f"2 prompts, 18 rows in {tmp_path / 'out.parquet'}"
    expected = sn.analyses.neuron_gradients(model, tokenizer, prompts, ["good"] * 2, reduce="top", top=3)
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == expected.to_table().to_pylist()


def test_the_command_reads_words_for_all_prompts_and_refuses_two_sources(spin, folder_with_mask, tmp_path):
    data = write(tmp_path / "prompts.csv", [{"text": "the film was [MASK]"}])
    out = tmp_path / "out.csv"
    options = ["--out", out, "--reduce", "mean", "--layers", "0,2"]
    assert spin("neuron-gradients", folder_with_mask, data, *options, "--words", "good,bad")[0] == 0
    assert len(out.read_text().splitlines()) == 1 + 2 * 2 * 40
    assert json.loads((tmp_path / "out.csv.metadata.json").read_text())["labels"] == ["good", "bad"]
    everything = ["--out", tmp_path / "all.csv", "--reduce", "none", "--words", "good,bad"]
    assert spin("neuron-gradients", folder_with_mask, data, *everything)[0] == 0
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 1 + 2 * 3 * 40
    assert "either as a column (--target) or as a list" in spin.fails("neuron-gradients", folder_with_mask, data, *options)
    assert "out.csv: already exists" in spin.fails("neuron-gradients", folder_with_mask, data, *options, "--words", "good")
    options = ["--out", tmp_path / "new.csv", "--words", "unreal"]
    assert "'unreal' is 2 tokens (un, ##real)" in spin.fails("neuron-gradients", folder_with_mask, data, *options)


def test_the_command_names_the_row_of_a_missing_prompt(spin, folder_with_mask, tmp_path):
    data = write(tmp_path / "prompts.jsonl", [{"text": "a [MASK]"}, {"text": None}])
    said = spin.fails("neuron-gradients", folder_with_mask, data, "--words", "good", "--out", tmp_path / "out.csv")
    assert "prompts.jsonl: row 1 (the first is 0) has no value in column 'text'" in said

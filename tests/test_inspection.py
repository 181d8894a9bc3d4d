"""`sn.inspect` equals transformers' attention, hooks, offsets and logits; scores equal a hand calculation."""

import shutil

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from inside import TEXT, add_tokenizer, inspected, our_inside, reference_inside
from test_logits import language_model
from test_text import NASTY, REFERENCES, needs_shared, real
from tiny import FAMILIES, checkpoint

import spin_native as sn
from spin_native.errors import InputError
from spin_native.inspection.standout import of_other_tokens
from spin_native.models.attention import Attention
from spin_native.text.tokenizer import Tokenizer


@pytest.fixture
def worded(family, tmp_path):
    """The family's tiny checkpoint with a tokenizer, and transformers' model."""
    folder, reference = checkpoint(family)
    shutil.copytree(folder, tmp_path / "worded")
    add_tokenizer(family, tmp_path / "worded")
    return str(tmp_path / "worded"), reference


# Everything inside equals transformers'.


def test_everything_inside_equals_transformers_in_float64(family, worded):
    folder, reference = worded
    ours = inspected(folder, dtype=torch.float64)
    theirs = reference_inside(family, reference, ours.ids)
    assert our_inside(ours).keys() == theirs.keys()
    for key, value in our_inside(ours).items():
        assert value.dtype == np.float64
        assert value.shape == theirs[key].shape
        assert np.abs(value - theirs[key]).max() <= 1e-12 * max(1, np.abs(theirs[key]).max()), key


@pytest.mark.parametrize("options", [{}, {"prepack": False}, {"depth": 2}])
def test_the_default_model_and_others_in_float32_differ_by_rounding_only(family, worded, options):
    folder, reference = worded
    ours = inspected(folder, **options)
    theirs = reference_inside(family, reference, ours.ids)
    for key, value in our_inside(ours).items():
        if value is not None:  # the final hidden state of a shallower model
            assert value.dtype == np.float32
            assert np.linalg.norm(value - theirs[key]) <= 5e-6 * np.linalg.norm(theirs[key]), key
    assert len(ours.layers) == options.get("depth", 3)
    assert (ours.final_hidden is None) == ("depth" in options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_inspected_as_float32_arrays(worded, dtype):
    folder, _ = worded
    exact, ours = inspected(folder, dtype=torch.float64), inspected(folder, dtype=dtype)
    for key, value in our_inside(ours).items():
        assert value.dtype == np.float32
        assert np.linalg.norm(value - our_inside(exact)[key]) <= 5e-2 * np.linalg.norm(our_inside(exact)[key]), key
    for layer in ours.layers:
        assert layer.attention.sum(-1) == pytest.approx(1, abs=1e-6)


def test_what_is_shown_is_what_the_model_loop_yields(worded):
    folder, _ = worded
    model, tokenizer = sn.load_model(folder), sn.load_tokenizer(folder)
    ours = sn.inspect(model, tokenizer, TEXT)
    with torch.inference_mode():
        for layer in model.layers(sn.TokenBatch.from_rows([ours.ids])):
            if layer.activation is not None:
                assert np.array_equal(ours.layers[layer.index].activation, layer.activation.numpy())
                assert np.array_equal(ours.layers[layer.index].hidden, layer.hidden.numpy())
                assert np.array_equal(ours.layers[layer.index].attended, layer.attended.numpy())
    assert np.array_equal(ours.neuron(1, 7), ours.layers[1].activation[:, 7])
    assert np.array_equal(ours.attention(2, 1), ours.layers[2].attention[1])


def test_attention_weights_are_those_that_the_plain_forward_uses():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 5, 2, 4)
    for causal in (False, True):
        attend = Attention(2, scale=0.5, causal=causal)
        by_hand = torch.einsum("hqk,khd->qhd", attend.weights(query, key), value)
        assert torch.equal(attend.attend(query, key, value), by_hand)
        expected = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(0, 1) for x in (query, key, value)), is_causal=causal, scale=0.5
        )
        assert by_hand == pytest.approx(expected.transpose(0, 1), abs=1e-6)


@needs_shared
@pytest.mark.parametrize("kind", REFERENCES)
def test_offsets_equal_transformers_without_the_space_that_gpt2_counts(kind):
    ours, reference = real(kind)
    if kind.startswith("gpt2"):  # as RoBERTa's tokenizer trims them
        reference.backend_tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True, add_prefix_space=False)
    for text in (*NASTY[2 if kind.startswith("gpt2") else 0 :], "a  b   c"):
        expected = reference(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        pairs = zip(expected["offset_mapping"], expected["special_tokens_mask"], strict=True)
        assert ours.offsets(text) == [None if special else place for place, special in pairs], text


# Tokens and words.


@needs_shared
def test_a_word_is_the_token_it_is_in_running_text():
    for kind, word, expected in (("bert", "great", 2307), ("roberta", "great", 372), ("gpt2", "great", 1049)):
        ours, reference = real(kind)
        assert ours.ids_of_word(word) == [expected]
        assert expected in reference(f"so {word}")["input_ids"]
        assert ours.ids_of_word(f" {word}") == [expected]


@needs_shared
def test_a_word_of_several_tokens_or_of_none_is_refused_with_its_pieces(unchecked):
    with pytest.raises(InputError, match=r"'unbelievably' is 5 tokens \(un, ##bel, ##ie, ##va, ##bly\); expected one"):
        real("bert")[0].ids_of_word("unbelievably")
    with pytest.raises(InputError, match=r"is 3 tokens \(Ġmor, ose, ly\)"):
        real("gpt2")[0].ids_of_word("morosely")
    with pytest.raises(InputError, match=r"'🎻' is not in the vocabulary .\[UNK\]"):
        real("bert")[0].ids_of_word("🎻")
    for wrong in ("", "  ", None, 3, "\udc80"):
        with pytest.raises(InputError, match="ids_of_word: got"):
            real("bert")[0].ids_of_word(wrong)


@needs_shared
def test_a_word_is_not_cut_to_one_token_by_a_short_model():
    with pytest.raises(InputError, match="is 5 tokens"):
        real("bert", max_tokens=1 + 2)[0].ids_of_word("unbelievably")


@needs_shared
def test_the_mask_token_is_transformers():
    for kind in ("bert", "roberta", "gpt2"):
        ours, reference = real(kind)
        assert ours.mask_id == (None if kind == "gpt2" else reference.mask_token_id)


def test_the_mask_is_the_familys_even_where_the_vocabulary_holds_another(tmp_path):
    """MPNet's vocabulary was BERT's: [MASK] is still in it."""
    (tmp_path / "vocab.txt").write_text("\n".join(["<s>", "<pad>", "</s>", "[UNK]", "[MASK]", "good", "<mask>"]))
    ours = Tokenizer.from_files({"vocab.txt": tmp_path / "vocab.txt"}, 9, ("<s>", "</s>"))
    assert ours.mask_id == 6


# The neurons that stand out.


@pytest.fixture(scope="module")
def seen(tiny_model):
    return inspected(tiny_model, "the film was lovely, and the food was bad.")


def by_hand(inspection, layer, position, counted):
    """Scores of one layer's neurons at a token: z against the other tokens, std at least the layer's average."""
    activation = inspection.layers[layer].activation.astype(np.float64)
    others = activation[[i for i in counted if i != position]]
    std = np.maximum(others.std(0), others.std(0).mean())
    return (activation[position] - others.mean(0)) / std


@pytest.mark.parametrize("position", [0, 1, 4])
def test_the_neurons_that_stand_out_equal_a_hand_calculation(seen, position):
    counted = range(1, len(seen.tokens) - 1)  # without [CLS] and [SEP]
    expected = np.stack([by_hand(seen, layer, position, counted) for layer in range(3)])
    order = np.argsort(-np.abs(expected), axis=None)[:10]
    top = seen.top(position)
    assert [(s.layer, s.neuron) for s in top] == [tuple(np.unravel_index(i, expected.shape)) for i in order]
    assert [s.score for s in top] == pytest.approx(expected.flat[order], rel=1e-9)
    for s in top:
        assert s.activation == seen.neuron(s.layer, s.neuron)[position]
        assert s.score == pytest.approx((s.activation - s.mean) / s.std)
    (only,) = seen.top(position, 1, layer=2)
    assert (only.layer, only.neuron) == (2, np.abs(expected[2]).argmax())


def test_a_huge_activation_at_one_token_loses_no_digits_at_others():
    activation = np.random.default_rng(0).normal(size=(6, 4))
    activation[2] = 1e9
    mean, std = of_other_tokens(activation, np.ones(6, bool))
    others = np.delete(activation, 2, axis=0)
    assert mean[2] == pytest.approx(others.mean(0), rel=1e-12)
    assert std[2] == pytest.approx(others.std(0), rel=1e-12)


def test_a_corpus_as_reference_equals_a_hand_calculation(seen, tiny_model, reviews, tmp_path):
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    for store in (None, tmp_path / "store"):
        features = sn.extract(model, tokenizer, reviews[0], poolings=("mean",), store=store)
        expected = []
        for layer in range(3):
            array = features.array(site="activation", pooling="mean", layer=layer).astype(np.float64)
            std = np.maximum(array.std(0), array.std(0).mean())
            expected.append((seen.layers[layer].activation[4] - array.mean(0)) / std)
        top = seen.top("lovely", 5, reference=features)
        assert [s.score for s in top] == pytest.approx(sorted(np.concatenate(expected), key=lambda x: -abs(x))[:5])


def test_a_token_is_named_by_word_by_spelling_or_by_position(seen, unchecked):
    assert seen.tokens[4] == "lovely"
    assert seen.position("lovely") == seen.position(4) == seen.position(np.int64(4)) == 4
    assert seen.position("[CLS]") == 0
    assert [seen.text[slice(*place)] for place in seen.offsets[1:4]] == ["the", "film", "was"]
    assert seen.offsets[0] is None


def test_case_decides_which_token_a_word_is(tiny_model):
    """The vocabulary has no capitals: both are spelled "the" there."""
    two = inspected(tiny_model, "The film, the food")
    assert two.tokens.count("the") == 2
    assert (two.position("The"), two.position("the")) == (1, 4)


# Heads.


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logit_lens_ends_with_transformers_logits(family, tmp_path):
    reference = language_model(family)
    reference.save_pretrained(tmp_path)
    add_tokenizer(family, tmp_path)
    ours = inspected(tmp_path, dtype=torch.float64, head=True)
    with torch.inference_mode():
        output = reference(torch.tensor([ours.ids]), output_hidden_states=True)
    lens, logits = ours.logit_lens(n=4), output.logits[0]
    best = logits.topk(4)
    assert lens.ids.shape == (4, len(ours.tokens), 4)
    assert lens.ids[-1].tolist() == best.indices.tolist()
    assert np.abs(lens.logits[-1] - best.values.numpy()).max() <= 1e-12 * float(logits.abs().max())
    assert lens.probabilities[-1] == pytest.approx(logits.softmax(-1).gather(1, best.indices).numpy(), rel=1e-11)
    if family == "gpt2":  # its final norm, then its head, on an inner state
        with torch.inference_mode():
            inner = reference.lm_head(reference.transformer.ln_f(output.hidden_states[1][0]))
        assert lens.logits[1] == pytest.approx(inner.topk(4).values.numpy(), rel=1e-11)
    names = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).convert_ids_to_tokens
    assert lens.words[-1][0][0] == (names(int(lens.ids[-1, 0, 0])) or f"<id {lens.ids[-1, 0, 0]}>")
    assert "probability" in str(lens)

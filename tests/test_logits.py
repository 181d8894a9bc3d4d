"""Language-model heads: logits equal transformers', tied and untied, padded on either side."""

import json

import pytest
import torch
import transformers
from tiny import FAMILIES, N_VOCAB, SHARED, edit_config, padded, reference_model, rows_of_every_length

import spin_native as sn
from spin_native.errors import InputError
from spin_native.text.batch import TokenBatch

ROWS = rows_of_every_length()
CAUSAL = ("gpt2",)


def language_model(family, **settings):
    """transformers' language model in float64, every parameter random; biases of decoders are tied as published."""
    config = reference_model(family, **settings).config
    auto = transformers.AutoModelForCausalLM if family in CAUSAL else transformers.AutoModelForMaskedLM
    torch.manual_seed(11)
    model = auto.from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.1)
            if "norm" in name.lower() or "ln_" in name:
                parameter += float(name.endswith("weight"))
    return model


def final_hidden(model, batch):
    *_, last = model.layers(batch)
    return last.hidden


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family, tied, side, tmp_path):
    reference = language_model(family, tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path)
    model, batch = sn.load_model(str(tmp_path), dtype=torch.float64, head=True), padded(ROWS, side)
    with torch.inference_mode():
        ours = model.logits(final_hidden(model, batch), batch)
        theirs = torch.cat([reference(torch.tensor([row])).logits[0] for row in ROWS])
    assert ours.shape == (sum(map(len, ROWS)), N_VOCAB)
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_path_gives_the_same_logits_in_float32(family, tmp_path):
    reference = language_model(family)
    reference.save_pretrained(tmp_path)
    model, batch = sn.load_model(str(tmp_path), head=True), TokenBatch.from_rows(ROWS)
    with torch.inference_mode():
        ours = model.logits(final_hidden(model, batch), batch)
        theirs = torch.cat([reference(torch.tensor([row])).logits[0] for row in ROWS])
    assert (ours - theirs).norm() / theirs.norm() <= 5e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tied_head_takes_no_memory_of_its_own_for_the_words(family, tmp_path):
    language_model(family).save_pretrained(tmp_path)
    model = sn.load_model(str(tmp_path), head=True)
    assert model.head.words.weight.data_ptr() == model.embedding.word.weight.data_ptr()


def test_word_vectors_that_differ_although_they_are_tied_are_refused(tmp_path):
    language_model("roberta", tie_word_embeddings=False).save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"word_embeddings.weight and lm_head.decoder.weight differ.*tie_word_embeddings"):
        sn.load_model(str(tmp_path), head=True)


def test_a_checkpoint_without_a_head_is_refused_only_if_a_head_is_wanted(tmp_path):
    reference_model("bert").save_pretrained(tmp_path)
    sn.load_model(str(tmp_path))
    with pytest.raises(InputError, match=r"holds no cls.predictions.transform.dense.weight.*no language-model head"):
        sn.load_model(str(tmp_path), head=True)


def test_a_shallow_model_has_no_head(tmp_path):
    language_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="after all 3 layers"):
        sn.load_model(str(tmp_path), 2, head=True)


def test_logits_of_a_model_without_its_head_and_of_the_wrong_tokens_are_refused(tmp_path):
    language_model("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="head=True"):
        sn.load_model(str(tmp_path)).logits(torch.zeros(1, 16))
    model, batch = sn.load_model(str(tmp_path), head=True), TokenBatch.from_rows([[5, 6, 7]])
    with pytest.raises(InputError, match=r"hidden is \[2, 16\]; expected \[3, 16\]"):
        model.logits(torch.zeros(2, 16), batch)


def test_gradients_flow_through_the_head(tmp_path):
    """Of a logit by a neuron: against a finite difference."""
    language_model("bert").save_pretrained(tmp_path)
    model, batch = sn.load_model(str(tmp_path), dtype=torch.float64, head=True), TokenBatch.from_rows([[5, 6, 7]])

    def logit(shift):
        def edit(layer):
            return layer.activation + shift if layer.index == 1 else layer.activation

        *_, last = model.layers(batch, edit=edit)
        return model.logits(last.hidden, batch)[1, 9]

    shift = torch.zeros(3, 40, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(logit(shift), shift)
    step = torch.zeros(3, 40, dtype=torch.float64)
    step[1, 7] = 1e-4
    expected = (logit(step) - logit(-step)) / 2e-4
    assert gradient[1, 7] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared trained models are not here")
@pytest.mark.parametrize("name", ["gpt2-4l128-shakespeare", "gpt2-3l48-sort"])
def test_trained_gpt2_heads_equal_transformers(name):
    folder = SHARED / "models" / name
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model = sn.load_model(str(folder), dtype=torch.float64, head=True, allow_pickle=True)
    ids = torch.arange(1, 11) % json.loads((folder / "config.json").read_text())["vocab_size"]
    with torch.inference_mode():
        ours = model.logits(final_hidden(model, TokenBatch.from_rows([ids.tolist()])))
        theirs = reference(ids[None]).logits[0]
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


# Lines in the style of what each was trained on, and of the other.
OWN_TEXT = {
    "gpt2-4l128-shakespeare": "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n",
    "gpt2-4l128-presidenttweets": "The Fake News Media is working hard to make our Country look bad. MAKE AMERICA GREAT AGAIN!",
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared trained models are not here")
@pytest.mark.parametrize("name", OWN_TEXT)
def test_trained_gpt2s_reproduce_their_loss_on_their_own_text(name):
    """The mean negative log-likelihood of every next token, as transformers computes it; lower than on the other's text."""
    folder = SHARED / "models" / name / "safetensors"
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model, tokenizer = sn.load_model(str(folder), dtype=torch.float64, head=True), sn.load_tokenizer(str(folder))
    losses = {}
    for text_of, text in OWN_TEXT.items():
        (ids,) = tokenizer.encode([text]).ids
        given = torch.tensor(ids)
        with torch.inference_mode():
            logits = model.logits(final_hidden(model, TokenBatch.from_rows([ids])))
            losses[text_of] = float(torch.nn.functional.cross_entropy(logits[:-1], given[1:]))
            theirs = float(reference(given[None], labels=given[None]).loss)
        assert losses[text_of] == pytest.approx(theirs, rel=1e-6)  # transformers takes the loss in float32
    assert losses[name] == min(losses.values())
    assert losses[name] < 5 < torch.tensor(1000.0).log()  # nats; a model that knows nothing has log(1000) = 6.9

"""Soft prompts and skill neurons: against transformers' inputs_embeds, hand calculations and a planted neuron."""

from functools import partial

import numpy as np
import pytest
import torch
import transformers

import spin_native as sn
from spin_native.analyses.ablation import Ablation
from spin_native.analyses.perturbation import perturbation_curve
from spin_native.analyses.prompt_tuning import tune_prompt
from spin_native.analyses.prompted_skills import prompted_skill_neurons
from spin_native.analyses.skills import SkillNeurons
from spin_native.analyses.soft_prompts import PromptLayout, SoftPrompt
from spin_native.errors import InputError

WORDS = ("good", "nice", "bad", "awful", "the", "film", "food", "was", "very")
VOCAB = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
TEXTS = [f"the {thing} was {very}{word}" for thing in ("film", "food") for very in ("", "very ") for word in WORDS[:4]]
LABELS = ["positive" if "good" in text or "nice" in text else "negative" for text in TEXTS]
ANSWERS = {"negative": "bad", "positive": "good"}


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A random BERT with its masked-language head over a few words, transformers' model, and the tokenizer."""
    folder = tmp_path_factory.mktemp("masked")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    reference = transformers.BertForMaskedLM(config).double().eval()
    reference.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    model = sn.load_model(str(folder), dtype=torch.float64, head=True, prepack=False)
    return model, sn.load_tokenizer(str(folder)), reference


@pytest.fixture(scope="module")
def prompt(masked):
    model, tokenizer, _ = masked
    return tune(model, tokenizer, n_epochs=3)


def tune(model, tokenizer, **options):
    options = {"words": ANSWERS, "validation": (TEXTS, LABELS), "n_prompts": 3, "batch_rows": 5, **options}
    return tune_prompt(model, tokenizer, TEXTS, LABELS, progress=False, **options)


def reference_logits(reference, row, vectors):
    """transformers' logits at the mask: [mask, prompt, text] given as word vectors."""
    words = reference.bert.embeddings.word_embeddings
    embeds = torch.cat([words(torch.tensor([4])), vectors, words(torch.tensor(row))])[None]
    return reference(inputs_embeds=embeds).logits[0, 0]


def test_prompted_logits_equal_transformers_with_input_embeddings(masked):
    model, tokenizer, reference = masked
    layout, vectors = PromptLayout(model, tokenizer, 3), torch.randn(3, 16, dtype=torch.float64)
    ids = layout.encode(TEXTS)
    with torch.inference_mode():
        ours = layout.logits(layout.rows(ids), vectors, torch.arange(len(VOCAB)))
        theirs = torch.stack([reference_logits(reference, row, vectors) for row in ids])
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_training_lowers_the_loss_and_leaves_the_model_alone(masked):
    model, tokenizer, _ = masked
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def loss(n_epochs):
        trained = tune(model, tokenizer, n_epochs=n_epochs, learning_rate=0.05)
        places = [int(label == "positive") for label in LABELS]
        right = trained.predict(model, tokenizer, TEXTS)[np.arange(len(TEXTS)), places]
        return -np.log(right).mean(), trained

    untrained, _ = loss(0)
    after, trained = loss(30)
    assert after < untrained / 2
    assert trained.validation == trained.score(model, tokenizer, TEXTS, LABELS) >= 0.9
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_an_interrupted_training_resumes_to_the_same_vectors(masked, tmp_path, monkeypatch):
    model, tokenizer, _ = masked
    whole = tune(model, tokenizer, n_epochs=4)
    from spin_native.analyses import prompt_tuning

    run, left = prompt_tuning._Training.run_epoch, iter([True, True, False])

    def interrupted(self):
        if not next(left):
            raise KeyboardInterrupt
        run(self)

    monkeypatch.setattr(prompt_tuning._Training, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(model, tokenizer, n_epochs=4, folder=tmp_path)
    monkeypatch.undo()
    resumed = tune(model, tokenizer, n_epochs=4, folder=tmp_path)
    assert torch.equal(resumed.vectors, whole.vectors)
    with pytest.raises(InputError, match="other settings"):
        tune(model, tokenizer, n_epochs=4, seed=1, folder=tmp_path)


def test_a_saved_prompt_answers_as_before(masked, prompt, tmp_path):
    model, tokenizer, _ = masked
    prompt.save(tmp_path)
    again = SoftPrompt.load(tmp_path)
    assert np.array_equal(again.predict(model, tokenizer, TEXTS), prompt.predict(model, tokenizer, TEXTS))
    assert (again.labels, again.words, again.settings) == (prompt.labels, prompt.words, prompt.settings)


def test_a_prompt_is_refused_on_other_weights_than_it_was_trained_on(masked, prompt):
    model, tokenizer, _ = masked
    other = sn.analyses.randomized(model, seed=0)
    with pytest.raises(InputError, match=r"trained on other weights .* train a prompt on this one"):
        prompt.predict(other, tokenizer, TEXTS)


def test_predictivity_equals_a_calculation_by_hand(masked, prompt):
    model, tokenizer, reference = masked
    skill = prompted_skill_neurons(model, tokenizer, [prompt], TEXTS, (TEXTS, LABELS), progress=False)
    layout, found = PromptLayout(model, tokenizer, 3), []
    hooks = [
        layer.intermediate.register_forward_hook(lambda _m, _i, out: found.append(out[0, 1:4]))
        for layer in reference.bert.encoder.layer
    ]
    with torch.inference_mode():
        for row in layout.encode(TEXTS):
            reference_logits(reference, row, prompt.vectors.double())
    for hook in hooks:
        hook.remove()
    activation = torch.stack(found).view(len(TEXTS), 3, 3, 24).numpy()  # [row, layer, prompt, neuron]
    above = activation > activation.mean(0)
    accuracy = (above == np.array([label == "positive" for label in LABELS])[:, None, None, None]).mean(0)
    expected = np.maximum(accuracy, 1 - accuracy).max(1)  # [layer, neuron]
    assert skill["predictivity"].shape == (1, 1, 3, 24)
    np.testing.assert_allclose(skill["predictivity"][0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_neuron_wired_to_the_label_is_found_first(masked, prompt, layer, sign, monkeypatch):
    model, tokenizer, _ = masked
    block = model.blocks[layer].feed_forward
    true_read = type(block).read
    positive = {tokenizer.encode([word]).ids[0][1] for word in ("good", "nice")}

    def read(self, x):
        activation = true_read(self, x)
        if self is block:
            lengths, ids = current[0].lengths, current[0].ids.split(current[0].lengths)
            label = torch.tensor([sign if positive & set(row.tolist()) else -sign for row in ids], dtype=x.dtype)
            activation[:, 7] = label.repeat_interleave(torch.tensor(lengths))
        return activation

    current = []
    true_layers = type(model).layers

    def layers(self, batch, **options):
        current[:] = [batch]
        return true_layers(self, batch, **options)

    monkeypatch.setattr(type(block), "read", read)
    monkeypatch.setattr(type(model), "layers", layers)
    skill = prompted_skill_neurons(model, tokenizer, [prompt], TEXTS, (TEXTS, LABELS), progress=False)
    assert skill["predictivity"][0, 0, layer, 7] == 1
    assert skill.salient(1 / 24)[layer].tolist() == [7]


def test_three_classes_take_turns():
    """Subtask 0 prefers neurons 3, 1; subtask 1 prefers 3, 0; subtask 2 prefers 2, 0."""
    accuracy = np.array([[0.5, 0.8, 0.6, 0.9], [0.7, 0.5, 0.6, 0.9], [0.8, 0.6, 0.9, 0.5]])[None, :, None, None]
    skill = SkillNeurons.of(accuracy, np.zeros((1, 1, 4)), subtasks="abc", layers=[0], tokens=["mean"], metadata={})
    assert skill.salient(0.5)[0].tolist() == [2, 3]
    assert skill.salient(0.75)[0].tolist() == [1, 2, 3]


def test_perturbing_nothing_changes_nothing_and_a_prompt_is_scored_under_each_edit(masked, prompt):
    model, tokenizer, _ = masked
    texts = TEXTS[:6]
    nothing = Ablation({layer: np.arange(0) for layer in range(3)}).check(model)
    assert np.array_equal(prompt.predict(model, tokenizer, texts, edit=nothing), prompt.predict(model, tokenizer, texts))
    skill = prompted_skill_neurons(model, tokenizer, [prompt], TEXTS, (TEXTS, LABELS), progress=False)
    score = partial(prompt.score, model, tokenizer, TEXTS, LABELS)
    curve = perturbation_curve(score, skill, hows=("zero",), shares=(0.1, 0.5), seeds=(0, 1), progress=False)
    for at, share in enumerate((0.1, 0.5)):
        edit = Ablation(skill.salient(share), "zero")
        assert curve["score"][0, 0, at, 0].tolist() == [score(edit=edit)] * 2
    assert curve.clean == score(edit=None)


def test_noise_belongs_to_the_text_and_not_to_its_batch(masked, prompt):
    model, tokenizer, _ = masked
    edit = Ablation({1: np.arange(24)}, "noise", noise=1.0, seed=3).check(model)
    together = prompt.predict(model, tokenizer, TEXTS, edit=edit)
    alone = np.concatenate([prompt.predict(model, tokenizer, [text], edit=edit) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_ablation_by_hand():
    layer = sn.models.transformer.Layer(
        0, torch.zeros(3, 2), torch.arange(12.0).view(3, 4), sn.TokenBatch.from_rows([[5, 6], [7]])
    )
    assert Ablation({0: np.array([1, 3])})(layer).tolist() == [[0, 0, 2, 0], [4, 0, 6, 0], [8, 0, 10, 0]]
    mean = Ablation({0: np.array([1])}, "mean", {0: np.array([0.5])})(layer)
    assert mean[:, 1].tolist() == [0.5] * 3
    pool = np.array([[1.0, -1.0], [2.0, -2.0]])
    drawn = Ablation({0: np.array([0, 2])}, "resample", {0: pool}, seed=1)(layer)
    assert all(row in pool.tolist() for row in drawn[:, [0, 2]].tolist())
    assert torch.equal(Ablation({1: np.array([0])})(layer), layer.activation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": {"negative": "bad", "positive": "unheardof"}}, "unheardof"),
        ({"words": {"negative": "bad", "positive": "bad"}}, "different words"),
        ({"words": {"negative": "bad"}}, "two labels or more"),
        ({"n_prompts": 0}, "n_prompts is 0"),
        ({"n_prompts": 40}, "24 tokens"),
        ({"validation": (TEXTS[:2], ["negative", "other"])}, "row 1 has the label 'other'"),
    ],
)
def test_bad_input_is_one_sentence(masked, options, message):
    model, tokenizer, _ = masked
    with pytest.raises(InputError, match=message):
        tune(model, tokenizer, **options)


def test_a_prompt_refuses_an_edit_of_a_layer_that_the_model_lacks(masked, prompt):
    model, tokenizer, _ = masked
    with pytest.raises(InputError, match="no layer 3; the model has layers 0 to 2"):
        prompt.predict(model, tokenizer, TEXTS, edit=Ablation({3: np.array([0])}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "a"}, "seed is 'a'; expected a whole number, 0 or more"),
        ({"batch_rows": 0}, "batch_rows is 0; expected a whole number, 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected a number above 0"),
        ({"warm_up": 2}, "warm_up is 2; expected a share from 0 to 1"),
        ({"words": ["bad", "good"]}, "words is a list; expected a dict"),
        ({"validation": None}, "validation is a NoneType; expected a pair"),
    ],
)
def test_settings_of_a_training_that_cannot_be_used_are_refused(masked, unchecked, options, message):
    model, tokenizer, _ = masked
    with pytest.raises(InputError, match=message):
        tune(model, tokenizer, **options)


def test_training_rows_of_one_label_are_refused(masked):
    model, tokenizer, _ = masked
    with pytest.raises(InputError, match="training rows: all have the label 'positive'; expected two labels or more"):
        tune_prompt(model, tokenizer, TEXTS[:2], ["positive"] * 2, words=ANSWERS, validation=(TEXTS, LABELS), n_prompts=3)

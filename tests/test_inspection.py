"""`sn.inspect` equals transformers' attention, hooks and logits; scores equal a hand calculation; wrong input is named."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from commands import Spin
from test_logits import language_model
from test_text import NASTY, REFERENCES, needs_shared, real
from tiny import FAMILIES, checkpoint

import spin_native as sn
from spin_native.errors import InputError
from spin_native.models.attention import Attention
from spin_native.parity import activation_functions
from spin_native.text.tokenizer import TruncationWarning

MARKED = {"bert": ("[CLS]", "[SEP]", "[UNK]"), "distilbert": ("[CLS]", "[SEP]", "[UNK]"), "gpt2": None}
WORDS = ("the", "movie", "was", "great", "but", "long", "The")
TEXT = "the movie was great but the"
# Where transformers' models have their query, key and value products, and what the FFN's residual stream enters.
PROJECTIONS = {
    "gpt2": ("attn.c_attn",),
    "distilbert": ("q_lin", "k_lin", "v_lin"),
    "mpnet": ("attn.q", "attn.k", "attn.v"),
}
ATTENDED = {"gpt2": "ln_2", "distilbert": "sa_layer_norm", "mpnet": "attention.LayerNorm"}


def add_tokenizer(family, folder):
    """A tokenizer.json of whole words with the special tokens of the family, ids below the tiny models' vocabulary."""
    first, last, unknown = MARKED.get(family, ("<s>", "</s>", "<unk>")) or (None, None, "<unk>")
    mask = "[MASK]" if first == "[CLS]" else "<mask>"
    special = ("<pad>", *((first, last, mask) if first else ()), unknown)
    vocab = {word: index for index, word in enumerate((*special, *WORDS))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=unknown))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if first:
        pairs = [(first, vocab[first]), (last, vocab[last])]
        backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=pairs)
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture
def worded(family, tmp_path):
    """The family's tiny checkpoint with a tokenizer, and transformers' model."""
    folder, reference = checkpoint(family)
    shutil.copytree(folder, tmp_path / "worded")
    add_tokenizer(family, tmp_path / "worded")
    return str(tmp_path / "worded"), reference


def inspected(folder, text=TEXT, **options):
    return sn.inspect(sn.load_model(str(folder), **options), sn.load_tokenizer(str(folder)), text)


def reference_inside(family, reference, ids):
    """What transformers computes: (name, layer) -> array, through hooks and output_attentions."""
    values = {}

    def keep(name, layer, of_output=True):
        def hook(_module, given, output):
            values.setdefault((name, layer), (output if of_output else given[0])[0])

        return hook

    hooks, modules = [], list(reference.named_modules())
    names = PROJECTIONS.get(family, ("self.query", "self.key", "self.value"))
    for kind, name in zip(("query", "key", "value"), names, strict=False):
        found = [module for path, module in modules if path.endswith(name)]
        hooks += [module.register_forward_hook(keep(kind, layer)) for layer, module in enumerate(found)]
    norm = ATTENDED.get(family, "attention.output.LayerNorm")
    for layer, module in enumerate(module for path, module in modules if path.endswith(norm)):
        hooks.append(module.register_forward_hook(keep("attended", layer, of_output=family != "gpt2")))
    for layer, module in enumerate(activation_functions(reference)):
        hooks.append(module.register_forward_hook(keep("activation", layer)))
    with torch.inference_mode():
        output = reference(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    for layer, attention in enumerate(output.attentions):
        values["attention", layer] = attention[0]
        values["hidden", layer] = output.hidden_states[layer]
        values["hidden", layer] = values["hidden", layer][0]
        if family == "gpt2":  # one product, cut in three
            for kind, part in zip(("query", "key", "value"), values["query", layer].chunk(3, dim=-1), strict=True):
                values[kind, layer] = part
    values["final_hidden", None] = output.hidden_states[-1][0]
    return {key: value.numpy() for key, value in values.items()}


def our_inside(inspection):
    """The same of an inspection, heads side by side as in transformers' products."""
    values = {("final_hidden", None): inspection.final_hidden}
    for layer in inspection.layers:
        for name in ("query", "key", "value"):
            values[name, layer.index] = getattr(layer, name).reshape(len(inspection.tokens), -1)
        for name in ("attention", "attended", "activation", "hidden"):
            values[name, layer.index] = getattr(layer, name)
    return values


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
    with pytest.raises(InputError, match=r"'日本' is .* tokens|'🎻' is not in the vocabulary"):
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
    from spin_native.models import FAMILIES as CLASSES
    from spin_native.text.tokenizer import Tokenizer

    ours = Tokenizer.from_files({"vocab.txt": tmp_path / "vocab.txt"}, 9, CLASSES["mpnet"].special_tokens)
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
    from spin_native.inspection.standout import of_other_tokens

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


def test_a_token_is_named_by_word_by_spelling_or_by_position(seen):
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
        inner = reference.lm_head(reference.transformer.ln_f(output.hidden_states[1][0]))
        assert lens.logits[1] == pytest.approx(inner.topk(4).values.detach().numpy(), rel=1e-11)
    names = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")).convert_ids_to_tokens
    assert lens.words[-1][0][0] == (names(int(lens.ids[-1, 0, 0])) or f"<id {lens.ids[-1, 0, 0]}>")
    assert "probability" in str(lens)


# What is printed.


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.shown = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.shown.append(data)


@needs_shared
def test_html_shows_the_text_and_escapes_it(minilm):
    text = 'a <script>alert("x")</script> & <b>bold</b> film'
    ours = inspected(minilm, text)
    for html in (ours._repr_html_(), ours.to_html(neuron=(1, 7), attention=(2, 3))):
        page = Tags()
        page.feed(html)
        assert set(page.tags) == {"div", "p", "b", "span", "small", "table", "thead", "tbody", "tr", "th", "td"}
        assert page.tags.count("b") == 1  # the title
        assert set(ours.tokens) <= {shown.strip() for shown in page.shown}
    assert "neuron 1.7" in html
    assert "layer 2, head 3" in html
    cells = [shown for shown in page.shown if shown == f"{ours.attention(2, 3)[0, 0]:.2f}"]
    assert cells


def test_a_spelling_that_is_html_is_escaped(tmp_path):
    folder, _ = checkpoint("bert")
    shutil.copytree(folder, tmp_path / "evil")
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "<script>alert(1)</script>")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "evil" / "tokenizer.json"))
    html = inspected(tmp_path / "evil", "a b <script>alert(1)</script>").to_html(attention=(0, 0))
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 4  # title, colours, neurons, attention


def test_a_terminal_gets_a_line_per_token_with_its_strongest_neurons(seen):
    lines = str(seen).splitlines()
    assert repr(seen) == str(seen)
    (best, second) = seen.top("lovely", 2)
    (line,) = [line for line in lines if " lovely " in line and "13-19" in line]
    for s in (best, second):
        assert f"{s.layer}.{s.neuron}" in line
        assert f"{s.activation:+.3f}" in line
        assert f"{s.score:+.1f}" in line
    assert len(lines) == 3 + len(seen.tokens)


def test_a_long_text_is_printed_in_part(tmp_path):
    folder, _ = checkpoint("roberta")
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=99,
    )
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    add_tokenizer("roberta", tmp_path)
    ours = inspected(tmp_path, "movie " * 80)
    assert len(ours.tokens) == 82
    assert str(ours).endswith("and 18 more tokens: .top(token=position) has their neurons")
    assert "and 18 more tokens" in ours.to_html()
    assert len(ours.to_json()["tokens"]) == 82


def test_json_holds_tokens_places_and_neurons(seen):
    content = json.loads(json.dumps(seen.to_json(2)))
    assert content["text"] == seen.text
    assert [entry["token"] for entry in content["tokens"]] == seen.tokens
    assert [content["tokens"][i]["start"] for i in (0, 4)] == [None, 13]
    assert content["tokens"][4]["neurons"] == [s._asdict() for s in seen.top(4, 2)]


# What cannot be inspected.


@pytest.mark.parametrize("text", ["", "   ", "\t\n"])
def test_a_text_without_tokens_is_refused(tiny_model, text):
    with pytest.raises(InputError, match="has no tokens; expected at least one word"):
        inspected(tiny_model, text)


@needs_shared
def test_gpt2s_empty_text_is_refused_too():
    ours, _ = real("gpt2")
    assert ours.offsets("") == [None]


@pytest.mark.parametrize(("wrong", "got"), [(None, "NoneType"), (["a", "b"], "list"), (b"a", "bytes")])
def test_what_is_no_text_is_refused(tiny_model, wrong, got, unchecked):
    with pytest.raises(InputError, match=f"text is a {got}; expected one str"):
        inspected(tiny_model, wrong)


def test_a_tokenizer_of_another_model_is_refused(tiny_model):
    with pytest.raises(InputError, match="do not belong together"):
        sn.inspect(sn.load_model(checkpoint("bert")[0]), sn.load_tokenizer(str(tiny_model)), "good film")


def test_a_text_longer_than_the_model_is_cut_with_a_warning(tiny_model):
    with pytest.warns(TruncationWarning, match="1 of 1 texts were longer than 24 tokens"):
        ours = inspected(tiny_model, "good film " * 30)
    assert len(ours.tokens) == len(ours.offsets) == 24


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda seen: seen.top("great"), r"no token 'great' in this text; its tokens are \[CLS\] the film was lovely"),
        (lambda seen: seen.top("the"), "'the' is several tokens, at positions 1, 7: give one of these numbers"),
        (lambda seen: seen.top(13), "token is 13; expected a whole number from 0 to 12"),
        (lambda seen: seen.top(-1), "token is -1; expected a whole number from 0 to 12"),
        (lambda seen: seen.top(True), "token is True; expected a whole number"),
        (lambda seen: seen.top(None), "token is None; expected a whole number"),
        (lambda seen: seen.top(1, 0), "n is 0; expected a whole number of at least 1"),
        (lambda seen: seen.top(1, layer=3), "layer is 3; expected a whole number from 0 to 2"),
        (lambda seen: seen.neuron(3, 0), "layer is 3; expected a whole number from 0 to 2"),
        (lambda seen: seen.neuron(0, 32), "neuron is 32; expected a whole number from 0 to 31"),
        (lambda seen: seen.attention(0, 2), "head is 2; expected a whole number from 0 to 1"),
        (lambda seen: seen.logit_lens(), r"loaded without its language-model head: use load_model\(..., head=True\)"),
        (lambda seen: seen.logit_lens(0), "n is 0; expected a whole number from 1 to"),
    ],
)
def test_what_is_not_there_is_named(seen, ask, message, unchecked):
    with pytest.raises(InputError, match=message):
        ask(seen)


def test_a_text_too_short_to_compare_is_printed_but_has_no_neurons_that_stand_out(tiny_model):
    ours = inspected(tiny_model, "good")
    assert "too few tokens" in str(ours)
    assert ours.to_json()["tokens"][1]["neurons"] == []
    assert "good" in ours.to_html()
    with pytest.raises(InputError, match=r"the text has 0 other tokens to compare with.*reference=sn.extract"):
        ours.top("good")


def test_a_reference_of_one_row_or_of_another_model_is_refused(seen, tiny_model):
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    with pytest.raises(InputError, match="layer 0 has 1 rows of 32 neurons; expected at least 2 rows of 32"):
        seen.top(1, reference=sn.extract(model, tokenizer, ["good"]))
    with pytest.raises(InputError, match="no features for site='activation', pooling='mean', layer=0"):
        seen.top(1, reference=sn.extract(model, tokenizer, ["good", "bad"], poolings=("max",)))


def test_values_that_are_not_finite_are_refused(tmp_path):
    reference = language_model("bert")
    with torch.no_grad():
        reference.bert.encoder.layer[1].intermediate.dense.bias += 1e6
    reference.save_pretrained(tmp_path)
    add_tokenizer("bert", tmp_path)
    inspected(tmp_path)
    with pytest.raises(InputError, match=r"layer 1 holds values that are not finite in torch.float16.*dtype=torch.float32"):
        inspected(tmp_path, dtype=torch.float16)


# The command.


@pytest.fixture
def spin(capsys):
    return Spin(capsys)


def test_the_command_prints_the_table_one_token_or_one_neuron(spin, tiny_model, seen):
    code, out, _ = spin("inspect", tiny_model, seen.text)
    assert (code, out) == (0, f"{seen}\n")
    (best,) = seen.top("lovely", 1, layer=1)
    line = spin("inspect", tiny_model, seen.text, "--token", "lovely", "--top", 1, "--layer", 1)[1].splitlines()[1].split()
    assert line == [f"1.{best.neuron}", *(f"{x:{f}}" for x, f in zip(best[2:], ("+.3f", "+.3f", ".3f", "+.1f"), strict=True))]
    assert (
        spin("inspect", tiny_model, seen.text, "--token", 4)[1]
        == spin("inspect", tiny_model, seen.text, "--token", "lovely")[1]
    )
    shown = spin("inspect", tiny_model, seen.text, "--neuron", "2:7", "--neuron", "0:1")[1].splitlines()
    assert shown[1].split() == ["token", "characters", "2.7", "0.1"]
    assert shown[6].split() == ["4", "lovely", "13-19", f"{seen.neuron(2, 7)[4]:+.3f}", f"{seen.neuron(0, 1)[4]:+.3f}"]


def test_the_command_prints_json(spin, tiny_model, seen):
    content = json.loads(spin("inspect", tiny_model, seen.text, "--json", "--top", 3)[1])
    assert content == {**seen.to_json(3), "neurons": []}
    one = json.loads(spin("inspect", tiny_model, seen.text, "--json", "--token", "lovely", "--neuron", "1:5")[1])
    assert [entry["token"] for entry in one["tokens"]] == ["lovely"]
    assert one["neurons"] == [{"layer": 1, "neuron": 5, "activations": seen.neuron(1, 5).tolist()}]


def test_the_command_writes_a_page(spin, tiny_model, seen, tmp_path):
    spin("inspect", tiny_model, seen.text, "--html", tmp_path / "page.html", "--neuron", "2:7")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert seen.to_html(neuron=(2, 7), n=2) in page
    assert "cannot be written" in spin("inspect", tiny_model, seen.text, "--html", tmp_path / "no" / "page.html")[2]


def test_the_command_names_what_is_wrong(spin, tiny_model):
    assert "the text '' has no tokens" in spin.fails("inspect", tiny_model, "")
    assert "no token 'great'" in spin.fails("inspect", tiny_model, "good film was bad", "--token", "great")
    assert "layer is 7" in spin.fails("inspect", tiny_model, "good film was bad", "--neuron", "7:0")
    code, _, err = spin("inspect", tiny_model, "good", "--neuron", "seven")
    assert code == 2
    assert "'seven' is no neuron" in err

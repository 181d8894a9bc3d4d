"""An inspection as text, HTML and JSON, and its command; text is escaped; what cannot be inspected is named."""

import json
import shutil
from html.parser import HTMLParser

import pytest
import tokenizers
import torch
import transformers
from commands import Spin
from inside import add_tokenizer, inspected
from test_logits import language_model
from test_text import needs_shared, real
from tiny import checkpoint

import spin_native as sn
from spin_native.errors import InputError
from spin_native.inspection import show
from spin_native.text.tokenizer import TruncationWarning


@pytest.fixture(scope="module")
def seen(tiny_model):
    return inspected(tiny_model, "the film was lovely, and the food was bad.")


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
    (tmp_path / "evil" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
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
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    transformers.RobertaModel(transformers.RobertaConfig(**sizes, max_position_embeddings=99)).save_pretrained(tmp_path)
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
def test_gpt2s_end_of_text_for_an_empty_text_has_no_place_in_it():
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
    by_position, by_word = (spin("inspect", tiny_model, seen.text, "--token", token)[1] for token in (4, "lovely"))
    assert by_position == by_word
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
    assert seen.to_html(2, neuron=(2, 7)) in page
    assert "already exists" in spin("inspect", tiny_model, "good", "--html", tmp_path / "page.html")[2]
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert spin("inspect", tiny_model, "good", "--html", tmp_path / "page.html", "--overwrite")[0] == 0
    assert "cannot be written" in spin("inspect", tiny_model, seen.text, "--html", tmp_path / "no" / "page.html")[2]


def test_the_command_names_what_is_wrong(spin, tiny_model):
    assert "the text '' has no tokens" in spin.fails("inspect", tiny_model, "")
    assert "no token 'great'" in spin.fails("inspect", tiny_model, "good film was bad", "--token", "great")
    assert "layer is 7" in spin.fails("inspect", tiny_model, "good film was bad", "--neuron", "7:0")
    code, _, err = spin("inspect", tiny_model, "good", "--neuron", "seven")
    assert code == 2
    assert "'seven' is no neuron" in err


def test_a_layer_that_is_not_there_is_refused_whatever_the_length_of_the_text(tiny_model):
    short = inspected(tiny_model, "film")
    for show_layer in (lambda: short.to_json(layer=99), lambda: show.text(short, 2, 99), lambda: short.to_html(layer=99)):
        with pytest.raises(InputError, match="layer is 99; expected a whole number from 0 to"):
            show_layer()


def test_a_reference_that_is_no_features_is_refused(seen, unchecked):
    with pytest.raises(InputError, match="reference is a list; expected the Features that"):
        seen.top("lovely", reference=[1])

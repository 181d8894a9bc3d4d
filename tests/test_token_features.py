"""Features of every token, at the mask token and at given positions: equal to transformers' values of each text by itself."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers

import spin_native as sn
from spin_native.features.extract import Extractor
from spin_native.features.tokens import TokenExtractor, TokenFeatures, write_tokens

WORDS = ["good", "bad", "nice", "awful", "fine", "the", "a", "was", "film", "food"]
TEXTS = [" ".join(WORDS[(row * 3 + i) % len(WORDS)] for i in range(row * 7 % 13)) for row in range(30)] + [
    "good film",
    "The zebra, a.",
]
PROMPTS = ["the film was [MASK] .", "[MASK] food", "a very very nice room [MASK]", "the film was [MASK] ."]


@pytest.fixture
def parts(tiny_model):
    return sn.load_model(str(tiny_model), dtype=torch.float64), sn.load_tokenizer(str(tiny_model))


@pytest.fixture
def theirs(tiny_model):
    """transformers' tokenizer, and its values of a text that is run by itself: (site, layer) -> [token, width]."""
    model = transformers.BertModel.from_pretrained(tiny_model, attn_implementation="eager").double().eval()
    tokenizer = transformers.BertTokenizerFast(str(tiny_model / "vocab.txt"))

    def values(text: str) -> dict[tuple[str, int], np.ndarray]:
        found = {}
        hooks = [
            block.intermediate.register_forward_hook(
                lambda _module, _given, out, layer=layer: found.update({("activation", layer): out[0].numpy()})
            )
            for layer, block in enumerate(model.encoder.layer)
        ]
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        for hook in hooks:
            hook.remove()
        return found | {("hidden", layer): state[0].numpy() for layer, state in enumerate(states)}

    return tokenizer, values


@pytest.fixture
def small_blocks(monkeypatch):
    """Seven texts a block."""
    monkeypatch.setattr(TokenExtractor, "rows_per_block", 7)


@pytest.mark.parametrize("max_tokens", [1, 40, None])
def test_every_token_has_transformers_values_in_text_order_whatever_the_batches(parts, theirs, small_blocks, max_tokens):
    tokenizer, values = theirs
    features = sn.extract(*parts, TEXTS, sites=("activation", "hidden"), poolings=("tokens",), max_tokens=max_tokens)
    assert isinstance(features, TokenFeatures)
    assert len(features) == sum(len(tokenizer(text).input_ids) for text in TEXTS)
    for row, text in enumerate(TEXTS):
        for (site, layer), expected in values(text).items():
            np.testing.assert_allclose(features[site, "tokens", layer][features.row == row], expected, rtol=1e-6, atol=1e-6)


def test_each_token_has_its_text_position_id_string_and_offsets_as_transformers_has_them(parts, theirs, small_blocks):
    tokenizer, _ = theirs
    features = sn.extract(*parts, TEXTS, poolings=("tokens",), depth=1)
    for row, text in enumerate(TEXTS):
        expected, chosen = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True), features.row == row
        assert features.token_id[chosen].tolist() == expected.input_ids
        assert features.token[chosen].tolist() == tokenizer.convert_ids_to_tokens(expected.input_ids)
        assert features.position[chosen].tolist() == list(range(len(expected.input_ids)))
        spans = zip(features.start[chosen].tolist(), features.end[chosen].tolist(), strict=True)  # None where masked
        special = expected.special_tokens_mask
        pairs = zip(expected.offset_mapping, special, strict=True)
        assert list(spans) == [(None, None) if is_special else span for span, is_special in pairs]


def test_a_cut_text_has_as_many_tokens_as_the_model_reads(parts):
    with pytest.warns(UserWarning, match="1 of 2 texts were longer than 24 tokens and were cut"):
        features = sn.extract(*parts, ["good " * 40, "bad"], poolings=("tokens",), depth=1)
    assert np.bincount(features.row).tolist() == [24, 3]
    assert features.end[22] == 22 * 5 - 1
    assert features.end.mask[23]


def test_the_frame_begins_with_what_each_token_is_and_special_tokens_have_no_offsets(parts):
    features = sn.extract(*parts, ["a film", ""], poolings=("tokens",), depth=1)
    frame = features.to_pandas()
    assert list(frame.columns[:7]) == ["row", "position", "token_id", "token", "start", "end", "activation.tokens.0.0"]
    assert frame["token"].tolist() == ["[CLS]", "a", "film", "[SEP]", "[CLS]", "[SEP]"]
    assert frame["start"].isna().tolist() == [True, False, False, True, True, True]
    assert frame["end"].dropna().tolist() == [1, 6]
    assert np.array_equal(frame["activation.tokens.0.9"], features["activation", "tokens", 0][:, 9])


def test_the_written_blocks_are_the_file_of_the_features_in_memory(parts, tmp_path, small_blocks):
    features = sn.extract(*parts, TEXTS, poolings=("tokens",), sites=("hidden",))
    features.to_parquet(tmp_path / "memory.parquet")
    n_tokens = write_tokens(*parts, iter(TEXTS), tmp_path / "stream.parquet", sites=("hidden",))
    assert n_tokens == len(features)
    assert pq.ParquetFile(tmp_path / "stream.parquet").num_row_groups == 5
    memory, stream = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("memory", "stream"))
    assert memory.equals(stream)
    frame = stream.to_pandas()
    assert frame["start"].isna().sum() == 2 * len(TEXTS)
    assert np.array_equal(np.stack(frame["hidden.tokens.3"]), features["hidden", "tokens", 3])


def test_no_texts_have_no_tokens(parts):
    features = sn.extract(*parts, [], poolings=("tokens",), depth=1)
    assert len(features) == len(features.token) == len(features.to_pandas()) == 0


def test_a_value_that_is_not_finite_is_named_with_its_text(parts):
    model, tokenizer = parts
    model.embedding.word.weight.data[tokenizer.encode(["food"]).ids[0][1]] = torch.nan
    with pytest.raises(sn.InputError, match=r"text 2: activation 0 of layer 0 is not a finite float32"):
        sn.extract(model, tokenizer, ["good", "good bad nice", "the food", "good"], poolings=("tokens",))


def test_tokens_go_neither_with_other_poolings_nor_with_a_store(parts, tmp_path):
    with pytest.raises(sn.InputError, match="'tokens' gives a row per token, the others one per text: take it alone"):
        sn.extract(*parts, TEXTS, poolings=("tokens", "mean"))
    with pytest.raises(sn.InputError, match=r"a store holds one row per text; leave store out, or .*write_tokens"):
        sn.extract(*parts, TEXTS, poolings=("tokens",), store=tmp_path / "s")
    assert not (tmp_path / "s").exists()


# At the mask token, and at given positions.


def test_mask_is_the_value_at_the_mask_token(parts, theirs):
    tokenizer, values = theirs
    features = sn.extract(*parts, PROMPTS, sites=("activation", "hidden"), poolings=("mask", "mean"), max_tokens=13)
    for row, prompt in enumerate(PROMPTS):
        at = tokenizer(prompt).input_ids.index(tokenizer.mask_token_id)
        for (site, layer), expected in values(prompt).items():
            np.testing.assert_allclose(features[site, "mask", layer][row], expected[at], rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(features[site, "mean", layer][row], expected.mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("wrong", "n_masks"), [("the film", 0), ("[MASK] [MASK] film", 2)])
def test_a_text_without_exactly_one_mask_is_named(parts, wrong, n_masks, monkeypatch):
    monkeypatch.setattr(Extractor, "rows_per_block", 2)
    with pytest.raises(sn.InputError, match=rf"text 5 has {n_masks} mask tokens; expected exactly one \[MASK\]"):
        sn.extract(*parts, [*PROMPTS, PROMPTS[0], wrong], poolings=("mask",))


def test_a_prompt_that_is_too_long_is_named(parts, monkeypatch):
    monkeypatch.setattr(Extractor, "rows_per_block", 2)
    with pytest.raises(sn.InputError, match=r"text 3 has more than 24 tokens, all that the model reads: shorten it"):
        sn.extract(*parts, [*PROMPTS[:3], "good " * 30 + "[MASK]"], poolings=("mask",))


def test_a_tokenizer_without_a_mask_token_is_refused(parts):
    model, tokenizer = parts
    tokenizer.mask_id = None  # as GPT-2's
    with pytest.raises(sn.InputError, match=r"poolings has 'mask', but this tokenizer has no mask token \(GPT-2"):
        sn.extract(model, tokenizer, PROMPTS, poolings=("mask",))


def test_a_store_of_mask_values_says_that_it_reads_prompts(parts, tmp_path):
    memory = sn.extract(*parts, PROMPTS, poolings=("mask", "mean"))
    sn.extract(*parts, PROMPTS, poolings=("mask", "mean"), store=tmp_path / "s")
    opened = sn.ActivationStore(tmp_path / "s")
    assert opened.spec.reads == "prompts"
    for feature in memory.widths:
        assert np.array_equal(opened[feature], memory[feature])


def test_position_is_the_value_at_each_texts_own_position(parts, theirs, monkeypatch, unchecked):
    monkeypatch.setattr(Extractor, "rows_per_block", 3)
    _, values = theirs
    texts, positions = ["the film was good", "bad", "the film was good", "a nice room", "bad"], np.array([2, 0, 5, 3, 2])
    features = sn.extract(*parts, iter(texts), sites=("activation", "hidden"), poolings=("position",), positions=positions)
    for row, (text, position) in enumerate(zip(texts, positions, strict=True)):
        for (site, layer), expected in values(text).items():
            np.testing.assert_allclose(features[site, "position", layer][row], expected[position], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (None, "poolings has 'position', but positions is missing: give one position per text"),
        ([1], "positions has 1 entries, but there are more texts"),
        ([1, 1, 1], "positions has 3 entries for 2 texts"),
        ([1, 3], r"text 1 has 3 tokens, so none at position 3; expected a position from 0 to 2"),
        ([1, -1], "entry 1 is -1; expected a whole number, 0 or more"),
        ([1, 1.5], "entry 1 is 1.5; expected a whole number"),
    ],
)
def test_positions_that_do_not_fit_are_refused(parts, positions, message, unchecked):
    with pytest.raises(sn.InputError, match=message):
        sn.extract(*parts, ["good film", "bad"], poolings=("position",), positions=positions)


def test_positions_without_the_pooling_that_reads_them_or_with_a_store_are_refused(parts, tmp_path):
    with pytest.raises(sn.InputError, match="positions is given, but poolings does not have 'position'"):
        sn.extract(*parts, ["good"], positions=[1])
    with pytest.raises(sn.InputError, match=r"store and positions: .* leave one of them out"):
        sn.extract(*parts, ["good"], poolings=("position",), positions=[1], store=tmp_path / "s")

"""The fast parts against the plain ones: reordered weights, fused attention on views, shallow last layers."""

import math
import shutil
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, checkpoint, our_values, padded, rows_of_every_length
from torch import nn

import spin_native as sn
from spin_native.checkpoints import Checkpoint, Location
from spin_native.checkpoints.load import resolved_dtype
from spin_native.models import fast
from spin_native.models.attention import Attention, PositionBias
from spin_native.models.fast import FusedAttention, ReorderedLinear
from spin_native.text.batch import TokenBatch

BOUNDS = {torch.float32: 5e-6, torch.bfloat16: 5e-2}
works_here = pytest.mark.skipif(not fast._works(torch.float32), reason="this torch or CPU does not reorder weights")


@works_here
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_and_reordered_weights_agree_on_every_layer(family, dtype):
    folder, _ = checkpoint(family)
    batch = padded(rows_of_every_length(), "left")
    plain = our_values(sn.load_model(folder, dtype=dtype, prepack=False), batch)
    model = sn.load_model(folder, dtype=dtype, prepack=True)
    assert sum(isinstance(module, ReorderedLinear) for module in model.modules()) == 4 * model.config.n_layers
    assert not any(isinstance(module, nn.Linear) for module in model.modules())  # each weight is held once
    reordered = our_values(model, batch)
    assert reordered.keys() == plain.keys()
    for key, expected in plain.items():
        assert (reordered[key] - expected).double().norm() / expected.double().norm() <= BOUNDS[dtype], key


@works_here
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_a_reordered_weight_is_the_weight_to_the_bit(dtype):
    folder, _ = checkpoint("gpt2")
    plain, reordered = (sn.load_model(folder, dtype=dtype, prepack=prepack) for prepack in (False, True))
    for one, other in zip(plain.blocks, reordered.blocks, strict=True):
        assert torch.equal(one.feed_forward.down.weight, other.feed_forward.down.weight)
        query, key, value = other.attention.project.all.weight.chunk(3)
        for weight, name in ((query, "query"), (key, "key"), (value, "value")):
            assert torch.equal(weight, getattr(one.attention.project, name).weight)


@works_here
def test_reordered_weights_refuse_gradients_and_moves_and_say_what_to_do():
    folder, _ = checkpoint("bert")
    batch = TokenBatch.from_rows([[5, 6, 7]])

    def run(model):
        *_, last = model.layers(batch, edit=lambda layer: layer.activation.clone().requires_grad_())
        return last.hidden

    model = sn.load_model(folder, prepack=True)
    with pytest.raises(sn.InputError, match="prepack=False"):
        run(model)
    with pytest.raises(sn.InputError, match="prepack=False"):
        model.double()
    with torch.no_grad():
        run(model)
    assert run(sn.load_model(folder, prepack=False)).requires_grad


def test_where_reordering_does_not_work_auto_is_plain_and_true_is_refused(monkeypatch, unchecked):
    folder, _ = checkpoint("bert")
    assert isinstance(sn.load_model(folder, dtype=torch.float64).blocks[0].attention.output, nn.Linear)
    with pytest.raises(sn.InputError, match="float64 weights on cpu cannot be reordered"):
        sn.load_model(folder, dtype=torch.float64, prepack=True)
    with pytest.raises(sn.InputError, match=r"prepack is 1\.5; expected 'auto', 'kernels', True or False"):
        sn.load_model(folder, prepack=1.5)
    fast._works.cache_clear()

    def missing(weight):
        raise NotImplementedError

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing)
    try:
        assert isinstance(sn.load_model(folder).blocks[0].attention.output, nn.Linear)
    finally:
        fast._works.cache_clear()


@works_here
def test_an_operator_that_computes_something_else_is_not_trusted(monkeypatch):
    fast._works.cache_clear()
    true = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *given: true(*given) * 1.001)
    try:
        assert not fast._works(torch.float32)
    finally:
        fast._works.cache_clear()


class Steps(PositionBias):
    """A bias that differs for every head and distance, in both directions."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, length: int) -> torch.Tensor:
        position = torch.arange(length, dtype=self.dtype)
        return torch.stack([0.3 * (position[None, :] - position[:, None]), 0.1 * (position[None, :] - position[:, None]).abs()])


def attended_by_hand(query, key, value, lengths, causal, bias):
    """softmax(q k^T / sqrt(d_head) + bias) v with 2 heads, one row and one head at a time, in float64."""
    rows = []
    for q, k, v in zip(*(x.double().split(lengths) for x in (query, key, value)), strict=True):
        heads = []
        for head, (qh, kh, vh) in enumerate(zip(*(x.chunk(2, 1) for x in (q, k, v)), strict=True)):
            scores = qh @ kh.T / math.sqrt(qh.shape[1])
            if bias is not None:
                scores = scores + bias(len(q))[head].double()
            if causal:
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
            heads.append(scores.softmax(-1) @ vh)
        rows.append(torch.cat(heads, 1))
    return torch.cat(rows)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_attention_over_a_ragged_batch_equals_attention_row_by_row(
    lengths, longest_first, causal, one_product, has_bias, dtype
):
    if longest_first:
        lengths = sorted(lengths, reverse=True)
    generator = torch.Generator().manual_seed(sum(lengths))
    joined = torch.randn(sum(lengths), 3 * 16, generator=generator).to(dtype)
    parts = joined.chunk(3, dim=1) if one_product else [part.contiguous() for part in joined.chunk(3, dim=1)]
    batch = TokenBatch.from_rows([[1] * n for n in lengths])
    bias = Steps(dtype) if has_bias else None
    expected = attended_by_hand(*parts, lengths, causal, bias)
    bound = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2}[dtype]
    plain = Attention(2, scale=8**-0.5, causal=causal, bias=bias)
    fused = FusedAttention(plain, fast._Masks())
    for inference in (True, False):  # where gradients may be asked for, no window reaches past its row
        for attention in (plain, fused):
            with torch.inference_mode(inference):
                result = attention(*parts, batch)
            assert (result.double() - expected).norm() / expected.norm() <= bound


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_changes_no_bit_of_its_neighbours(spoilt, causal, has_bias):
    lengths = (21, 17, 17, 5, 5, 3)  # windows of 32, 32 and 16 keys reach into the next rows
    batch = TokenBatch.from_rows([[1] * n for n in lengths])
    attention = FusedAttention(Attention(2, scale=0.3, causal=causal, bias=Steps() if has_bias else None), fast._Masks())
    query, key, value = torch.randn(3, sum(lengths), 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        healthy = attention(query, key, value, batch).split(lengths)
        for row in range(len(lengths)):
            tokens = slice(sum(lengths[:row]), sum(lengths[: row + 1]))
            sick_key, sick_value = key.clone(), value.clone()
            sick_key[tokens], sick_value[tokens] = spoilt, spoilt
            after = attention(query, sick_key, sick_value, batch).split(lengths)
            for other in range(len(lengths)):
                assert other == row or torch.equal(after[other], healthy[other]), (row, other)


def test_a_changed_position_bias_counts_from_the_next_pass_on():
    model = sn.load_model(checkpoint("mpnet")[0], dtype=torch.float64)
    batch = padded(rows_of_every_length(), "none")
    with torch.inference_mode():
        before = our_values(model, batch)
    with torch.no_grad():
        model.distance_bias.of_bucket.weight.mul_(-3)
        after, fresh = (our_values(model, rows) for rows in (batch, padded(rows_of_every_length(), "none")))
    assert not torch.equal(after["hidden", 1], before["hidden", 1])
    assert all(torch.equal(after[key], fresh[key]) for key in fresh)


def test_the_ragged_gpu_kernel_is_trusted_only_where_it_is_right(monkeypatch):
    def right(query, key, value, batch, *, causal, scale):
        return Attention(2, scale=scale, causal=causal)(*(x.flatten(1) for x in (query, key, value)), batch)

    def fails(*given, **named):
        raise NotImplementedError

    for kernel, is_trusted in (
        (right, True),
        (lambda *given, **named: 1.1 * right(*given, **named), False),
        (lambda *given, causal, **named: right(*given, causal=False, **named), False),
        (fails, False),
    ):
        fast._varlen_works.cache_clear()
        monkeypatch.setattr(fast, "_varlen", kernel)
        assert fast._varlen_works("cpu", torch.bfloat16, 8) is is_trusted
    assert not fast._varlen_works("cpu", torch.float32, 8)
    assert not fast._varlen_works("cpu", torch.bfloat16, 12)
    fast._varlen_works.cache_clear()


@pytest.mark.parametrize("prepack", ["auto", False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_work_after_an_extraction_on_the_same_batch(family, prepack):
    model = sn.load_model(checkpoint(family)[0], dtype=torch.float64, prepack=prepack)
    with torch.inference_mode():
        batch = TokenBatch.from_rows(rows_of_every_length())
        for layer in model.layers(batch):
            if layer.activation is not None:
                sn.pooling.max(layer.activation, batch)
    embedded = model.embed(batch).requires_grad_()
    *_, last = model.layers(batch, embedded=embedded)
    (sn.pooling.mean(last.hidden, batch) ** 2).sum().backward()
    assert (embedded.grad != 0).any(1).all()  # every token matters


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_lie_askew_in_their_file_are_aligned_and_give_the_same_bits(family, tmp_path):
    folder = shutil.copytree(checkpoint(family)[0], tmp_path / "askew")
    tensors = load_file(folder / "model.safetensors")
    batch = padded(rows_of_every_length(), "none")
    results = []
    for padding in range(0, 64, 8):  # the header's length moves the weights
        save_file(tensors, folder / "model.safetensors", {"format": "pt", "padding": "x" * padding})
        model = sn.load_model(str(folder), dtype=torch.float64)
        weights = [p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
        assert weights
        assert all(weight.data_ptr() % 64 == 0 for weight in weights)
        results.append(our_values(model, batch))
    for other in results[1:]:
        assert all(torch.equal(other[key], values) for key, values in results[0].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_can_read_some_of_its_neurons_only(family):
    folder, _ = checkpoint(family)
    source = Checkpoint(Location(folder))
    batch = padded(rows_of_every_length(), "right")
    kept = np.array([3, 0, 17])
    whole = our_values(source.load(2, torch.float64, "cpu"), batch)
    model = source.load(2, torch.float64, "cpu", last_neurons=kept)
    some = our_values(model, batch)
    assert model.width("activation", 1) == 3
    assert model.width("activation", 0) == model.config.d_ffn
    torch.testing.assert_close(some["activation", 1], whole["activation", 1][:, kept], rtol=0, atol=1e-14)
    assert torch.equal(some["activation", 0], whole["activation", 0])


def test_a_text_that_stands_there_several_times_is_computed_once(tiny_model, monkeypatch):
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    rows_run = []
    true = type(model).layers
    monkeypatch.setattr(
        type(model), "layers", lambda self, batch, **how: rows_run.append(batch.n_rows) or true(self, batch, **how)
    )
    texts = ["good film", "bad food", "good film", "the room was nice", "bad food", "good film"]
    together = sn.extract(model, tokenizer, texts, depth=2)
    assert sum(rows_run) == 3
    for row, text in enumerate(texts):
        alone = sn.extract(model, tokenizer, [text], depth=2)
        for pooling in ("mean", "max"):
            given, expected = (f.array(site="activation", pooling=pooling, layer=1) for f in (together, alone))
            np.testing.assert_allclose(given[row], expected[0], rtol=2e-5, atol=1e-6)


def test_blocks_encoded_ahead_and_one_by_one_give_the_same_and_name_the_same_row(tiny_model, monkeypatch, unchecked):
    model, tokenizer = sn.load_model(str(tiny_model)), sn.load_tokenizer(str(tiny_model))
    monkeypatch.setattr(sys.modules["spin_native.features.extract"], "WINDOW", 7)
    texts = ["good " * (row % 9 + 1) for row in range(30)]
    ahead, streamed = (sn.extract(model, tokenizer, given) for given in (texts, iter(texts)))
    for feature in ahead.widths:
        assert np.array_equal(*(f.array(**feature._asdict()) for f in (ahead, streamed)))
    for bad, said in ((None, "text 23 is missing"), ("\ud800", "text 23 holds half a character")):
        for spoilt in (texts[:23] + [bad] + texts[24:], iter(texts[:23] + [bad] + texts[24:])):
            with pytest.raises(sn.InputError, match=said):
                sn.extract(model, tokenizer, spoilt)


def test_dtype_auto_is_bfloat16_only_where_the_cpu_has_it(monkeypatch, unchecked):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert resolved_dtype("auto", "cpu") == torch.float32
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert resolved_dtype("auto", "cpu") == torch.bfloat16
    with pytest.raises(sn.InputError, match="or 'auto'"):
        resolved_dtype("fast", "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_gives_what_the_cpu_gives(family, dtype):
    folder, _ = checkpoint(family)
    batch = padded(rows_of_every_length(), "left")
    expected = our_values(sn.load_model(folder, dtype=torch.float64), batch)
    found = our_values(sn.load_model(folder, dtype=dtype, device="cuda"), batch.to("cuda"))
    bound = {torch.float32: 5e-6, torch.bfloat16: 5e-2, torch.float16: 7e-3}[dtype]
    for key, values in expected.items():
        assert (found[key].double().cpu() - values).norm() / values.norm() <= bound, key

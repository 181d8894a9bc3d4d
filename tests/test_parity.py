"""Every layer's hidden state and activation equal transformers'; and the suite notices planted bugs."""

import base64
import json
from tempfile import TemporaryDirectory

import pytest
import torch
from tiny import (
    FAMILIES,
    MAX_TOKENS,
    SHAPES,
    SHARED,
    Shape,
    checkpoint,
    largest_error,
    our_values,
    padded,
    reference_model,
    reference_values,
    rows_of_every_length,
)

import spin_native as sn
from spin_native.models import layers
from spin_native.models.attention import Attention
from spin_native.models.families import bert, roberta
from spin_native.models.families.mpnet import MAX_DISTANCE, DistanceBias
from spin_native.models.weights import Transposed
from spin_native.text.batch import TokenBatch

ROWS = rows_of_every_length()


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("prepack", ["auto", False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_transformers_in_float64(family, shape, prepack, side):
    folder, reference = checkpoint(family, shape)
    ours = our_values(sn.load_model(folder, dtype=torch.float64, prepack=prepack), padded(ROWS, side))
    assert largest_error(ours, reference_values(reference, ROWS)) <= 1e-12


@pytest.mark.parametrize("prepack", ["auto", False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.float16, 7e-3), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_dtypes_stay_within_their_bound_of_float64(family, shape, dtype, bound, prepack):
    folder, reference = checkpoint(family, shape)
    ours = our_values(sn.load_model(folder, dtype=dtype, prepack=prepack), padded(ROWS, "left"))
    theirs = reference_values(reference, ROWS)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert ours[key].dtype == dtype
        assert (ours[key].double() - expected).norm() / expected.norm() <= bound, key


@pytest.mark.parametrize("prepack", ["auto", False])
def test_large_residuals_do_not_overflow_float16(prepack, tmp_path):
    """GPT-2's residual stream reaches thousands, whose squares float16 does not hold."""
    reference = reference_model("gpt2")
    with torch.no_grad():
        reference.wte.weight *= 3000
    reference.save_pretrained(tmp_path)
    ours = our_values(sn.load_model(str(tmp_path), dtype=torch.float16, prepack=prepack), TokenBatch.from_rows(ROWS))
    for key, expected in reference_values(reference, ROWS).items():
        assert (ours[key].double() - expected).norm() / expected.norm() <= 7e-3, key


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_do_not_see_each_other(family):
    folder, _ = checkpoint(family)
    model = sn.load_model(folder, dtype=torch.float64)
    alone = [our_values(model, TokenBatch.from_rows([row])) for row in ROWS]
    together = our_values(model, TokenBatch.from_rows(ROWS))
    assert largest_error(together, {key: torch.cat([one[key] for one in alone]) for key in alone[0]}) <= 1e-13


def test_a_pad_id_inside_a_roberta_text_shifts_positions_as_in_transformers():
    folder, reference = checkpoint("roberta")
    rows = [[5, 1, 7, 8], [1, 9, 1, 1, 12], [6, 7]]
    ours = our_values(sn.load_model(folder, dtype=torch.float64), TokenBatch.from_rows(rows))
    assert largest_error(ours, reference_values(reference, rows)) <= 1e-12


def test_mpnet_rows_longer_than_its_farthest_bucket_equal_transformers():
    longest = 2 * MAX_DISTANCE + 5
    reference = reference_model("mpnet", Shape(1, 2, 16, 20), max_position_embeddings=longest + 2)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(4, 50, (n,), generator=generator).tolist() for n in (longest, MAX_DISTANCE, 40)]
    with TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        for prepack in ("auto", False):
            ours = our_values(sn.load_model(folder, dtype=torch.float64, prepack=prepack), TokenBatch.from_rows(rows))
            assert largest_error(ours, reference_values(reference, rows)) <= 1e-12


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_activation_function_equals_transformers(family, activation, tmp_path):
    key = {"gpt2": "activation_function", "distilbert": "activation"}.get(family, "hidden_act")
    reference = reference_model(family, **{key: activation})
    reference.save_pretrained(tmp_path)
    ours = our_values(sn.load_model(str(tmp_path), dtype=torch.float64), TokenBatch.from_rows(ROWS))
    assert largest_error(ours, reference_values(reference, ROWS)) <= 1e-12


def test_gradients_of_a_neuron_equal_finite_differences():
    model = sn.load_model(checkpoint("gpt2")[0], dtype=torch.float64)
    batch = TokenBatch.from_rows([[5, 6, 7], [8, 9]])

    def final(shift: torch.Tensor) -> torch.Tensor:
        *_, last = model.layers(batch, edit=lambda layer: layer.activation + shift if layer.index == 1 else layer.activation)
        return last.hidden.square().sum()

    torch.autograd.gradcheck(final, torch.zeros(5, model.config.d_ffn, dtype=torch.float64, requires_grad=True))


def test_an_edit_changes_what_is_written_not_what_is_yielded():
    model = sn.load_model(checkpoint("bert")[0], dtype=torch.float64)
    batch = TokenBatch.from_rows(ROWS)
    plain, edited = our_values(model, batch), {}
    with torch.inference_mode():
        for layer in model.layers(batch, edit=lambda layer: layer.activation * (layer.index != 1)):
            edited[layer.index] = layer
    assert torch.equal(edited[1].activation, plain["activation", 1])
    silenced = model.blocks[1].feed_forward_norm(
        model.blocks[1].read(plain["hidden", 1], batch)[0] + model.blocks[1].feed_forward.down.bias
    )
    torch.testing.assert_close(edited[2].hidden, silenced, rtol=0, atol=1e-14)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loop_starts_from_given_vectors(family):
    model = sn.load_model(checkpoint(family)[0], dtype=torch.float64)
    one, other = (TokenBatch.from_rows(rows) for rows in ([[5, 6, 7], [8, 9]], [[9, 8, 7], [6, 5]]))
    with torch.inference_mode():
        *_, expected = model.layers(other)
        *_, last = model.layers(one, embedded=model.embed(other))
        assert torch.equal(last.hidden, expected.hidden)
        with pytest.raises(sn.InputError, match=r"embedded is \[4, 16\]; expected \[5, 16\]: one vector per token"):
            next(model.layers(one, embedded=model.embed(other)[:4]))


def test_rows_to_keep_and_edits_of_a_wrong_shape_are_refused():
    model = sn.load_model(checkpoint("bert")[0], dtype=torch.float64)
    batch = TokenBatch.from_rows([[5, 6, 7], [8, 9], [10]])
    for rows in ([2, 0], [1, 1], [3], [-1], []):
        with pytest.raises(sn.InputError, match=r"Layer\.keep: got rows .* ascending indices from 0 to 2"):
            next(model.layers(batch)).keep(torch.tensor(rows, dtype=torch.long))
    with pytest.raises(sn.InputError, match=r"edit returned \[1, 40\]; expected a tensor of the activation's shape, \[6, 40\]"):
        list(model.layers(batch, edit=lambda layer: layer.activation[:1]))


# Planted bugs: each must be seen by the comparison above.


def _error(family, side="left", prepack=False):
    folder, reference = checkpoint(family)
    return largest_error(
        our_values(sn.load_model(folder, dtype=torch.float64, prepack=prepack), padded(ROWS, side)),
        reference_values(reference, ROWS),
    )


def _swap_gelus(patch):
    patch.setitem(layers.ACTIVATIONS, "gelu", layers.gelu_tanh)
    patch.setitem(layers.ACTIVATIONS, "gelu_tanh", layers.gelu)


def _wrong_eps(patch):
    true_init = layers.LayerNorm.__init__
    patch.setattr(layers.LayerNorm, "__init__", lambda self, width, eps: true_init(self, width, eps * 2))


def _positions_from_zero(patch):
    patch.setattr(roberta.RobertaEmbedding, "positions", lambda _self, batch: batch.positions)


def _no_token_type(patch):
    true_forward = bert.BertEmbedding.forward

    def forward(self, batch, words):
        self.token_type.weight.data.zero_()
        return true_forward(self, batch, words)

    patch.setattr(bert.BertEmbedding, "forward", forward)


def _no_distance_bias(patch):
    true_forward = DistanceBias.forward
    patch.setattr(DistanceBias, "forward", lambda self, length: 0 * true_forward(self, length))


def _distances_mirrored(patch):
    true_bucket = DistanceBias.bucket
    patch.setattr(DistanceBias, "bucket", lambda self, distance: true_bucket(self, -distance))


def _no_causal_mask(patch):
    true_init = Attention.__init__
    patch.setattr(Attention, "__init__", lambda self, n_heads, *, scale, **_: true_init(self, n_heads, scale=scale))


def _untransposed_projection(patch):
    true_take = Transposed.take
    patch.setattr(Transposed, "take", lambda rule, t: t if "attn.c_proj" in rule.stored else true_take(rule, t))


def _swap(first, second):
    def plant(patch):
        true_init = layers.Projections.__init__

        def init(self, *given, **named):
            true_init(self, *given, **named)
            true_forward = self.forward

            def forward(hidden):
                parts = self._modules
                parts[first], parts[second] = parts[second], parts[first]
                try:
                    return true_forward(hidden)
                finally:
                    parts[first], parts[second] = parts[second], parts[first]

            self.forward = forward

        patch.setattr(layers.Projections, "__init__", init)

    return plant


@pytest.mark.parametrize(
    ("family", "plant"),
    [
        *((family, _swap_gelus) for family in FAMILIES),
        *((family, _wrong_eps) for family in FAMILIES),
        ("roberta", _positions_from_zero),
        ("roberta", _no_token_type),
        ("mpnet", _no_distance_bias),
        ("mpnet", _distances_mirrored),
        ("gpt2", _no_causal_mask),
        ("gpt2", _untransposed_projection),
        *((family, _swap("query", "key")) for family in FAMILIES),
        *((family, _swap("key", "value")) for family in FAMILIES),
    ],
)
def test_a_planted_bug_is_seen(family, plant, monkeypatch):
    assert _error(family) <= 1e-12
    plant(monkeypatch)
    assert _error(family) > 1e-11


@pytest.mark.skipif(not SHARED.exists(), reason="the minGPT record lies in ../shared, which is not here")
def test_the_activations_that_mingpt_recorded():
    folder = SHARED / "models" / "gpt2-3l48-sort"
    record = json.loads((folder / "gpt-nano-sort-t0-partials.json").read_text())

    def recorded(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        entry = record[name]
        return torch.frombuffer(bytearray(base64.b64decode(entry["data"])), dtype=dtype).view(entry["shape"])

    model = sn.load_model(str(folder))
    idx = recorded("idx", torch.float32 if len(base64.b64decode(record["idx"]["data"])) == 132 else torch.int64).round().long()
    batch = TokenBatch.from_rows(idx.tolist())
    hidden = model.embed(batch)
    for index, block in enumerate(model.blocks):
        attended, activation = block.read(hidden, batch)
        if index == 0:
            torch.testing.assert_close(activation, recorded("gelu").flatten(0, 1), rtol=0, atol=1e-5)
        hidden = block.write(attended, activation)
        torch.testing.assert_close(hidden, recorded(f"block{index}").flatten(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.final_norm(hidden), recorded("ln_f").flatten(0, 1), rtol=0, atol=1e-5)


def test_verify_parity_reports_every_layer_of_a_real_model_within_tolerance(minilm):
    errors = sn.verify_parity(str(minilm))
    assert {(e.dtype, e.site, e.layer) for e in errors} == {
        (dtype, site, layer)
        for dtype in ("float32", "float64")
        for site, n in (("hidden", 7), ("activation", 6))
        for layer in range(n)
    }
    assert all(error.passed for error in errors)


def test_the_longest_row_the_model_holds_is_the_longest_it_takes():
    for family in FAMILIES:
        model = sn.load_model(checkpoint(family)[0])
        assert model.config.max_tokens == MAX_TOKENS
        with pytest.raises(sn.InputError, match=r"row 1 has 10 tokens, the model holds 9"):
            next(model.layers(TokenBatch.from_rows([[5], [5] * (MAX_TOKENS + 1)])))
        with pytest.raises(sn.InputError, match="embedding has rows 0 to 49"):
            next(model.layers(TokenBatch.from_rows([[50]])))

"""Depth k is the prefix of the full run, and nothing past the exit is computed or kept."""

import gc
import weakref
from collections import Counter

import pytest
import torch
from tiny import FAMILIES, Shape, checkpoint, our_values, padded, rows_of_every_length

import spin_native as sn
from spin_native.models.layers import FeedForward, SelfAttention

DEEP = Shape(n_layers=5)
ROWS = rows_of_every_length()
DEPTHS = range(1, DEEP.n_layers + 1)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_loaded_at_depth_k_equals_the_full_runs_prefix_bit_for_bit(family, depth, dtype):
    folder, _ = checkpoint(family, DEEP)
    batch = padded(ROWS, "left")
    whole = our_values(sn.load_model(folder, dtype=dtype), batch)
    shallow = our_values(sn.load_model(folder, depth, dtype=dtype), batch)
    final = {("hidden", depth)} if depth == DEEP.n_layers else set()
    assert shallow.keys() == {(site, layer) for site in ("hidden", "activation") for layer in range(depth)} | final
    assert all(torch.equal(shallow[key], whole[key]) for key in shallow)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("loaded", ["whole", "at that depth"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_costs_k_attentions_k_up_and_k_minus_1_down_projections(family, loaded, depth, monkeypatch):
    calls: Counter[str] = Counter()
    for owner, name in ((SelfAttention, "forward"), (FeedForward, "read"), (FeedForward, "write")):
        true = getattr(owner, name)

        def counted(self, *given, _true=true, _name=f"{owner.__name__}.{name}", **named):
            calls[_name] += 1
            return _true(self, *given, **named)

        monkeypatch.setattr(owner, name, counted)
    folder, _ = checkpoint(family, DEEP)
    model = sn.load_model(folder, None if loaded == "whole" else depth)
    for layer in model.layers(padded(ROWS, "none")):
        if layer.index == depth - 1:
            break
    assert calls == Counter({"SelfAttention.forward": depth, "FeedForward.read": depth, "FeedForward.write": depth - 1})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shallow_model_holds_no_down_projection_in_its_last_layer_and_no_parameter_past_it(family):
    folder, _ = checkpoint(family, DEEP)
    names = {name for name, _ in sn.load_model(folder, 2).named_parameters()}
    assert any(name.startswith("blocks.0.feed_forward.down") for name in names)
    assert not any(name.startswith(("blocks.1.feed_forward.down", "blocks.2", "last_norm")) for name in names)
    assert sn.load_model(folder, 2).config.n_layers == DEEP.n_layers


def test_one_layers_activation_is_alive_at_a_time():
    model = sn.load_model(checkpoint("bert", DEEP)[0])
    earlier = []
    with torch.inference_mode():
        for layer in model.layers(padded(ROWS, "none")):
            gc.collect()
            assert all(activation() is None for activation in earlier)
            if layer.activation is not None:
                earlier.append(weakref.ref(layer.activation))
            del layer
    assert len(earlier) == DEEP.n_layers


@pytest.mark.parametrize("depth", [0, 6, -1, True, "2", 1.0])
def test_a_depth_outside_the_model_is_refused(depth, unchecked):
    with pytest.raises(sn.InputError, match=r"depth is .*; expected 1 to 5"):
        sn.load_model(checkpoint("bert", DEEP)[0], depth)

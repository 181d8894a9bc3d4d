"""config.json: what is not supported or makes no sense is refused by name, settings that change the arithmetic are followed."""

import shutil

import pytest
import torch
from tiny import (
    checkpoint,
    edit_config,
    largest_error,
    our_values,
    reference_model,
    reference_values,
    rows_of_every_length,
    values,
)

import spin_native as sn
from spin_native.text.batch import TokenBatch

ROWS = rows_of_every_length()


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_config_that_cannot_be_read_is_refused(family, folder):
    for content, message in (
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[1]", "holds a list; expected a JSON object"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ("{}".encode("utf-16"), "byte order mark"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too many levels deep"),
        (b'{"a": 1' + b"0" * 5_000 + b"}", "out of range"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": -Infinity}', "a is infinity, which JSON does not have"),
        (b'{"hidden_size": 16, "hidden_size": 32}', "has the key 'hidden_size' twice"),
        (b'{"a": [' + b"[]," * 2_000_000 + b"[]]}", "6000011 bytes; expected a JSON file of at most"),
    ):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(sn.InputError, match=message):
            values(folder)
    (folder / "config.json").unlink()
    with pytest.raises(sn.InputError, match=r"holds no config\.json"):
        values(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'; supported are roberta, bert, distilbert, gpt2, mpnet, xlm-roberta"),
        ({"model_type": ["bert"]}, "model_type is"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key', which this",
        ),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu'; supported are gelu, gelu_new, gelu_pytorch_tanh, relu"),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        ({"num_attention_heads": 3}, "a width of 16 cannot be split over 3 heads"),
        ({"type_vocab_size": 2**40}, "type_vocab_size is"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers is '3'; expected a whole number of at least 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected at most 1000$"),
        ({"hidden_size": -16}, "hidden_size is -16"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"vocab_size": 2**70}, "vocab_size is 1180591620717411303424; expected at most"),
        ({"hidden_act": "x" * 10_000}, r"hidden_act is 'x{56}\.\.\."),
        ({"intermediate_size": None}, "intermediate_size is None"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps is '1e-5'; expected a small positive number"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"hidden_size": 32}, "config.json implies"),
    ],
)
@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_config_that_is_not_supported_or_makes_no_sense_is_refused_by_name(family, folder, settings, message):
    edit_config(folder, **settings)
    with pytest.raises(sn.InputError, match=message):
        values(folder)


def test_roberta_without_a_usable_padding_id_is_refused(tmp_path):
    folder = shutil.copytree(checkpoint("roberta")[0], tmp_path / "roberta")
    for pad_id in (None, -1, 10**6):
        edit_config(folder, pad_token_id=pad_id)
        with pytest.raises(sn.InputError, match="pad_token_id is"):
            values(folder)


@pytest.mark.parametrize("value", ["false", 0, None])
def test_a_flag_of_gpt2_is_true_or_false(tmp_path, value):
    folder = shutil.copytree(checkpoint("gpt2")[0], tmp_path / "gpt2")
    edit_config(folder, scale_attn_weights=value)
    with pytest.raises(sn.InputError, match=f"scale_attn_weights is {value!r}; expected true or false"):
        values(folder)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("gpt2", {"reorder_and_upcast_attn": True}),
        ("gpt2", {"n_inner": None}),
        ("distilbert", {"sinusoidal_pos_embds": True}),
        ("bert", {"type_vocab_size": 1}),
        ("bert", {"layer_norm_eps": 1e-3}),
        ("roberta", {"pad_token_id": 0}),
        ("mpnet", {"pad_token_id": 0}),
        ("mpnet", {"layer_norm_eps": 1e-3}),
    ],
    indirect=["family"],
)
def test_settings_that_change_the_arithmetic_are_followed(family, settings, tmp_path):
    model = reference_model(family)
    for key, value in settings.items():
        setattr(model.config, key, value)
    if family != "gpt2" or "n_inner" in settings or "reorder_and_upcast_attn" not in settings:
        source = model.config.to_dict()
        source.pop("dtype", None)
        model = (
            type(model)._from_config(type(model.config)(**{**source, **settings}), attn_implementation="eager").double().eval()
        )
        with torch.no_grad():
            torch.manual_seed(1)
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, **settings)
    rows = [[i if i > 3 else 5 for i in row][:7] for row in ROWS]
    model.config._attn_implementation = "eager"
    if settings.get("reorder_and_upcast_attn"):
        model.config.reorder_and_upcast_attn = False  # its upcast to float32 is what float64 must not see
    ours = our_values(sn.load_model(str(tmp_path), dtype=torch.float64), TokenBatch.from_rows(rows))
    assert largest_error(ours, reference_values(model, rows)) <= 1e-12

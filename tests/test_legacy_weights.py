"""pytorch_model.bin: a pickle. Nothing in it is run, and anything else than plain tensors is refused and named."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from tiny import values

import spin_native as sn

NAME = "encoder.layer.1.intermediate.dense.weight"


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


class Evil:
    def __reduce__(self):
        return (print, ("owned",))


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_pickle_with_code_in_it_is_refused_and_not_run(family, folder, capsys):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(sn.InputError, match="damaged, or more than tensors in it"):
        values(folder, allow_pickle=True)
    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(sn.InputError, match="damaged, or more than tensors in it"):
        values(folder, allow_pickle=True)
    assert "owned" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [1, 2], "holds no state dict of tensors but a list"),
        (lambda t: {**t, 7: torch.zeros(2)}, "7 is a Tensor"),
        (lambda t: {"state_dict": t, "epoch": 3}, "'state_dict' is a dict.*save its 'state_dict' alone"),
        (
            lambda t: {**t, NAME: t[NAME].to_sparse()},
            f"{NAME} is a sparse, quantised or empty tensor",
        ),
        (lambda t: {**t, NAME: t[NAME].to("meta")}, "sparse, quantised or empty tensor"),
        (lambda t: {**t, NAME: t[NAME].to(torch.complex64)}, "stored as torch.complex64"),
        (lambda t: {**t, NAME: torch.zeros(1).expand(10**12)}, "config.json implies"),
    ],
)
@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_legacy_bin_of_anything_else_than_plain_tensors_is_refused(family, folder, change, message):
    torch.save(change(tensors_of(folder)), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(sn.InputError, match=message):
        values(folder, allow_pickle=True)


@pytest.mark.parametrize("family", ["bert"], indirect=True)
def test_a_legacy_bin_that_unpacks_to_more_than_its_size_is_refused(family, folder):
    torch.save({"x": torch.zeros(10**6)}, folder / "plain.bin")
    with (
        zipfile.ZipFile(folder / "plain.bin") as old,
        zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    (folder / "model.safetensors").unlink()
    with pytest.raises(sn.InputError, match=r"is compressed; expected a file that torch\.save wrote"):
        values(folder, allow_pickle=True)

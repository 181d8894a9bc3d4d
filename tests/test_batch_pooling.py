"""Ragged batches and pooling, against values computed row by row with plain torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spin_native as sn
from spin_native.features import pooling
from spin_native.text.batch import TokenBatch

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=12)
MASKED = {"mean": sn.masked_mean, "max": sn.masked_max, "first": sn.masked_first, "last": sn.masked_last}


def by_hand(rows: list[torch.Tensor], kind: str) -> torch.Tensor:
    """One row at a time."""
    pools = {"mean": lambda r: r.mean(0), "max": lambda r: r.amax(0), "first": lambda r: r[0], "last": lambda r: r[-1]}
    return torch.stack([pools[kind](row) for row in rows])


def negative_rows(row_lengths, width=5, dtype=torch.float64):
    """All values below zero: a maximum over padding that was set to zero would be zero."""
    generator = torch.Generator().manual_seed(sum(row_lengths))
    return [(-torch.rand(n, width, generator=generator) - 0.5).to(dtype) for n in row_lengths]


@settings(deadline=None, max_examples=40)
@given(lengths, st.sampled_from(["mean", "max", "first", "last"]))
def test_ragged_pooling_equals_pooling_row_by_row(row_lengths, kind):
    rows = negative_rows(row_lengths)
    batch = TokenBatch.from_rows([[7] * n for n in row_lengths])
    torch.testing.assert_close(pooling.POOLINGS[kind](torch.cat(rows), batch), by_hand(rows, kind), rtol=1e-14, atol=0)


@settings(deadline=None, max_examples=40)
@given(lengths, st.sampled_from(["mean", "max", "first", "last"]), st.sampled_from(["left", "right"]))
def test_masked_pooling_ignores_whatever_stands_in_the_padding(row_lengths, kind, side):
    rows = negative_rows(row_lengths)
    width = max(row_lengths)
    x, mask = torch.full((len(rows), width, 5), float("nan"), dtype=torch.float64), torch.zeros(len(rows), width)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        x[index, place], mask[index, place] = row, 1
    torch.testing.assert_close(MASKED[kind](x, mask), by_hand(rows, kind), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("kind", "plant"),
    [
        ("mean", lambda x, mask: (x, torch.ones_like(mask))),  # counts pads
        ("max", lambda x, mask: (x * mask[..., None], torch.ones_like(mask))),  # maximum over padding set to zero
    ],
)
def test_a_planted_pooling_bug_is_seen(kind, plant, monkeypatch):
    rows = negative_rows([2, 5])
    x, mask = torch.zeros(2, 5, 5, dtype=torch.float64), torch.tensor([[1, 1, 0, 0, 0], [1] * 5])
    x[0, :2], x[1] = rows
    assert torch.allclose(MASKED[kind](x, mask), by_hand(rows, kind))
    true = pooling._ragged
    monkeypatch.setattr(pooling, "_ragged", lambda x, mask, caller: true(*plant(x, mask), caller))
    assert not torch.allclose(MASKED[kind](x, mask), by_hand(rows, kind))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float32(dtype):
    rows = negative_rows([3, 900], dtype=dtype)
    batch = TokenBatch.from_rows([[1] * 3, [1] * 900])
    pooled = pooling.mean(torch.cat(rows), batch)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled.double(), by_hand([r.double() for r in rows], "mean"), rtol=1e-6, atol=0)


def test_pooling_is_differentiable():
    batch = TokenBatch.from_rows([[1, 2], [3, 4, 5]])
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for kind in pooling.POOLINGS.values():
        torch.autograd.gradcheck(lambda x, kind=kind: kind(x, batch), x)


@pytest.mark.parametrize("masked", MASKED.values())
def test_a_row_that_is_all_padding_is_refused(masked):
    with pytest.raises(sn.InputError, match="row 1 is all padding"):
        masked(torch.zeros(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]]))


def test_masks_that_are_no_masks_are_refused(unchecked):
    ids = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(sn.InputError, match="other than 0 and 1"):
        TokenBatch.from_padded(ids, torch.tensor([[1, 2, 0], [1, 1, 1]]))
    with pytest.raises(sn.InputError, match="row 0 has a hole"):
        TokenBatch.from_padded(ids, torch.tensor([[1, 0, 1], [1, 1, 1]]))
    with pytest.raises(sn.InputError, match="row 1 is all padding"):
        TokenBatch.from_padded(ids, torch.tensor([[1, 0, 0], [0, 0, 0]]))
    with pytest.raises(sn.InputError, match=r"expected both \[batch, position\]"):
        TokenBatch.from_padded(ids, torch.ones(2, 4))
    with pytest.raises(sn.InputError, match=r"expected \[batch, position, width\]"):
        sn.masked_mean(torch.zeros(2, 3, 4), torch.ones(2, 4))
    with pytest.raises(sn.InputError, match="at least one"):
        TokenBatch.from_rows([[1], []])


@settings(deadline=None, max_examples=40)
@given(lengths, st.booleans())
def test_to_padded_gives_the_padded_tensor_back(row_lengths, left):
    width = max(row_lengths)
    place = torch.arange(width)[None, :]
    n = torch.tensor(row_lengths)[:, None]
    mask = place >= width - n if left else place < n
    ids = torch.arange(1, mask.numel() + 1).view(mask.shape) * mask
    batch = TokenBatch.from_padded(ids, mask.long())
    assert torch.equal(batch.to_padded(batch.ids), ids)


@settings(deadline=None, max_examples=60)
@given(lengths)
def test_the_runs_hold_every_row_once_with_rows_of_one_length_side_by_side(row_lengths):
    batch = TokenBatch.from_rows([[1] * n for n in row_lengths])
    order = torch.arange(batch.n_tokens) if batch.longest_first is None else batch.longest_first
    rows = [
        batch.row_of_token[order][start : start + run.length].tolist()
        for run in batch.runs
        for start in range(run.start, run.start + run.n_rows * run.length, run.length)
    ]
    assert all(len(set(row)) == 1 and row_lengths[row[0]] == len(row) for row in rows)
    assert sorted(row[0] for row in rows) == list(range(len(row_lengths)))
    assert len({run.length for run in batch.runs}) == len(batch.runs)
    if batch.input_order is not None:
        assert torch.equal(order[batch.input_order], torch.arange(batch.n_tokens))
    assert batch.bounds.tolist() == [sum(row_lengths[:n]) for n in range(len(row_lengths) + 1)]

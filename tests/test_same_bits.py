"""Same text, same bits: whatever batch, order, block, store or number of threads a text is computed in (docs/promises.md).

`benchmarks/same_bits.py` is the long form: a thousand partitions of real texts.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import Shape, reference_model
from torch import Tensor

import spin_native as sn
from spin_native.checkpoints import Checkpoint, Location
from spin_native.classifier.deployed import Deployed
from spin_native.classifier.exits import Exit
from spin_native.classifier.fitting import Standardizer
from spin_native.classifier.heads import HEADS, ConstantHead, RefitHead
from spin_native.classifier.heads.weighted import Perceptron
from spin_native.classifier.tasks import Classes, Values
from spin_native.features import extract as extracting
from spin_native.features.pooling import POOLINGS
from spin_native.features.store import FeatureKey
from spin_native.models import fast
from spin_native.models.attention import Attention
from spin_native.models.fast import FusedAttention, ReorderedLinear
from spin_native.probes.importance import Cut
from spin_native.text.batch import TokenBatch

DTYPES = (torch.float32, torch.bfloat16)
TASKS = (Classes(np.arange(2)), Classes(np.arange(3)), Values())
pytestmark = pytest.mark.skipif(not fast._works(torch.float32), reason="this torch or CPU does not reorder weights")

# Widths that are no multiple of what registers hold: family -> sizes, and settings of transformers' config.
ODD = {
    "roberta": (Shape(2, 3, 24, 50), {"max_position_embeddings": 66}),
    "bert": (Shape(2, 2, 66, 101), {"max_position_embeddings": 64}),
    "gpt2": (Shape(2, 2, 40, 77), {"n_positions": 64}),
    "distilbert": (Shape(2, 1, 12, 37), {"max_position_embeddings": 64, "activation": "relu"}),
    "mpnet": (Shape(2, 3, 36, 129), {"max_position_embeddings": 66}),
}


@pytest.fixture(autouse=True)
def _without_shape_checks(unchecked):
    """They cost more time than the arithmetic."""


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request) -> Iterator[int]:
    """Sums that are split over threads have other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def bits(array):
    """Numbers as the bytes they are: 0.0 and -0.0 differ."""
    array = array.contiguous().view(torch.uint8).numpy() if isinstance(array, Tensor) else np.ascontiguousarray(array)
    return array.view(np.uint8).reshape(len(array), -1)


def some(random, n_rows):
    """One row to all, shuffled, some of them twice."""
    rows = random.permutation(n_rows)[: random.integers(1, n_rows + 1)]
    return np.append(rows, rows[: random.integers(0, 3)]).tolist()


# Whole models.


def pooled(model, rows):
    """(site, pooling, layer) -> one value per row of ids, all in one batch."""
    batch, values = TokenBatch.from_rows(rows), {}
    with torch.inference_mode():
        for layer in model.layers(batch):
            for site, read in (("hidden", layer.hidden), ("activation", layer.activation)):
                if read is not None:
                    values |= {(site, name, layer.index): pool(read, batch) for name, pool in POOLINGS.items()}
    return values


@pytest.fixture(scope="module", params=ODD)
def odd_folder(request, tmp_path_factory):
    shape, settings = ODD[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    reference_model(request.param, shape, **settings).float().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_models_of_odd_widths_give_a_row_the_same_bits_alone_and_in_every_batch(odd_folder, dtype, threads, random):
    model = sn.load_model(odd_folder, dtype=dtype, prepack=True)
    rows = [random.integers(4, 50, n).tolist() for n in random.integers(1, 60, 25)]
    alone = [pooled(model, [row]) for row in rows]
    for _ in range(6):
        chosen = some(random, len(rows))
        for feature, values in pooled(model, [rows[row] for row in chosen]).items():
            expected = np.concatenate([bits(alone[row][feature]) for row in chosen])
            assert np.array_equal(bits(values), expected), feature


@pytest.mark.parametrize(
    ("dtype", "prepack", "bound"),
    [
        (torch.float32, False, 5e-6),
        (torch.bfloat16, False, 5e-2),
        (torch.float16, "auto", 7e-3),
        (torch.float64, "auto", 1e-12),
        (torch.float64, False, 1e-12),
    ],
    ids=str,
)
def test_on_the_paths_without_the_promise_a_row_differs_by_rounding_only(odd_folder, dtype, prepack, bound, random):
    model = sn.load_model(odd_folder, dtype=dtype, prepack=prepack)
    rows = [random.integers(4, 50, n).tolist() for n in random.integers(1, 60, 15)]
    together, alone = pooled(model, rows), [pooled(model, [row]) for row in rows]
    for feature, values in together.items():
        expected = torch.cat([one[feature] for one in alone]).double()
        assert (values.double() - expected).norm() <= bound * expected.norm(), feature


@pytest.fixture(scope="module")
def texts():
    """60 texts of 1 to 40 words."""
    words = (
        "the",
        "movie",
        "was",
        "great",
        ",",
        "a",
        "bore",
        "and",
        "not",
        "much",
        "fun",
        "to",
        "watch",
        "twice",
        "with",
        "friends",
    )
    random = np.random.default_rng(1)
    return [" ".join(random.choice(words, n)) for n in random.integers(1, 40, 60)]


class Interrupted(Exception):
    pass


def interrupted(texts, n_texts):
    yield from texts[:n_texts]
    raise Interrupted


def extracted(model, tokenizer, texts, way, store, **how):
    """Every feature of every layer, side by side."""
    how |= {"sites": ("activation", "hidden"), "poolings": tuple(POOLINGS), "store": store if "store" in way else None}
    if way == "interrupted store":
        with suppress(Interrupted):
            sn.extract(model, tokenizer, interrupted(texts, len(texts) // 2), **how)
    features = sn.extract(model, tokenizer, iter(texts) if way == "stream" else texts, progress=False, **how)
    return np.concatenate([features.array(**feature._asdict()) for feature in features.widths], axis=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_text_has_the_same_features_in_every_partition(minilm, texts, dtype, threads, random, tmp_path, monkeypatch):
    model, tokenizer = sn.load_model(str(minilm), depth=2, dtype=dtype, prepack=True), sn.load_tokenizer(str(minilm))
    expected = bits(extracted(model, tokenizer, texts, "list", None))
    for way in ("list", "stream", "store", "interrupted store"):
        for _ in range(2):
            monkeypatch.setattr(extracting, "WINDOW", int(random.integers(5, 80)))
            rows, max_tokens = some(random, len(texts)), int(random.integers(40, 2000))
            given = [texts[row] for row in rows]
            folder = tmp_path / f"{random.integers(2**60)}"
            assert np.array_equal(bits(extracted(model, tokenizer, given, way, folder, max_tokens=max_tokens)), expected[rows])


def test_one_and_two_threads_give_the_same_bits(minilm, texts):
    tokenizer, before, given = sn.load_tokenizer(str(minilm)), torch.get_num_threads(), []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        models = [sn.load_model(str(minilm), depth=2, dtype=dtype, prepack=True) for dtype in DTYPES]
        given.append([bits(extracted(model, tokenizer, texts, "list", None)) for model in models])
    torch.set_num_threads(before)
    assert all(np.array_equal(one, two) for one, two in zip(*given, strict=True))


# Classifiers.


def random_head(kind, task, depth, d_ffn, random):
    """A head over some neurons of the first layers, with random weights."""
    neurons = {
        FeatureKey("activation", pooling, layer): np.sort(random.permutation(d_ffn)[: 0 if kind == "constant" else 11])
        for layer in range(depth)
        for pooling in ("mean", "max")
    }
    width = sum(map(len, neurons.values()))
    standardizer = Standardizer(np.zeros(width, np.float32), random.uniform(0.05, 0.2, width).astype(np.float32))
    if kind == "weighted":
        sizes = (width, 64, 32, task.n_scores)
        weights = tuple(random.normal(size=shape) / shape[0] ** 0.5 for shape in pairwise(sizes))
        model = Perceptron(weights, tuple(random.normal(size=size) for size in sizes[1:]))
    else:
        model = task.probe_type.from_weights(random.normal(size=(task.n_scores, width)) / 3, random.normal(size=task.n_scores))
    return {**HEADS, "constant": ConstantHead}[kind](task, Cut("top_k", 11), neurons, standardizer, model)


def check_outputs(folder, texts, kind, task, dtype, depths_of_heads, random, monkeypatch):
    """Outputs and exit depths of random partitions of the texts, against each text alone."""
    checkpoint = Checkpoint(Location(str(folder)))
    heads = {depth: random_head(kind, task, depth, checkpoint.config.d_ffn, random) for depth in depths_of_heads}
    deployed = Deployed(checkpoint, heads, dtype, "cpu")

    def run(rows, exit_):
        blocks = deployed.blocks([texts[row] for row in rows], Exit.parse(exit_), False)
        return tuple(np.concatenate(parts) for parts in zip(*blocks, strict=True))

    exits = ("fixed",) if isinstance(task, Values) or kind == "constant" else ("confidence:0.8", "patience:1", "fixed")
    for exit_ in exits:
        outputs, depths = (
            np.concatenate(parts) for parts in zip(*(run([row], exit_) for row in range(len(texts))), strict=True)
        )
        assert kind == "constant" or len(set(map(bytes, bits(outputs)))) > 1
        for _ in range(2):
            rows = some(random, len(texts))
            monkeypatch.setattr(extracting, "WINDOW", int(random.integers(5, 80)))
            monkeypatch.setattr(deployed.extractor, "max_tokens", int(random.integers(20, 1000)))
            now, depths_now = run(rows, exit_)
            assert np.array_equal(depths_now, depths[rows]), exit_
            assert np.array_equal(bits(now), bits(outputs[rows])), exit_


@pytest.mark.parametrize("task", TASKS, ids=["2 classes", "3 classes", "values"])
@pytest.mark.parametrize("kind", [*HEADS, "constant"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_head_and_exit_gives_a_text_the_same_label_and_probabilities(
    tiny_model, reviews, kind, task, dtype, threads, random, monkeypatch
):
    check_outputs(tiny_model, sorted(set(reviews[0]))[:12], kind, task, dtype, (1, 2, 3), random, monkeypatch)


@pytest.mark.parametrize("kind", ["refit", "weighted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_heads_on_real_weights_give_a_text_the_same_label_and_probabilities(
    minilm, texts, kind, dtype, threads, random, monkeypatch
):
    check_outputs(minilm, texts[:8], kind, TASKS[1], dtype, (1, 2), random, monkeypatch)


# Parts.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("d_in", "d_out"), [(16, 48), (33, 45), (384, 1536), (1536, 384)])
def test_a_token_has_the_same_bits_alone_and_among_others(d_in, d_out, dtype, threads):
    generator = torch.Generator().manual_seed(0)
    weight, bias, x, residual = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((d_out, d_in), (d_out,), (40, d_in), (40, d_out))
    )
    linear = ReorderedLinear(weight, bias, "gelu")
    with torch.inference_mode():
        for n in (1, 2, 3, 17):
            assert torch.equal(linear(x[:n]), linear(x)[:n])
            assert torch.equal(linear(x[:n], residual[:n]), linear(x, residual)[:n])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n_heads", "d_head"), [(1, 8), (1, 64), (2, 16), (2, 33), (2, 64), (3, 8), (12, 26)])
def test_attention_gives_a_row_the_same_bits_in_every_batch(n_heads, d_head, causal, dtype, threads, random):
    check_attention(random.integers(1, 40, 30).tolist(), n_heads, d_head, causal, dtype, random)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_gives_a_row_the_same_bits_beside_rows_of_several_blocks_of_keys(dtype, threads, random):
    """torch's kernel sums 512 keys at a time."""
    check_attention([600, 520, 300, *random.integers(1, 60, 7).tolist()], 2, 33, False, dtype, random)


def check_attention(lengths, n_heads, d_head, causal, dtype, random):
    """Rows of random numbers: some alone and some random batches, against all together."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(3, sum(lengths), n_heads * d_head, generator=generator).to(dtype)
    attention = FusedAttention(Attention(n_heads, scale=d_head**-0.5, causal=causal), fast._Masks())
    with torch.inference_mode():
        together = attention(*parts, TokenBatch.from_rows([[1] * n for n in lengths])).split(lengths)
        for rows in [*([row] for row in range(10)), *(some(random, len(lengths)) for _ in range(10))]:
            chosen = [torch.cat([part.split(lengths)[row] for row in rows]) for part in parts]
            batch = TokenBatch.from_rows([[1] * lengths[row] for row in rows])
            for row, values in zip(rows, attention(*chosen, batch).split(batch.lengths), strict=True):
                assert torch.equal(values, together[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_of_zeros_of_both_signs_is_zero_in_every_batch(dtype):
    x = torch.tensor([[0.0, -0.0], [-0.0, 0.0], [-0.0, -0.0], [-1.0, -0.0]], dtype=dtype).repeat(1, 40)
    among = sn.pooling.max(torch.cat([x, x]), TokenBatch.from_rows([[1] * 4] * 2))
    alone = sn.pooling.max(x, TokenBatch.from_rows([[1] * 4]))
    assert np.array_equal(bits(among), np.zeros((2, 80 * 4), np.uint8))
    assert np.array_equal(bits(alone), np.zeros((1, 80 * 4), np.uint8))


@pytest.mark.parametrize("task", TASKS, ids=["2 classes", "3 classes", "values"])
@pytest.mark.parametrize("coef_dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n_neurons", [1, 37, 1000, 9000])
def test_a_linear_head_gives_a_row_the_same_bits_alone_and_among_others(n_neurons, coef_dtype, task, random):
    coef = random.normal(size=(task.n_scores, n_neurons)).astype(coef_dtype)
    standardizer = Standardizer(*random.uniform(1, 2, (2, n_neurons)).astype(np.float32))
    neurons = {FeatureKey("activation", "mean", 0): np.arange(n_neurons)}
    model = task.probe_type.from_weights(coef, np.zeros(task.n_scores))
    head = RefitHead(task, Cut("top_k", n_neurons), neurons, standardizer, model)
    features = random.normal(size=(40, n_neurons)).astype(np.float32)
    among = head.output(features)
    for row in range(40):
        assert np.array_equal(head.output(np.asfortranarray(features)[row : row + 1])[0], among[row])

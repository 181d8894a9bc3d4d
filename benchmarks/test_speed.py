"""Speed of the parts, by pytest-benchmark: `python -m pytest benchmarks --benchmark-enable`.

conftest.py prints the environment first, and one JSON line last: medians, and our forward pass against transformers and against
the machine's limit.
"""

import pytest
import torch
from contenders import hooked_transformers, padded_batches, run_batches
from inputs import Rows, demo_weights
from machine import Limit

import spin_native as sn


@pytest.fixture(scope="module")
def rows() -> Rows:
    """About 1,000 tokens in rows of tweet length (lognormal, median 22), longest first."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(40).log_normal_(3.1, 0.5, generator=generator).clamp(4, 128).int().sort(descending=True).values
    return [torch.randint(1000, 30000, (int(n),), generator=generator).tolist() for n in lengths]


@pytest.fixture(scope="module")
def tweets(rows) -> sn.TokenBatch:
    return sn.TokenBatch.from_rows(rows)


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_forward_to_depth(benchmark, tweets, depth):
    model = sn.load_model(str(demo_weights()), depth)

    def run():
        with torch.inference_mode():
            for layer in model.layers(tweets):
                if layer.index == depth - 1:
                    break
            return sn.pooling.mean(layer.activation, tweets)

    assert benchmark(run).shape == (tweets.n_rows, model.config.d_ffn)


def test_peer_transformers_all_layers(benchmark, rows):
    hooked = hooked_transformers(demo_weights(), add_pooling_layer=False)
    ((means, _),) = benchmark(run_batches(hooked, padded_batches(rows, max_tokens=10**6)))
    assert means.shape[1] == len(rows)


def test_limit_bare_products_of_all_layers(benchmark, rows):
    config = sn.load_model(str(demo_weights()), 1).config
    limit = Limit(config, torch.float32, n_tokens=(sum(map(len, rows)),))
    n_layers, n_layers_of_limit = config.n_layers, len(limit.weights)
    limit.weights = [limit.weights[layer % n_layers_of_limit] for layer in range(n_layers)]
    benchmark(limit.run)


@pytest.mark.parametrize("kind", list(sn.pooling.POOLINGS))
def test_pooling_of_one_layer(benchmark, tweets, kind):
    activation = torch.rand(tweets.n_tokens, 3072)
    assert benchmark(sn.pooling.POOLINGS[kind], activation, tweets).shape == (tweets.n_rows, 3072)

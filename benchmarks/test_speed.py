"""Speed of the parts, by pytest-benchmark: `python -m pytest benchmarks --benchmark-enable`."""

import pytest
import torch

import spin_native as sn
from spin_native.cli.demo import demo_weights
from spin_native.features import pooling
from spin_native.text.batch import TokenBatch


@pytest.fixture(scope="module")
def tweets() -> TokenBatch:
    """About 1,000 tokens in rows of tweet length (lognormal, median 22), longest first."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(40).log_normal_(3.1, 0.5, generator=generator).clamp(4, 128).int().sort(descending=True).values
    return TokenBatch.from_rows([torch.randint(1000, 30000, (int(n),), generator=generator).tolist() for n in lengths])


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_forward_to_depth(benchmark, tweets, depth):
    model = sn.load_model(str(demo_weights()), depth)

    def run():
        with torch.inference_mode():
            for layer in model.layers(tweets):
                if layer.index == depth - 1:
                    break
            return pooling.mean(layer.activation, tweets)

    assert benchmark(run).shape == (tweets.n_rows, model.config.d_ffn)


@pytest.mark.parametrize("kind", list(pooling.POOLINGS))
def test_pooling_of_one_layer(benchmark, tweets, kind):
    activation = torch.rand(tweets.n_tokens, 3072)
    assert benchmark(pooling.POOLINGS[kind], activation, tweets).shape == (tweets.n_rows, 3072)

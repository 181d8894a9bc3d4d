"""Shared fixtures: a tiny trained-looking BERT with a vocabulary of ordinary words, reviews over it, the demo's weights."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
import transformers
from tiny import FAMILIES, QUICK, checkpoint

import spin_native as sn
from spin_native.cli.demo import demo_weights

GOOD, BAD = ("good", "nice", "fine", "lovely"), ("bad", "awful", "poor", "sad")
FILLERS = ("the", "film", "food", "was", "a", "very", "room", "and")
VOCAB = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *FILLERS, "not", ",", ".")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the shape checks that the suite puts in front of every function: a user has none."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The demo's weights; skips where they are not installed."""
    try:
        return demo_weights()
    except sn.InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of 3 layers and a vocab.txt."""
    folder = tmp_path_factory.mktemp("tiny-model")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCAB),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return folder


@pytest.fixture(scope="session")
def reviews() -> tuple[list[str], list[str]]:
    """80 texts whose label follows from their words."""
    texts, labels = [], []
    for row in range(80):
        label, words = ("negative", BAD) if row % 2 else ("positive", GOOD)
        filler = [FILLERS[(row * 7 + i * 3) % len(FILLERS)] for i in range(2 + row % 5)]
        filler.insert(row % len(filler), words[row // 2 % len(words)])
        texts.append(" ".join(filler))
        labels.append(label)
    return texts, labels


@pytest.fixture(scope="session")
def fitted(tiny_model: Path, reviews: tuple[list[str], list[str]]) -> sn.SpinClassifier:
    """A classifier with SPIN's published head, fitted on the reviews."""
    return sn.SpinClassifier(str(tiny_model), head="refit").fit(*reviews)


@pytest.fixture
def saved(fitted: sn.SpinClassifier, tmp_path: Path) -> Path:
    """A folder the fitted classifier is saved in, free to be damaged."""
    fitted.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every family in turn."""
    return request.param


@pytest.fixture
def folder(family: str, tmp_path: Path) -> Path:
    """A copy of the family's tiny checkpoint, free to be damaged."""
    return shutil.copytree(checkpoint(family)[0], tmp_path / family)


@pytest.fixture(scope="session")
def texts(reviews: tuple[list[str], list[str]]) -> list[str]:
    """The reviews, each made different from the others."""
    return [f"{text} {'not' * (row % 2)} . {', ' * (row // 9)}" for row, text in enumerate(reviews[0])]


@pytest.fixture(scope="session")
def labels(reviews: tuple[list[str], list[str]]) -> list[str]:
    """Their labels."""
    return reviews[1]


@pytest.fixture(scope="session")
def clf(tiny_model: Path, texts: list[str], labels: list[str]) -> sn.SpinClassifier:
    """A fitted classifier with two heads."""
    return sn.SpinClassifier(tiny_model, exits=(1,), **QUICK).fit(texts, labels)

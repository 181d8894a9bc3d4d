"""The recipes of docs/research.md run as they are written, each in at most five lines."""

import re
from pathlib import Path

import pytest
import tokenizers
import transformers
from test_docs import blocks

RECIPES = [content for language, content in blocks("docs/research.md") if language == "python"]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A folder with a random GPT-2 whose vocabulary has the words of the recipes."""
    folder = tmp_path_factory.mktemp("gpt2")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["The capital of France is Paris"] * 9, trainer)
    backend.model.save(str(folder))
    config = transformers.GPT2Config(vocab_size=backend.get_vocab_size(), n_embd=16, n_layer=2, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_every_recipe_has_at_most_five_lines():
    assert len(RECIPES) >= 6
    for recipe in RECIPES:
        assert len(recipe.splitlines()) <= 5, recipe


def test_the_recipes_run(gpt2, minilm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("good", "bad")
    names = {
        "texts": [f"the {place} was {words[row % 2]} {row}" for row in range(80) for place in ("film", "food")],
        "labels": [words[row % 2] for row in range(80) for _ in range(2)],
    }
    local = {"sentence-transformers/all-MiniLM-L6-v2": str(minilm), "gpt2": str(gpt2)}
    for recipe in RECIPES:
        code = re.sub(r'"([^"\n]+)"', lambda match: repr(local.get(match[1], match[1])), recipe)
        exec(compile(code, "docs/research.md", "exec"), names)
    assert {path.name for path in Path().iterdir()} >= {"tokens.parquet", "gradients.csv"}
    assert names["seen"].tokens == ["[CLS]", "the", "movie", "was", "great", ".", "[SEP]"]
    assert len(names["lens"].words) == 2 + 1
    assert names["gradients"]["gradient"].shape == (1, 1, 2, 64)
    assert capsys.readouterr().out

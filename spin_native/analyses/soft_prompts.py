"""Soft prompts: a few trained vectors beside each text, on a frozen language model (Lester et al. 2021; Wang et al. 2022).

A masked language model reads [mask, p_1 ... p_P, text] and answers at the mask. A causal one sees only what came before: it
reads [text, p_1 ... p_P] and answers at the last prompt vector. The answer is the most probable of a few words, one per label.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spin_native.analyses.ablation import Ablation
from spin_native.analyses.labels import Labels, encoded_labels
from spin_native.disk import write_file
from spin_native.errors import InputError
from spin_native.given import checked_texts
from spin_native.models import Transformer
from spin_native.models.heads import CausalHead
from spin_native.models.transformer import Edit
from spin_native.text.batch import TokenBatch
from spin_native.text.packing import pack
from spin_native.text.tokenizer import Tokenizer

PROMPT = "prompt.safetensors"


@dataclass(frozen=True)
class PromptedRows:
    """Texts between their mask and prompt vectors, as one batch.

    batch: its ids hold any word where a prompt vector belongs. prompt_tokens: where the prompt vectors are, row by row.
    answer_tokens: where each row's answer is read.
    """

    batch: TokenBatch
    prompt_tokens: Int[Tensor, "row prompt"]
    answer_tokens: Int[Tensor, "row"]


class PromptLayout:
    """Where mask, prompt vectors and text stand, for one model and its tokenizer.

    Raises InputError for a model without a language-model head, for a masked one whose tokenizer has no mask token, and if
    the prompt leaves no room for a text.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, n_prompts: int) -> None:
        if model.head is None:
            raise InputError("a prompt is answered by the language-model head: use load_model(..., head=True)")
        self.model, self.tokenizer, self.n_prompts = model, tokenizer, n_prompts
        self.mask_id = None if isinstance(model.head, CausalHead) else tokenizer.mask_id
        if self.mask_id is None and not isinstance(model.head, CausalHead):
            raise InputError("a masked language model answers at a mask token, but the tokenizer has none: use the model's own")
        self.max_text_tokens = model.config.max_tokens - n_prompts - (self.mask_id is not None)
        if n_prompts < 1 or self.max_text_tokens < 1:
            raise InputError(
                f"n_prompts is {n_prompts}; expected 1 or more, and fewer than the {model.config.max_tokens} tokens that the "
                "model holds"
            )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, cut to the room that the prompt leaves; the last special token stays."""
        rows = self.tokenizer.encode(texts).ids
        keep_end = int(self.mask_id is not None)  # masked language models end a text with a special token
        cut = [row[: self.max_text_tokens - keep_end] + row[len(row) - keep_end :] for row in rows]
        return [short if len(row) > self.max_text_tokens else row for row, short in zip(rows, cut, strict=True)]

    def rows(self, ids: Sequence[Sequence[int]]) -> PromptedRows:
        """Rows of token ids as one batch."""
        places, prompts, before = [], [self.tokenizer_filler] * self.n_prompts, [] if self.mask_id is None else [self.mask_id]
        laid_out = []
        start = 0
        for row in ids:
            laid_out.append([*before, *prompts, *row] if before else [*row, *prompts])
            first = start + (len(before) if before else len(row))
            places.append(range(first, first + self.n_prompts))
            start += len(laid_out[-1])
        batch = TokenBatch.from_rows(laid_out, self.model.device)
        prompt_tokens = torch.tensor([list(place) for place in places], device=self.model.device)
        return PromptedRows(batch, prompt_tokens, batch.starts if before else prompt_tokens[:, -1])

    @property
    def tokenizer_filler(self) -> int:
        """An id that stands where a prompt vector belongs: any but the padding id, which moves RoBERTa's positions."""
        return 0 if self.model.config.pad_id != 0 else 1

    def logits(
        self,
        rows: PromptedRows,
        vectors: Float[Tensor, "prompt d_model"],
        word_ids: Int[Tensor, "label"],
        edit: Edit | None = None,
    ) -> Float[Tensor, "row label"]:
        """The logit of every label's word at each row's answer."""
        embedded = self.model.embed(rows.batch, self.words(rows, vectors))
        for layer in self.model.layers(rows.batch, embedded=embedded, edit=edit):
            last = layer
        return self.model.logits(last.hidden[rows.answer_tokens])[:, word_ids]

    def words(self, rows: PromptedRows, vectors: Float[Tensor, "prompt d_model"]) -> Float[Tensor, "token d_model"]:
        """The batch's word vectors, the prompt's in their places."""
        words = self.model.embedding.word(rows.batch.ids)
        n_rows = len(rows.answer_tokens)
        return words.index_put((rows.prompt_tokens.flatten(),), vectors.to(words.dtype).repeat(n_rows, 1))

    def batches(self, ids: Sequence[Sequence[int]], max_tokens: int) -> Iterator[tuple[list[int], PromptedRows]]:
        """Rows of similar length under a token budget: which rows, and the batch."""
        for chosen in pack([len(row) + self.n_prompts + 1 for row in ids], max_tokens):
            yield chosen, self.rows([ids[row] for row in chosen])


@dataclass(frozen=True)
class SoftPrompt:
    """A trained prompt.

    vectors: in place of word vectors. labels, words: what each label is answered with. validation: its accuracy on the
    validation rows. settings: of the training. model_fingerprint: sha256 of the weights it was trained on, with the head's.
    """

    vectors: Float[Tensor, "prompt d_model"]
    labels: tuple[Any, ...]
    words: tuple[str, ...]
    word_ids: tuple[int, ...]
    validation: float
    settings: dict[str, Any]
    model_fingerprint: str

    def predict(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        *,
        edit: Edit | None = None,
        max_tokens: int = 4096,
    ) -> Float[np.ndarray, "row label"]:
        """The probability of each label's word, among the labels' words, for every text."""
        layout = self.layout(model, tokenizer)
        ids = layout.encode(checked_texts(texts, "texts"))
        return probabilities(layout, ids, self.vectors, self.word_ids, max_tokens, edit)

    def layout(self, model: Transformer, tokenizer: Tokenizer) -> PromptLayout:
        """How this prompt stands beside a text; InputError for another model than it was trained on."""
        layout, source = PromptLayout(model, tokenizer, len(self.vectors)), model.source
        if source is not None and self.model_fingerprint not in ("", source.fingerprint(model.depth, head=True)):
            raise InputError(
                f"the prompt was trained on other weights (sha256 {self.model_fingerprint[:12]}...) than {source.name} has: "
                "load the model that it was trained on, or train a prompt on this one"
            )
        return layout

    def score(
        self, model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], labels: Labels, *, edit: Edit | None = None
    ) -> float:
        """Accuracy on labelled texts."""
        answers = self.predict(model, tokenizer, texts, edit=edit).argmax(1)
        return float((answers == encoded_labels(labels, self.labels, len(texts), "labels")).mean())

    def save(self, folder: str | Path) -> None:
        """Write `prompt.safetensors`; what is not a tensor is JSON in its header. The file appears whole or not at all."""
        described = {name: value for name, value in asdict(self).items() if name != "vectors"}
        write_tensors(Path(folder) / PROMPT, {"vectors": self.vectors}, described)

    @classmethod
    def load(cls, folder: str | Path) -> "SoftPrompt":
        """A saved prompt; InputError if the file is missing or damaged."""
        tensors, described = read_tensors(Path(folder) / PROMPT)
        try:
            described = {name: tuple(value) if isinstance(value, list) else value for name, value in described.items()}
            return cls(vectors=tensors["vectors"], **described)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{Path(folder) / PROMPT}: not a prompt that spin_native saved ({error}); train it again"
            ) from error


def probabilities(
    layout: PromptLayout,
    ids: Sequence[Sequence[int]],
    vectors: Float[Tensor, "prompt d_model"],
    word_ids: Sequence[int],
    max_tokens: int,
    edit: Edit | None = None,
) -> Float[np.ndarray, "row label"]:
    """The probability of each label's word among these words, while `edit` changes neurons."""
    if isinstance(edit, Ablation):
        edit.check(layout.model)
    answers = np.empty((len(ids), len(word_ids)))
    chosen_words = torch.tensor(word_ids, device=layout.model.device)
    with torch.inference_mode():
        for chosen, rows in layout.batches(ids, max_tokens):
            logits = layout.logits(rows, vectors.to(layout.model.device), chosen_words, edit)
            answers[chosen] = logits.double().softmax(1).cpu().numpy()
    return answers


def write_tensors(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    """Tensors, with JSON in the file's header; whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda partial: save_file(plain, partial, {"spin_native": json.dumps(described)}))
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error}); choose another folder or make room") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote; InputError if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})["spin_native"])
            return {name: file.get_tensor(name) for name in file.keys()}, described  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no file that spin_native saved, or damaged ({error}); train again") from error

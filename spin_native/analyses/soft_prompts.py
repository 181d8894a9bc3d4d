"""Soft prompts: a few trained vectors beside each text, on a frozen language model (Lester et al. 2021; Wang et al. 2022).

A masked language model reads [mask, p_1 ... p_P, text] and answers at the mask. A causal one sees only what came before: it
reads [text, p_1 ... p_P] and answers at the last prompt vector. The answer is the most probable of a few words, one per label.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from spin_native.analyses.ablation import Ablation
from spin_native.analyses.prompts import check_model
from spin_native.disk import write_file
from spin_native.errors import InputError
from spin_native.given import checked_texts, is_number, is_whole
from spin_native.models import Transformer
from spin_native.models.heads import CausalHead
from spin_native.models.transformer import Edit
from spin_native.text.batch import TokenBatch
from spin_native.text.packing import pack
from spin_native.text.tokenizer import Tokenizer

Labels = Sequence[Any] | Shaped[np.ndarray, "_"]
PROMPT_STD = 1 / 30  # of the vectors before training (Wang et al. 2022)
PROMPT, STATE = "prompt.safetensors", "training.safetensors"


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
        return _probabilities(layout, ids, self.vectors, self.word_ids, max_tokens, edit)

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
        _save(Path(folder) / PROMPT, {"vectors": self.vectors}, described)

    @classmethod
    def load(cls, folder: str | Path) -> "SoftPrompt":
        """A saved prompt; InputError if the file is missing or damaged."""
        tensors, described = _load(Path(folder) / PROMPT)
        try:
            described = {name: tuple(value) if isinstance(value, list) else value for name, value in described.items()}
            return cls(vectors=tensors["vectors"], **described)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{Path(folder) / PROMPT}: not a prompt that spin_native saved ({error}); train it again"
            ) from error


def tune_prompt(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    labels: Labels,
    *,
    words: Mapping[Any, str],
    validation: tuple[Sequence[str], Labels],
    n_prompts: int = 16,
    n_epochs: int = 10,
    batch_rows: int = 32,
    learning_rate: float = 1e-3,
    warm_up: float = 0.1,
    clip: float = 1.0,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> SoftPrompt:
    """Train a soft prompt on labelled texts; the model itself stays as it is (Wang et al. 2022, section 3.1).

    model: with its head, and with weights that give gradients: load_model(..., head=True, prepack="kernels").
    words: label -> the word that answers it; one token in running text (see `Tokenizer.ids_of_word`).
    validation: (texts, labels); the vectors of the best epoch are kept, the earlier one of equals.
    n_prompts: vectors, drawn from N(0, 1/30) by `seed`, which also orders the rows. learning_rate: of Adam, reached linearly
        over the share `warm_up` of the steps. clip: largest norm of a step's gradient.
    folder: keeps the state after each epoch, so that an interrupted training resumes there, to the same vectors.

    Raises InputError for texts and labels that cannot be used, for words that are no single tokens, and for a folder with the
    state of another training.
    """
    check_model(model)
    if not isinstance(words, Mapping):
        raise InputError(f"words is a {type(words).__name__}; expected a dict, label -> word")
    if not isinstance(validation, (tuple, list)) or len(validation) != 2:
        raise InputError(f"validation is a {type(validation).__name__}; expected a pair, texts and their labels")
    layout = PromptLayout(model, tokenizer, n_prompts)
    if model.immovable is not None:
        raise InputError("reordered weights give no gradients, by which a prompt is trained: use load_model(prepack='kernels')")
    names = tuple(words)
    word_ids = tuple(tokenizer.ids_of_word(words[label])[0] for label in names)
    if len(set(word_ids)) < max(len(word_ids), 2):
        raise InputError(f"words are {dict(words)}; expected two labels or more, with different words")
    parts = {}
    for what, (some, of_them) in {"training rows": (texts, labels), "validation rows": validation}.items():
        listed = checked_texts(some, what)
        parts[what] = layout.encode(listed), encoded_labels(of_them, names, len(listed), what)
    settings = {
        "n_prompts": n_prompts,
        "n_epochs": n_epochs,
        "batch_rows": batch_rows,
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "clip": clip,
        "seed": seed,
    }
    _check_settings(settings)
    if len(set(parts["training rows"][1].tolist())) < 2:
        raise InputError(f"training rows: all have the label {next(iter(labels))!r}; expected two labels or more")
    training = _Training(layout, parts, word_ids, settings, None if folder is None else Path(folder))
    with tqdm(total=n_epochs, unit=" epochs", disable=None if progress is None else not progress) as bar:
        bar.update(training.epoch)
        while training.epoch < n_epochs:
            training.run_epoch()
            bar.set_postfix(validation=f"{training.best_score:.4f}")
            bar.update()
    chosen = tuple(words[label] for label in names)
    return SoftPrompt(training.best, names, chosen, word_ids, training.best_score, settings, training.fingerprint)


def _check_settings(settings: Mapping[str, Any]) -> None:
    """InputError, naming it, for a setting of the training that cannot be used."""
    for name, least in (("n_epochs", 0), ("batch_rows", 1), ("seed", 0)):
        if not is_whole(settings[name]) or settings[name] < least:
            raise InputError(f"{name} is {settings[name]!r}; expected a whole number, {least} or more")
    for name in ("learning_rate", "clip"):
        if not is_number(settings[name]) or settings[name] <= 0:
            raise InputError(f"{name} is {settings[name]!r}; expected a number above 0")
    if not is_number(settings["warm_up"]) or not 0 <= settings["warm_up"] <= 1:
        raise InputError(f"warm_up is {settings['warm_up']!r}; expected a share from 0 to 1")


class _Training:
    """The state of a training between two epochs."""

    def __init__(
        self,
        layout: PromptLayout,
        parts: Mapping[str, tuple[list[list[int]], Int[np.ndarray, "row"]]],
        word_ids: tuple[int, ...],
        settings: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        self.layout, self.parts, self.word_ids, self.settings = layout, parts, word_ids, dict(settings)
        self.path = None if folder is None else folder / STATE
        source = layout.model.source
        self.fingerprint = "" if source is None else source.fingerprint(layout.model.depth, head=True)
        generator = torch.Generator().manual_seed(settings["seed"])
        vectors = torch.randn(layout.n_prompts, layout.model.config.d_model, generator=generator) * PROMPT_STD
        self.vectors = vectors.to(layout.model.device).requires_grad_()
        self.optimizer = torch.optim.Adam([self.vectors], lr=settings["learning_rate"])
        self.epoch, self.best, self.best_score = 0, self.vectors.detach().clone(), -1.0
        if self.path is not None and self.path.exists():
            self._resume(self.path)

    def run_epoch(self) -> None:
        """One pass over the training rows in random order, then a score on the validation rows."""
        ids, labels = self.parts["training rows"]
        order = np.random.default_rng([self.settings["seed"], self.epoch]).permutation(len(ids))
        batches = [
            order[start : start + self.settings["batch_rows"]] for start in range(0, len(ids), self.settings["batch_rows"])
        ]
        n_warm = self.settings["warm_up"] * self.settings["n_epochs"] * len(batches)
        for index, drawn in enumerate(batches):
            step = self.epoch * len(batches) + index + 1
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings["learning_rate"] * min(1.0, step / max(n_warm, 1))
            chosen = sorted(drawn.tolist(), key=lambda row: -len(ids[row]))  # rows of one length side by side: faster attention
            rows = self.layout.rows([ids[row] for row in chosen])
            logits = self.layout.logits(rows, self.vectors, self._word_ids)
            loss = F.cross_entropy(logits.float(), torch.as_tensor(labels[chosen], device=logits.device))
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([self.vectors], self.settings["clip"])
            self.optimizer.step()
        ids, labels = self.parts["validation rows"]
        answers = _probabilities(self.layout, ids, self.vectors.detach(), self.word_ids, 4096, None).argmax(1)
        score = float((answers == labels).mean())
        if score > self.best_score:
            self.best, self.best_score = self.vectors.detach().clone(), score
        self.epoch += 1
        if self.path is not None:
            self._save(self.path)

    @property
    def _word_ids(self) -> Int[Tensor, "label"]:
        return torch.tensor(self.word_ids, device=self.layout.model.device)

    @property
    def _identity(self) -> dict[str, Any]:
        """What makes a training this one."""
        rows = json.dumps([[ids, labels.tolist()] for ids, labels in self.parts.values()])
        return {"settings": self.settings, "words": self.word_ids, "model": self.fingerprint, "rows": _sha256(rows)}

    def _save(self, path: Path) -> None:
        adam = {f"adam.{name}": value for name, value in self.optimizer.state[self.vectors].items()}
        tensors = {"vectors": self.vectors.detach(), "best": self.best, **adam}
        _save(path, tensors, {**self._identity, "epoch": self.epoch, "best_score": self.best_score})

    def _resume(self, path: Path) -> None:
        tensors, described = _load(path)
        expected = json.loads(json.dumps(self._identity))
        differing = [name for name, value in expected.items() if described.get(name) != value]
        if differing:
            raise InputError(
                f"{path}: the state of a training with other {', '.join(differing)}; choose another folder, or delete this file"
            )
        with torch.no_grad():
            self.vectors.copy_(tensors["vectors"])
        self.best, self.best_score, self.epoch = tensors["best"], described["best_score"], described["epoch"]
        state = {name.removeprefix("adam."): value for name, value in tensors.items() if name.startswith("adam.")}
        self.optimizer.state[self.vectors] = state


def encoded_labels(labels: Labels, known: Sequence[Any], n_texts: int, what: str) -> Int[np.ndarray, "row"]:
    """Each label's place among `known`; InputError, naming the row, for another one, or for a wrong number of them.

    what: which rows they are, for the error.
    """
    listed = [label.item() if isinstance(label, np.generic) else label for label in labels]
    if len(listed) != n_texts:
        raise InputError(f"{what}: {n_texts} rows but {len(listed)} labels; expected one label per row")
    place = {label: index for index, label in enumerate(known)}
    for row, label in enumerate(listed):
        if label not in place:
            raise InputError(f"{what}: row {row} has the label {label!r}; known are {', '.join(map(repr, known))}")
    return np.array([place[label] for label in listed])


def _probabilities(
    layout: PromptLayout,
    ids: Sequence[Sequence[int]],
    vectors: Float[Tensor, "prompt d_model"],
    word_ids: Sequence[int],
    max_tokens: int,
    edit: Edit | None,
) -> Float[np.ndarray, "row label"]:
    """The probability of each label's word among these words."""
    if isinstance(edit, Ablation):
        edit.check(layout.model)
    answers = np.empty((len(ids), len(word_ids)))
    chosen_words = torch.tensor(word_ids, device=layout.model.device)
    with torch.inference_mode():
        for chosen, rows in layout.batches(ids, max_tokens):
            logits = layout.logits(rows, vectors.to(layout.model.device), chosen_words, edit)
            answers[chosen] = logits.double().softmax(1).cpu().numpy()
    return answers


def _save(path: Path, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    """Tensors, with JSON in the file's header; whole or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda partial: save_file(plain, partial, {"spin_native": json.dumps(described)}))
    except OSError as error:
        raise InputError(f"{path}: could not be written ({error}); choose another folder or make room") from error


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `_save` wrote; InputError if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})["spin_native"])
            return {name: file.get_tensor(name) for name in file.keys()}, described  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: no file that spin_native saved, or damaged ({error}); train again") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

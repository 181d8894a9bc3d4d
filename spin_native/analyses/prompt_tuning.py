"""Prompt tuning: soft prompts trained on labelled texts by Adam, with a state to resume from (Lester et al. 2021)."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from spin_native.analyses.labels import Labels, encoded_labels
from spin_native.analyses.prompts import check_model
from spin_native.analyses.soft_prompts import PromptLayout, SoftPrompt, probabilities, read_tensors, write_tensors
from spin_native.errors import InputError
from spin_native.given import checked_texts, is_number, is_whole
from spin_native.models import Transformer
from spin_native.text.tokenizer import Tokenizer

PROMPT_STD = 1 / 30  # of the vectors before training (Wang et al. 2022)
STATE = "training.safetensors"


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
        answers = probabilities(self.layout, ids, self.vectors.detach(), self.word_ids, 4096, None).argmax(1)
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
        return {
            "settings": self.settings,
            "words": self.word_ids,
            "model": self.fingerprint,
            "rows": hashlib.sha256(rows.encode()).hexdigest(),
        }

    def _save(self, path: Path) -> None:
        adam = {f"adam.{name}": value for name, value in self.optimizer.state[self.vectors].items()}
        tensors = {"vectors": self.vectors.detach(), "best": self.best, **adam}
        write_tensors(path, tensors, {**self._identity, "epoch": self.epoch, "best_score": self.best_score})

    def _resume(self, path: Path) -> None:
        tensors, described = read_tensors(path)
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

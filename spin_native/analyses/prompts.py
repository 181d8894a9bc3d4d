"""Prompts with targets: which token of each prompt is probed, and which number of the model's output is followed there."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spin_native.errors import InputError
from spin_native.given import is_whole, numbers_of
from spin_native.models import Transformer
from spin_native.models.heads import CausalHead
from spin_native.probes import LinearProbe, LogisticProbe
from spin_native.text.batch import TokenBatch
from spin_native.text.packing import pack
from spin_native.text.tokenizer import Tokenizer

Position = Literal["mask", "last", "first"]
Quantity = Literal["probability", "logit", "log_probability"]
Function = Callable[[Float[Tensor, "row vocab"]], Float[Tensor, "row *label"]]
Of = Quantity | Function | LogisticProbe | LinearProbe
Target = str | int
Text = str | Sequence[int]  # a prompt: a text, or its token ids


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts as token ids.

    rows: of each prompt. position: which token is probed. positions: where it is in each prompt, counted from its start.
    targets [row, label]: the token ids whose output is followed; no labels where a function or a probe gives the output.
    labels: the targets' names if all rows share them, else None.
    """

    rows: list[list[int]]
    position: Position
    positions: list[int]
    targets: Int[np.ndarray, "row label"]
    labels: list[str] | None

    def settings(self, of: Of) -> dict[str, Any]:
        """What a result's metadata says of the prompts and of the followed number."""
        return {"of": describe(of), "position": self.position, "labels": self.labels, "n_prompts": len(self.rows)}

    def batches(self, max_tokens: int, rows: Sequence[int]) -> Iterator[list[int]]:
        """Some of the rows, longest first, as batches of at most `max_tokens` tokens and at least one row."""
        for chosen in pack([len(self.rows[row]) for row in rows], max_tokens):
            yield [rows[place] for place in chosen]

    def batch(self, rows: Sequence[int], device: torch.device) -> tuple[TokenBatch, Int[Tensor, "row"]]:
        """These rows (a row may come several times) as a batch, and the index of the probed token of each."""
        batch = TokenBatch.from_rows([self.rows[row] for row in rows], device)
        return batch, batch.starts + torch.tensor([self.positions[row] for row in rows], device=device)


def read_prompts(
    model: Transformer,
    tokenizer: Tokenizer | None,
    prompts: Sequence[Text],
    targets: Sequence[Target | Sequence[Target]] | None,
    of: Of,
    position: Position | None,
) -> Prompts:
    """Prompts and targets, checked against the model; see `neuron_gradients` for what they are and for the errors."""
    check_readable(model, of)
    rows = token_rows(model, tokenizer, prompts)
    if position is None:
        if model.head is None:
            raise InputError(
                "a model without a language-model head does not say where to look: give position='last' or 'first'"
            )
        position = "last" if isinstance(model.head, CausalHead) else "mask"
    positions = positions_of(tokenizer, rows, position)
    if not isinstance(of, str):
        if targets is not None:
            raise InputError(
                "targets are for of='probability', 'logit' or 'log_probability'; leave them out for a function or a probe"
            )
        return Prompts(rows, position, positions, np.empty((len(rows), 0), np.int64), None)
    ids, labels = target_ids(model, tokenizer, targets, len(rows))
    return Prompts(rows, position, positions, ids, labels)


def token_rows(model: Transformer, tokenizer: Tokenizer | None, prompts: Sequence[Text]) -> list[list[int]]:
    """Token ids of each prompt."""
    if isinstance(prompts, (str, bytes)) or not hasattr(prompts, "__len__") or not len(prompts):
        raise InputError(f"prompts is {prompts!r:.60}; expected a list of one or more prompts")
    if not any(prompt is None or isinstance(prompt, str) for prompt in prompts):
        rows = [checked_ids(model, prompt, index) for index, prompt in enumerate(prompts)]
    elif tokenizer is None:
        raise InputError("prompts are texts, but no tokenizer was given: give one, or give rows of token ids")
    elif tokenizer.n_vocab > model.config.n_vocab:
        raise InputError(
            f"the tokenizer has {tokenizer.n_vocab} ids, the model {model.config.n_vocab}: they do not belong together"
        )
    else:
        rows = tokenizer.encode_prompts(prompts)  # type: ignore[arg-type]  # it names a prompt that is no text
    for index, row in enumerate(rows):
        if not 1 <= len(row) <= model.config.max_tokens:
            raise InputError(
                f"prompt {index} has {len(row)} tokens; expected 1 to {model.config.max_tokens}, what the model holds"
            )
    return rows


def checked_ids(model: Transformer, prompt: object, index: int) -> list[int]:
    """A prompt's token ids as a list; InputError, naming the prompt, for anything else and for ids out of the vocabulary."""
    ids = numbers_of(prompt)
    if ids is None or not all(map(is_whole, ids)):
        raise InputError(f"prompt {index} is {prompt!r:.40}; expected a text, or a list of token ids")
    if outside := [token_id for token_id in ids if not 0 <= token_id < model.config.n_vocab]:
        raise InputError(
            f"prompt {index} has the token id {outside[0]}, which is not in the vocabulary: its ids run from 0 to "
            f"{model.config.n_vocab - 1}"
        )
    return ids


def positions_of(tokenizer: Tokenizer | None, rows: Sequence[Sequence[int]], position: Position) -> list[int]:
    """The probed token of each row; InputError for a row that does not have exactly one mask token."""
    if position not in get_args(Position):
        raise InputError(f"position is {position!r}; expected one of {', '.join(get_args(Position))}")
    if position != "mask":
        return [0 if position == "first" else len(row) - 1 for row in rows]
    if tokenizer is None:
        raise InputError("position='mask' needs the tokenizer, which knows the mask token")
    mask_id = tokenizer.mask_id
    if mask_id is None:
        raise InputError("the tokenizer has no mask token: use position='last' with a causal language model, such as GPT-2")
    (token,) = tokenizer.token_strings([mask_id])
    for index, row in enumerate(rows):
        if row.count(mask_id) != 1:
            raise InputError(f"prompt {index} has {row.count(mask_id)} mask tokens; expected {token} exactly once")
    return [row.index(mask_id) for row in rows]


def target_ids(
    model: Transformer,
    tokenizer: Tokenizer | None,
    targets: Sequence[Target | Sequence[Target]] | None,
    n_rows: int,
) -> tuple[Int[np.ndarray, "row label"], list[str] | None]:
    """The token id of every target, and the targets' names if all rows share them."""
    if targets is None or isinstance(targets, (str, bytes)) or len(targets) != n_rows:
        got = "none" if targets is None else "one word" if isinstance(targets, (str, bytes)) else f"{len(targets)}"
        raise InputError(
            f"targets: got {got}; expected one word or token id, or one list of them, for each of {n_rows} prompts"
        )
    listed: list[list[Any]] = [list(entry) if isinstance(entry, (list, tuple, np.ndarray)) else [entry] for entry in targets]
    for row, entry in enumerate(listed):
        if not entry or len(entry) != len(listed[0]):
            raise InputError(
                f"targets: prompt {row} has {len(entry)}, prompt 0 has {len(listed[0])}; expected as many for every prompt"
            )
    known: dict[Target, int] = {}
    for row, entry in enumerate(listed):
        for target in entry:
            if isinstance(target, bool) or not isinstance(target, (str, int)) or target not in known:
                known[target] = target_id(model, tokenizer, target, row)
    labels = list(map(str, listed[0])) if all(entry == listed[0] for entry in listed) else None
    return np.array([[known[target] for target in entry] for entry in listed]), labels


def target_id(model: Transformer, tokenizer: Tokenizer | None, target: Target, row: int) -> int:
    """The token id of a word or id; InputError for a word of several tokens and for what is not in the vocabulary."""
    if isinstance(target, str):
        if tokenizer is None:
            raise InputError(f"target {target!r} is a word, but no tokenizer was given: give one, or give token ids")
        try:
            return tokenizer.ids_of_word(target)[0]
        except InputError as error:
            raise InputError(f"targets of prompt {row}: {error}") from None
    if not is_whole(target) or not 0 <= target < model.config.n_vocab:
        raise InputError(
            f"target {target!r} of prompt {row} is not in the vocabulary, whose ids run from 0 to {model.config.n_vocab - 1}; "
            "expected a word, or one of these ids"
        )
    return int(target)


def check_model(model: object) -> None:
    """InputError for what is no model."""
    if not isinstance(model, Transformer):
        raise InputError(f"model is a {type(model).__name__}; expected what sn.load_model returns")


def check_readable(model: Transformer, of: Of) -> None:
    """InputError unless the model can give the output that `of` names."""
    check_model(model)
    if not model.is_whole:
        raise InputError(f"the model was loaded with {model.depth} of {model.config.n_layers} layers; load it with depth=None")
    if isinstance(of, (LogisticProbe, LinearProbe)):
        if of.coef_.shape[1] != model.config.d_model:
            raise InputError(
                f"the probe reads {of.coef_.shape[1]} features; expected {model.config.d_model}, the final hidden state's width"
            )
        return
    if (isinstance(of, str) or not callable(of)) and of not in get_args(Quantity):
        raise InputError(f"of is {of!r}; expected one of {', '.join(get_args(Quantity))}, a function of the logits, or a probe")
    if model.head is None:
        raise InputError(
            "the model has no language-model head: load it with head=True, or give of= a probe fitted on the final hidden state"
        )


def read_output(
    model: Transformer, of: Of, hidden: Float[Tensor, "row d_model"], targets: Int[Tensor, "row target"]
) -> Float[Tensor, "row label"]:
    """The followed numbers, from the final hidden state at each row's probed token. At least float32."""
    if isinstance(of, (LogisticProbe, LinearProbe)):
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        coef, intercept = (torch.as_tensor(x, dtype=wide.dtype, device=wide.device) for x in (of.coef_, of.intercept_))
        return wide @ coef.T + intercept
    logits = model.logits(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not isinstance(of, str):
        output = of(logits)
        if not isinstance(output, Tensor):
            raise InputError(
                f"the function given as `of` returned a {type(output).__name__}; expected a tensor [row] or [row, label]"
            )
        if logits.requires_grad and not output.requires_grad:
            raise InputError(
                "the function given as `of` returned a tensor without a gradient; expected one that torch computed from logits"
            )
        if output.ndim not in (1, 2) or len(output) != len(hidden):
            raise InputError(
                f"the function given as `of` returned {list(output.shape)}; expected [{len(hidden)}] or [{len(hidden)}, label]"
            )
        return output if output.ndim == 2 else output[:, None]
    if of == "logit":
        return logits.gather(1, targets)
    log_probability = logits.gather(1, targets) - logits.logsumexp(1, keepdim=True)
    return log_probability if of == "log_probability" else log_probability.exp()


def checked_layers(model: Transformer, layers: Sequence[int] | None) -> list[int]:
    """The layers, ascending (None: all); InputError for one that the model does not have, and for layers of several widths."""
    given = list(range(model.depth)) if layers is None else numbers_of(layers)
    listed = sorted(set(given or []))
    if not listed or not all(map(is_whole, listed)) or listed[0] < 0 or listed[-1] >= model.depth:
        raise InputError(f"layers are {layers!r:.80}; expected one or more of 0 to {model.depth - 1}")
    if len({model.width("activation", layer) for layer in listed}) > 1:
        raise InputError("the layers have different numbers of neurons; choose layers of one width")
    return listed


def describe(of: Of) -> str:
    """`of` for a result's metadata."""
    return of if isinstance(of, str) else getattr(of, "__name__", type(of).__name__)


def default_max_tokens(model: Transformer) -> int:
    """Tokens per batch of a pass with gradients, which keeps about ten numbers per neuron of every layer in memory: 256 MiB."""
    return max(64, 256 * 2**20 // (model.depth * model.config.d_ffn * 10 * model.dtype.itemsize))

"""The one loop over layers that every family shares."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spin_native.errors import InputError
from spin_native.given import is_whole
from spin_native.models.config import ConfigFile, ModelConfig
from spin_native.models.heads import HeadTable
from spin_native.models.layers import Block, TextEmbedding
from spin_native.models.weights import WeightTable
from spin_native.text.batch import TokenBatch


@dataclass
class Layer:
    """One layer, as seen from outside.

    index: the layer, from 0; `n_layers` for the final hidden state.
    hidden: what enters the layer (transformers' `hidden_states[index]`).
    activation: the FFN's neurons; None at the final hidden state, which no FFN reads.
    batch: the rows that are still running.
    attended: the residual stream after attention, which the FFN reads (GPT-2 normalises it first); None with `activation`.
    """

    index: int
    hidden: Float[Tensor, "token d_model"]
    activation: Float[Tensor, "token d_ffn"] | None
    batch: TokenBatch
    rows_kept: Int[Tensor, "kept"] | None = None
    attended: Float[Tensor, "token d_model"] | None = None

    def keep(self, rows: Int[Tensor, "kept"]) -> None:
        """Continue with these rows of `batch` only: the others exit here, and no later layer runs them.

        rows: ascending indices; InputError for others.
        """
        listed = rows.tolist()
        if not listed or listed != sorted(set(listed)) or listed[0] < 0 or listed[-1] >= self.batch.n_rows:
            raise InputError(
                f"Layer.keep: got rows {listed[:8]}; expected one or more ascending indices from 0 to {self.batch.n_rows - 1}"
            )
        self.rows_kept = rows


Edit = Callable[[Layer], Float[Tensor, "token d_ffn"]]


@runtime_checkable
class Source(Protocol):
    """Where a model's weights came from."""

    @property
    def name(self) -> str: ...

    @property
    def revision(self) -> str | None: ...

    def fingerprint(self, depth: int, *, head: bool = False) -> str:
        """sha256 over the config and every tensor that the first `depth` layers use; with `head` the head's too."""
        ...


class Transformer(nn.Module):
    """A stack of blocks behind an embedding; each family hands over its parts.

    depth: the number of layers: all (None), or 1 to n_layers. A model of smaller depth has no down-projection in its
    last layer and no final hidden state: no later layer reads them.
    embedding: token ids of a batch -> [token, d_model]. block: layer index -> Block. final_norm: of the last hidden state.
    """

    model_type: ClassVar[str]  # as config.json names the family
    ffn_key: ClassVar[str] = "intermediate_size"  # config.json's key for d_ffn
    weights: ClassVar[WeightTable]
    head_weights: ClassVar[HeadTable]
    # Patterns of tensor names: a checkpoint with a name for each of them is certainly of this family (empty: no such names).
    certain_names: ClassVar[tuple[str, ...]] = ()
    source: Source | None = None  # set by the loader
    immovable: str | None = None  # set by the loader: why the model cannot be moved or converted, and what to do

    def __init__(
        self,
        config: ModelConfig,
        depth: int | None,
        embedding: TextEmbedding,
        block: Callable[[int], Block],
        final_norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.depth = checked_depth(depth, config.n_layers)
        self.embedding = embedding
        self.blocks: Sequence[Block] = nn.ModuleList(map(block, range(self.depth)))  # type: ignore[assignment]
        self.head: nn.Module | None = None  # set by the loader, on request: the language-model head
        self.final_norm = nn.Identity() if final_norm is None or not self.is_whole else final_norm
        if not self.is_whole:
            self.blocks[-1].drop_write()

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """What `.to`, `.double` and the like call; refused before the first parameter is touched."""
        if self.immovable is not None:
            raise InputError(self.immovable)
        return super()._apply(fn, recurse)

    @classmethod
    def read_config(cls, file: ConfigFile) -> ModelConfig:
        """The family's sizes and choices; InputError, by key, for what is missing or not supported."""
        raise NotImplementedError

    @classmethod
    def new_head(cls, config: ModelConfig) -> nn.Module:
        """The family's language-model head, with parameters that are yet to be filled."""
        raise NotImplementedError

    @property
    def is_whole(self) -> bool:
        return self.depth == self.config.n_layers

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def width(self, site: str, layer: int) -> int:
        """Width of a site ("hidden" or "activation") of a layer."""
        if site == "hidden":
            return self.config.d_model
        return self.blocks[layer].feed_forward.up.out_features

    def layers(
        self,
        batch: TokenBatch,
        *,
        edit: Edit | None = None,
        embedded: Float[Tensor, "token d_model"] | None = None,
        first: int = 0,
    ) -> Iterator[Layer]:
        """Run the model layer by layer. `break`, and later layers never run.

        Each layer is yielded as soon as its activation is known: stopping after layer k-1 costs k attentions, k
        up-projections and k-1 down-projections. A whole model ends with the final hidden state. A caller may make the batch
        smaller on the way: see `Layer.keep`.

        embedded: start from these vectors instead of `embed(batch)` (soft prompts); the ids still fix lengths and positions.
        first: the layer to start from; `embedded` is then the hidden state that enters it, known from an earlier run.
        edit: called with the Layer after it was yielded; the layer writes the activation that it returns.
        Gradients flow or not as the caller's grad mode says.
        """
        self.check(batch)
        if first and (embedded is None or not 0 < first < self.depth):
            raise InputError(
                f"layers: first is {first}; expected 0 to {self.depth - 1}, and above 0 the hidden state that enters it as "
                "embedded"
            )
        hidden = self.embed(batch) if embedded is None else self.checked_embedded(embedded, batch)  # [token, d_model]
        for index, block in islice(enumerate(self.blocks), first, None):
            attended, activation = block.read(hidden, batch)  # A_l = f(H_l W1^T + b), [token, d_ffn]
            layer = Layer(index, hidden, activation, batch, attended=attended)
            yield layer
            if index == self.depth - 1 and not self.is_whole:
                return
            if edit is not None:
                activation = checked_edit(edit(layer), activation)
            if layer.rows_kept is not None:
                batch, tokens = batch.only(layer.rows_kept)
                attended, activation = attended[tokens], activation[tokens]
            del layer  # free its tensors before the next layer needs the room
            hidden = block.write(attended, activation)  # [token, d_model]
            del attended, activation
        yield Layer(self.config.n_layers, self.final_norm(hidden), None, batch)

    def logits(self, hidden: Float[Tensor, "token d_model"], batch: TokenBatch | None = None) -> Float[Tensor, "token vocab"]:
        """The head's logit for every word of the vocabulary, at every token.

        hidden: the final hidden state (`layer.hidden` of the last Layer), or some rows of it. batch: whose tokens these are;
        given, their number is checked. At a mask token a masked-language head scores the hidden word; GPT-2's scores the next.
        Raises InputError for a model that was loaded without its head.
        """
        if self.head is None:
            raise InputError("this model was loaded without its language-model head: use load_model(..., head=True)")
        n_tokens = hidden.shape[0] if batch is None else batch.n_tokens
        if tuple(hidden.shape) != (n_tokens, self.config.d_model):
            raise InputError(
                f"logits: hidden is {list(hidden.shape)}; expected {[n_tokens, self.config.d_model]}: one vector per token"
            )
        return self.head(hidden)

    def embed(self, batch: TokenBatch, words: Float[Tensor, "token d_model"] | None = None) -> Float[Tensor, "token d_model"]:
        """What enters layer 0: the words' vectors with their positions, normalised where the family does that.

        words: vectors in place of those of the ids (transformers' `inputs_embeds`); the ids still fix lengths and positions.
        """
        return self.embedding(batch, self.embedding.word(batch.ids) if words is None else self.checked_embedded(words, batch))

    def checked_embedded(self, embedded: Tensor, batch: TokenBatch) -> Float[Tensor, "token d_model"]:
        """`embedded` itself; InputError unless it holds one vector per token of the batch."""
        expected = (batch.n_tokens, self.config.d_model)
        if tuple(embedded.shape) != expected:
            raise InputError(
                f"embedded is {list(embedded.shape)}; expected {list(expected)}: one vector per token of the batch"
            )
        return embedded

    def check(self, batch: TokenBatch) -> None:
        """InputError for ids outside the vocabulary and for rows longer than the position table."""
        low, high = (int(bound) for bound in batch.ids.aminmax())
        if low < 0 or high >= self.config.n_vocab:
            raise InputError(
                f"token ids run from {low} to {high}, the embedding has rows 0 to {self.config.n_vocab - 1}: "
                "tokenizer and model do not belong together"
            )
        if max(batch.lengths) > self.config.max_tokens:
            row = batch.lengths.index(max(batch.lengths))
            raise InputError(
                f"row {row} has {batch.lengths[row]} tokens, the model holds {self.config.max_tokens}: truncate the text"
            )


def checked_edit(edited: object, activation: Tensor) -> Float[Tensor, "token d_ffn"]:
    """`edited` itself; InputError unless it has the shape of the activation that it replaces."""
    if not isinstance(edited, Tensor) or edited.shape != activation.shape:
        got = list(edited.shape) if isinstance(edited, Tensor) else f"a {type(edited).__name__}"
        raise InputError(f"edit returned {got}; expected a tensor of the activation's shape, {list(activation.shape)}")
    return edited


def checked_depth(depth: int | None, n_layers: int) -> int:
    """`depth` as a number of layers (None: all of them); InputError outside 1..n_layers."""
    if depth is None:
        return n_layers
    if not is_whole(depth) or not 1 <= depth <= n_layers:
        raise InputError(f"depth is {depth!r}; expected 1 to {n_layers} (how many layers to run), or None for all")
    return int(depth)

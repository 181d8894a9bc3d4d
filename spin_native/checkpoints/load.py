"""From a name or folder to a model and its tokenizer."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from spin_native.checkpoints.accounting import account, take
from spin_native.checkpoints.files import Reader, open_tensors
from spin_native.checkpoints.hub import Location
from spin_native.errors import InputError
from spin_native.models import ModelConfig, Transformer, family_of, new_model, read_config
from spin_native.models.fast import IMMOVABLE, PRODUCTS, Prepack, is_worth_it, reorder, use_kernels
from spin_native.models.products import use_products
from spin_native.models.weights import Copied
from spin_native.text.tokenizer import Tokenizer

Dtype = torch.dtype | Literal["auto"]
ALIGNMENT = 64  # bytes
# Settings that every family's config once had. A fingerprint still counts them, so that those already saved stay valid.
ONCE_OF_ALL_FAMILIES = {"n_token_types": 0, "scales_attention": True, "scales_attention_by_layer": False}
VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "bpe.codes")
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model")


@dataclass
class Checkpoint:
    """A checkpoint: every tensor accounted for, and read when it is needed."""

    location: Location
    allow_pickle: bool = False
    _fingerprints: dict[tuple[int, bool], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files and the tokenizer, which are read again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_stored", "readers", "tokenizer")}

    @property
    def name(self) -> str:
        return self.location.name

    @property
    def revision(self) -> str | None:
        return self.location.revision

    @cached_property
    def config(self) -> ModelConfig:
        content = self.location.read_json("config.json")
        where = self.location.where("config.json")
        if content.get("model_type") is None:  # early configs do not say it
            content["model_type"] = family_of(self._stored, where)
        return read_config(content, where)

    @cached_property
    def _stored(self) -> dict[str, Reader]:
        """Tensor name as it is stored -> its reader."""
        return open_tensors(self.location, allow_pickle=self.allow_pickle)

    @cached_property
    def stored_as(self) -> dict[str, str]:
        """Canonical tensor name -> its name in the file."""
        whole = self.build(None)
        return account(self._stored, dict(whole.named_parameters()), whole.weights, self.name)

    @cached_property
    def readers(self) -> dict[str, Reader]:
        """Canonical tensor name -> its reader."""
        return {canonical: self._stored[name] for canonical, name in self.stored_as.items()}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, from the same files; see `load_tokenizer` for the errors."""
        return self.load_tokenizer()

    def load_tokenizer(self, *, special_tokens_in_text: bool = False) -> Tokenizer:
        """The tokenizer, from the same files; see the function `load_tokenizer`."""
        files = {filename: path for filename in TOKENIZER_FILES if (path := self.location.find(filename))}
        if not files.keys() & set(VOCABULARY_FILES):
            if any(self.location.find(filename) for filename in SENTENCEPIECE_FILES):
                raise InputError(
                    f"model {self.name!r}: holds a sentencepiece model, but no tokenizer.json; load it with transformers' "
                    "AutoTokenizer and save it in this folder with save_pretrained, which writes one"
                )
            raise self.location.lacks("tokenizer.json, vocab.json with merges.txt, or vocab.txt")
        named = self.location.read_json("config.json").get("tokenizer_class")
        return Tokenizer.from_files(
            files,
            self.config.max_tokens,
            self.config.family,
            tokenizer_class=named if isinstance(named, str) else None,
            n_embedded=self.config.n_vocab,
            special_tokens_in_text=special_tokens_in_text,
        )

    def build(self, depth: int | None) -> Transformer:
        """The model without its weights (on torch's meta device)."""
        with torch.device("meta"):
            return new_model(self.config, depth)

    def load(
        self,
        depth: int | None,
        dtype: Dtype,
        device: torch.device | str,
        prepack: Prepack = "auto",
        last_neurons: np.ndarray | None = None,
        head: bool = False,
    ) -> Transformer:
        """The model with its weights: only the tensors that `depth` layers use are read.

        last_neurons: compute only these neurons of the last layer (None: all); only for a last layer that does not write.
        head: with the language-model head.
        """
        check_device(device)
        dtype = resolved_dtype(dtype, device)
        reordered = is_worth_it(prepack, dtype, device)
        model = self.build(depth)
        if prepack is not False:
            use_kernels(model)
        own = [name for name, _ in model.named_parameters() if not name.startswith("blocks.")]
        self._fill(model, own, dtype, device)
        for index, block in enumerate(model.blocks):
            for product in PRODUCTS[:-1] if block.feed_forward.down is None else PRODUCTS:
                # One product at a time: its plain weights are freed before the next ones are read.
                names = [f"blocks.{index}.{product}.{name}" for name, _ in block.get_submodule(product).named_parameters()]
                self._fill(model, names, dtype, device, aligns=not reordered)
                if product == "feed_forward.up" and block.feed_forward.down is None and last_neurons is not None:
                    block.feed_forward.restrict_to(torch.as_tensor(last_neurons, device=device))
                if reordered:
                    reorder(block, product, self.config.activation_function)
            norms = [name for name, parameter in block.named_parameters() if parameter.is_meta]
            self._fill(model, [f"blocks.{index}.{name}" for name in norms], dtype, device)
        if prepack == "kernels":
            use_products(model)
        if head:
            model.head = self._head(model, dtype, device)
        model.source, model.immovable = self, IMMOVABLE if reordered else None
        return model.eval().requires_grad_(False)

    def _fill(
        self, model: Transformer, names: Iterable[str], dtype: torch.dtype, device: torch.device | str, *, aligns: bool = False
    ) -> None:
        """Read parameters from the file.

        aligns: copy a weight that lies at another address than a multiple of ALIGNMENT, as one mapped from a file may: MKL's
            products give other last bits there.
        """
        for name in names:
            rule, shape = model.weights.rule(name), tuple(model.get_parameter(name).shape)
            tensor = take(rule, self.readers[rule.stored](), shape, self.name).to(device=device, dtype=dtype)
            if aligns and tensor.data_ptr() % ALIGNMENT:
                tensor = tensor.clone()
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))

    def _head(self, model: Transformer, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The language-model head of a whole model; a tied one shares the embedding's word vectors."""
        if not model.is_whole:
            raise InputError(
                f"model {self.name!r}: the language-model head reads the final hidden state, after all "
                f"{self.config.n_layers} layers: load it with depth=None"
            )
        tied, head = self._is_tied, self._empty_head(model)
        for name, parameter in list(head.named_parameters()):
            module, _, leaf = name.rpartition(".")
            tensor = self._head_tensor(model.head_weights.names(name, tied=tied), tuple(parameter.shape), tied=tied)
            if tied and name == "words.weight":
                weight = model.embedding.get_parameter("word.weight")
            else:
                weight = nn.Parameter(tensor.to(device=device, dtype=dtype), requires_grad=False)
            setattr(head.get_submodule(module), leaf, weight)
        return head

    def _empty_head(self, model: Transformer) -> nn.Module:
        """The family's head without its weights (on torch's meta device)."""
        with torch.device("meta"):
            return type(model).new_head(self.config)

    @property
    def _is_tied(self) -> bool:
        """Whether the head's word vectors are the embedding's."""
        return bool(self.location.read_json("config.json").get("tie_word_embeddings", True))

    def _head_tensor(self, names: tuple[str, ...], shape: tuple[int, ...], *, tied: bool) -> torch.Tensor:
        """A parameter of the head, stored under one of the names."""
        stored = {name: take(Copied(name), self.readers[name](), shape, self.name) for name in names if name in self.readers}
        if not stored:
            raise InputError(
                f"{self.name}: holds no {names[0]}: the checkpoint has no language-model head; use one that has (saved by a "
                "masked or causal language model of transformers), or load it without head"
            )
        first, *others = stored.values()
        if tied and not all(torch.equal(first, other) for other in others):
            raise InputError(
                f"{self.name}: {' and '.join(stored)} differ, although config.json ties them; write "
                '"tie_word_embeddings": false there if the head has word vectors of its own'
            )
        return first

    def fingerprint(self, depth: int, *, head: bool = False) -> str:
        """sha256 over the config and the stored bytes of every tensor that the first `depth` layers use; computed once.

        head: also over those of the language-model head.
        """
        if (depth, head) not in self._fingerprints:
            settings = {**ONCE_OF_ALL_FAMILIES, **asdict(self.config)}
            if settings["ffn_widths"] is None:  # only pruned models have it
                del settings["ffn_widths"]
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            model = self.build(depth)
            names = {model.weights.rule(name).stored for name, _ in model.named_parameters()}
            for stored in sorted(names | (self._head_names() if head else set())):
                tensor = self.readers[stored]().contiguous()
                digest.update(f"{stored} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.view(torch.uint8).numpy().data)
            self._fingerprints[depth, head] = digest.hexdigest()
        return self._fingerprints[depth, head]

    def _head_names(self) -> set[str]:
        """The names under which the checkpoint holds the tensors of its language-model head."""
        model = self.build(None)
        names = (model.head_weights.names(name, tied=self._is_tied) for name, _ in self._empty_head(model).named_parameters())
        return {name for listed in names for name in listed if name in self.readers}


def check_device(device: torch.device | str) -> None:
    """InputError for a device that torch does not know, or that is not there."""
    if not isinstance(device, (str, torch.device)):
        raise InputError(f"device is {device!r}; expected a name such as 'cpu' or 'cuda:1'")
    try:
        on = torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that is not there
        raise InputError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try 'cpu'") from error
    if on.is_meta:
        raise InputError(f"device {device!r} cannot be used (it holds no numbers); try 'cpu'")


def load_model(
    name: str | os.PathLike[str],
    depth: int | None = None,
    *,
    dtype: Dtype = torch.float32,
    device: torch.device | str = "cpu",
    prepack: Prepack = "auto",
    head: bool = False,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> Transformer:
    """Load a checkpoint of one of the families (RoBERTa, BERT, DistilBERT, GPT-2, MPNet, XLM-RoBERTa) for reading its neurons.

    name: a folder (str or Path), or a Hub name ("roberta-base"); `revision` picks a branch, tag or commit there.
    depth: how many layers to load (1 to n_layers), None for all. Only their tensors are read from the file.
    dtype: torch.float32, float64, bfloat16 or float16; stored numbers are converted. "auto" is bfloat16 where the machine has
        instructions for it, which makes it several times as fast and moves scores by less than their noise, else float32.
    prepack: use fused kernels, and keep the weights in the order in which the CPU multiplies fastest ("auto": float32 and
        bfloat16 where it has AVX-512). A model with reordered weights gives no gradients and cannot be moved. "kernels": fused
        kernels on weights in ordinary order, the fastest that gives gradients. False: the plain parts of `models/`; slower,
        and made to be read.
    head: also load the language-model head, for `model.logits`; needs all layers.
    allow_pickle: also read a legacy pytorch_model.bin (with torch's weights_only unpickler).

    Parameters do not require gradients (activations still can); dropout does not exist.
    Raises InputError for whatever is not exactly the checkpoint its config.json describes.
    """
    return Checkpoint(Location(name, revision), allow_pickle).load(depth, dtype, device, prepack, head=head)


def resolved_dtype(dtype: Dtype, device: torch.device | str) -> torch.dtype:
    """`dtype` itself; for "auto" bfloat16 where the device has instructions for it, else float32."""
    if dtype == "auto":
        on_cuda = torch.device(device).type == "cuda"
        fast = torch.cuda.is_bf16_supported() if on_cuda else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise InputError(f"dtype is {dtype!r}; expected torch.float32, float64, bfloat16, float16 or 'auto'")
    return dtype


def load_tokenizer(
    name: str | os.PathLike[str], *, revision: str | None = None, special_tokens_in_text: bool = False
) -> Tokenizer:
    """Load the tokenizer of a folder or Hub name; texts are cut to what that model holds.

    special_tokens_in_text: read special tokens that stand in a text as themselves, for a model that was trained on texts with
        markers ("[E1] Curie [/E1] ..."). Only for texts that you wrote: whoever writes a text could end it with "</s>". Added
        tokens that are not special ("@USER") are always read as themselves.

    Ids equal those of transformers' AutoTokenizer; `spin_native.text.files.DIVERGENCES` lists the exceptions.
    Raises InputError if the tokenizer is missing or damaged. A token id past the model's embedding is an error only when a text
    uses it.
    """
    return Checkpoint(Location(name, revision)).load_tokenizer(special_tokens_in_text=special_tokens_in_text)

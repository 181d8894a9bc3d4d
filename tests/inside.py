"""Inspections of tiny models, their tokenizers, and what transformers computes inside its own."""

import tokenizers
import torch

import spin_native as sn
from spin_native.parity import activation_functions

MARKED = {"bert": ("[CLS]", "[SEP]", "[UNK]"), "distilbert": ("[CLS]", "[SEP]", "[UNK]"), "gpt2": None}
WORDS = ("the", "movie", "was", "great", "but", "long", "The")
TEXT = "the movie was great but the"
# Where transformers' models have their query, key and value products, and what the FFN's residual stream enters.
PROJECTIONS = {
    "gpt2": ("attn.c_attn",),
    "distilbert": ("q_lin", "k_lin", "v_lin"),
    "mpnet": ("attn.q", "attn.k", "attn.v"),
}
ATTENDED = {"gpt2": "ln_2", "distilbert": "sa_layer_norm", "mpnet": "attention.LayerNorm"}


def add_tokenizer(family, folder):
    """A tokenizer.json of whole words with the special tokens of the family, ids below the tiny models' vocabulary."""
    first, last, unknown = MARKED.get(family, ("<s>", "</s>", "<unk>")) or (None, None, "<unk>")
    mask = "[MASK]" if first == "[CLS]" else "<mask>"
    special = ("<pad>", *((first, last, mask) if first else ()), unknown)
    vocab = {word: index for index, word in enumerate((*special, *WORDS))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=unknown))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if first:
        pairs = [(first, vocab[first]), (last, vocab[last])]
        backend.post_processor = tokenizers.processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=pairs)
    backend.save(str(folder / "tokenizer.json"))


def inspected(folder, text=TEXT, **options):
    return sn.inspect(sn.load_model(str(folder), **options), sn.load_tokenizer(str(folder)), text)


def reference_inside(family, reference, ids):
    """What transformers computes: (name, layer) -> array, through hooks and output_attentions."""
    values = {}

    def keep(name, layer, of_output=True):
        def hook(_module, given, output):
            values.setdefault((name, layer), (output if of_output else given[0])[0])

        return hook

    hooks, modules = [], list(reference.named_modules())
    names = PROJECTIONS.get(family, ("self.query", "self.key", "self.value"))
    for kind, name in zip(("query", "key", "value"), names, strict=False):
        found = [module for path, module in modules if path.endswith(name)]
        hooks += [module.register_forward_hook(keep(kind, layer)) for layer, module in enumerate(found)]
    norm = ATTENDED.get(family, "attention.output.LayerNorm")
    for layer, module in enumerate(module for path, module in modules if path.endswith(norm)):
        hooks.append(module.register_forward_hook(keep("attended", layer, of_output=family != "gpt2")))
    for layer, module in enumerate(activation_functions(reference)):
        hooks.append(module.register_forward_hook(keep("activation", layer)))
    with torch.inference_mode():
        output = reference(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    for layer, attention in enumerate(output.attentions):
        values["attention", layer] = attention[0]
        values["hidden", layer] = output.hidden_states[layer][0]
        if family == "gpt2":  # one product, cut in three
            for kind, part in zip(("query", "key", "value"), values["query", layer].chunk(3, dim=-1), strict=True):
                values[kind, layer] = part
    values["final_hidden", None] = output.hidden_states[-1][0]
    return {key: value.numpy() for key, value in values.items()}


def our_inside(inspection):
    """The same of an inspection, heads side by side as in transformers' products."""
    values = {("final_hidden", None): inspection.final_hidden}
    for layer in inspection.layers:
        for name in ("query", "key", "value"):
            values[name, layer.index] = getattr(layer, name).reshape(len(inspection.tokens), -1)
        for name in ("attention", "attended", "activation", "hidden"):
            values[name, layer.index] = getattr(layer, name)
    return values

"""Prompts to token ids: the mask token written in a text, and words that are one token."""

from collections.abc import Sequence

import tokenizers

from spin_native.errors import InputError
from spin_native.text.tokenizer import Tokenizer, check_text

MASKS = ("<mask>", "[MASK]")  # as RoBERTa, MPNet and XLM-RoBERTa write it; as BERT and DistilBERT do


def mask_token(tokenizer: Tokenizer) -> tuple[str, int]:
    """The mask token as it is written in a prompt, and its id; InputError for a vocabulary without one (GPT-2's)."""
    for token in MASKS:
        token_id = tokenizer._backend.token_to_id(token)
        if token_id is not None:
            return token, token_id
    raise InputError(
        f"the tokenizer has no mask token ({' or '.join(MASKS)}): use position='last' with a causal model, such as GPT-2"
    )


def word_id(tokenizer: Tokenizer, word: str) -> int:
    """The id of a word as it stands in running text, after a space; InputError, with its pieces, if it is not one token."""
    encoding = tokenizer._backend.encode(" " + word.strip(), add_special_tokens=False)
    if len(encoding.ids) != 1 or not word.strip():
        raise InputError(
            f"the target word {word!r} is {len(encoding.ids)} tokens ({', '.join(encoding.tokens)}); expected one token: "
            "choose another word, or give the id of one of its tokens"
        )
    return encoding.ids[0]


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt. Unlike in `Tokenizer.encode`, a special token that is written in a prompt is read as such.

    Raises InputError for a prompt that is not a str, has no token, or has more tokens than the model holds: a truncated prompt
    would lose the position that is probed.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.no_truncation()
    backend.encode_special_tokens = False
    for token in MASKS:  # a plain vocabulary file lists the mask, but does not say that it is a special token
        if backend.token_to_id(token) is not None:
            # transformers' RoBERTa and MPNet mask takes the space before it along.
            backend.add_special_tokens([tokenizers.AddedToken(token, lstrip=token == "<mask>", special=True)])
    for row, prompt in enumerate(prompts):
        check_text(prompt, row)
    encoded = [encoding.ids for encoding in backend.encode_batch_fast(list(prompts))]
    for row, ids in enumerate(encoded):
        if not 1 <= len(ids) <= tokenizer.max_tokens:
            raise InputError(f"prompt {row} has {len(ids)} tokens; expected 1 to {tokenizer.max_tokens}, what the model holds")
    return encoded

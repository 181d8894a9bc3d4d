"""Prompts to token ids: the mask token written in a text."""

from collections.abc import Sequence

import tokenizers

from spin_native.errors import InputError
from spin_native.text.tokenizer import Tokenizer, check_text


def mask_token(tokenizer: Tokenizer) -> tuple[str, int]:
    """The mask token as it is written in a prompt, and its id; InputError for a tokenizer without one (GPT-2's)."""
    mask_id = tokenizer.mask_id
    if mask_id is None:
        raise InputError("the tokenizer has no mask token: use position='last' with a causal language model, such as GPT-2")
    return tokenizer.token_strings([mask_id])[0], mask_id


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt. Unlike in `Tokenizer.encode`, a special token that is written in a prompt is read as such.

    Raises InputError for a prompt that is not a str, has no token, or has more tokens than the model holds: a truncated prompt
    would lose the position that is probed.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.no_truncation()
    backend.encode_special_tokens = False
    if tokenizer.mask_id is not None:  # a plain vocabulary file lists the mask, but does not say that it is a special token
        token, _ = mask_token(tokenizer)
        # The published mask of RoBERTa and MPNet takes the space before it along.
        backend.add_special_tokens([tokenizers.AddedToken(token, lstrip=token == "<mask>", special=True)])
    for row, prompt in enumerate(prompts):
        check_text(prompt, row)
    encoded = [encoding.ids for encoding in backend.encode_batch_fast(list(prompts))]
    for row, ids in enumerate(encoded):
        if not 1 <= len(ids) <= tokenizer.max_tokens:
            raise InputError(f"prompt {row} has {len(ids)} tokens; expected 1 to {tokenizer.max_tokens}, what the model holds")
    return encoded

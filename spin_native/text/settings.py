"""What the JSON files beside a vocabulary say about a tokenizer, read in the order in which transformers 5 reads them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from spin_native.errors import InputError

CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS, WHOLE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
# In transformers' order, which decides the ids of tokens that are in no vocabulary.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA = ("extra_special_tokens", "additional_special_tokens")  # the new name and the old one
FLAGS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "add_bos_token",
    "add_eos_token",
    "normalization",
    "split_special_tokens",
)
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

Token = str | AddedToken


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings that can change token ids.

    tokenizer_class: the name of a class of transformers, if a file names one.
    flags: those of FLAGS that the files set. truncation_side: where a long text is cut, if a file says so.
    special: role ("cls_token") -> token, None where a file says that there is none. extra: further special tokens.
    added: id -> token, as the files list them.
    """

    tokenizer_class: str | None
    flags: dict[str, bool]
    truncation_side: str | None
    special: dict[str, Token | None]
    extra: list[Token]
    added: dict[int, AddedToken]


def read_settings(files: Mapping[str, Path], whole: Mapping[str, Any] | None) -> TokenizerSettings:
    """Combine the JSON files of a tokenizer.

    files: name -> path of the files that exist. whole: the content of tokenizer.json, if there is one.

    With added_tokens_decoder in tokenizer_config.json, that file says all about special and added tokens. Without it,
    special_tokens_map.json goes before tokenizer_config.json, and added tokens come from added_tokens.json and tokenizer.json.
    Raises InputError for a file that is not a JSON object, and a setting of a wrong type.
    """
    config = read_object(files[CONFIG]) if CONFIG in files else {}
    where = str(files.get(CONFIG, CONFIG))
    if any(name != WHOLE for name in _listed(config.get("fast_tokenizer_files"), where)):
        raise InputError(f"{where}: fast_tokenizer_files names other files than {WHOLE}; load it with transformers and save it")
    if whole is not None:  # its post-processor says which tokens stand around a text
        config = {key: value for key, value in config.items() if key not in ("add_bos_token", "add_eos_token")}
    flags = {key: _flag(config[key], key, where) for key in FLAGS if config.get(key) is not None}
    tokens = _special_tokens(config, where)
    if "added_tokens_decoder" in config:
        listed = _mapping(config["added_tokens_decoder"], f"{where}: added_tokens_decoder")
        added = {_token_id(key, where): _token(token, where) for key, token in listed.items()}
    else:
        if SPECIAL_TOKENS_MAP in files:
            path = files[SPECIAL_TOKENS_MAP]
            content = read_object(path)
            of_map, extra = _special_tokens(content, str(path), special=True), tokens.get(EXTRA[0])
            if extra is not None:  # here the old name adds nothing to what tokenizer_config.json lists
                more = of_map.pop(EXTRA[0], []) if content.get(EXTRA[0]) else []
                of_map[EXTRA[0]] = extra + [token for token in more if token not in extra]
            tokens.update(of_map)
        added = _added_tokens(files, tokens)
        for entry in _listed((whole or {}).get("added_tokens"), WHOLE):
            token = _mapping(entry, f"{WHOLE}: added_tokens")
            added[_token_id(token.get("id"), WHOLE)] = _token(token, WHOLE)
    of_content = {token.content: token for token in added.values()}
    extra = tokens.pop(EXTRA[0], None) or []
    for role in ROLES:
        if tokens.get(role) is not None:
            tokens[role] = of_content.get(text_of(tokens[role]), tokens[role])
    return TokenizerSettings(
        tokenizer_class=_optional_str(config, "tokenizer_class", where),
        flags=flags,
        truncation_side=_truncation_side(config, where, whole),
        special=tokens,
        extra=extra,
        added=added,
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError for whatever else it holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no UTF-8, and numbers of 5000 digits
        raise InputError(f"{path}: not readable as tokenizer files (not JSON: {error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}; expected a JSON object; fetch the file again")
    return content


def text_of(token: Token) -> str:
    return token if isinstance(token, str) else token.content


def _special_tokens(content: Mapping[str, Any], where: str, *, special: bool = False) -> dict[str, Any]:
    """Role -> token of all keys that end in "_token", and the list of extra tokens under the new name.

    special: tokens written as an object are special, whatever the object says.
    """
    tokens: dict[str, Any] = {}
    for key, value in content.items():
        if key in ROLES or (key.endswith("_token") and isinstance(value, (str, dict))):
            tokens[key] = None if value is None else _str_or_token(value, f"{where}: {key}", special)
    new, old = (content.get(key) for key in EXTRA)
    extra = new or old
    if isinstance(extra, dict):  # more roles
        tokens.update({key: _str_or_token(value, f"{where}: {key}", special) for key, value in extra.items()})
    elif extra is not None:
        tokens[EXTRA[0]] = [
            _str_or_token(value, f"{where}: {EXTRA[0]}", special or "__type" not in str(value))
            for value in _listed(extra, where)
        ]
    return tokens


def _added_tokens(files: Mapping[str, Path], tokens: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json, which are special where another file names them as such."""
    if ADDED_TOKENS not in files:
        return {}
    path = str(files[ADDED_TOKENS])
    named = [tokens[role] for role in ROLES if tokens.get(role) is not None] + (tokens.get(EXTRA[0]) or [])
    special = {text_of(token) for token in named}
    return {
        _token_id(token_id, path): AddedToken(content, normalized=content not in special, special=content in special)
        for content, token_id in read_object(files[ADDED_TOKENS]).items()
    }


def _truncation_side(config: Mapping[str, Any], where: str, whole: Mapping[str, Any] | None) -> str | None:
    side = _optional_str(config, "truncation_side", where)
    if side is None:
        truncation = (whole or {}).get("truncation") or {}
        side = truncation.get("direction", "Right").lower() if truncation else None
    if side not in (None, "left", "right"):
        raise InputError(f"{where}: truncation_side is {side!r}; expected 'left' or 'right'")
    return side


def _str_or_token(value: object, where: str, special: bool) -> Token:
    if isinstance(value, str):
        return value
    return _token({**_mapping(value, where), "special": True} if special else value, where)


def _token(value: object, where: str) -> AddedToken:
    fields = _mapping(value, where)
    content = _optional_str(fields, "content", where)
    if content is None:
        raise InputError(f"{where}: a token without its content ({str(value)[:60]}); fetch the file again")
    flags = {key: _flag(fields[key], key, where) for key in TOKEN_FLAGS if fields.get(key) is not None}
    return AddedToken(content, **flags)


def _token_id(value: object, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise InputError(f"{where}: {str(value)[:40]!r} as the id of an added token; expected a whole number below 2**32")
    return value


def _flag(value: object, key: str, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where}: {key} is {str(value)[:40]!r}; expected true or false")
    return value


def _optional_str(content: Mapping[str, Any], key: str, where: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {key} is {str(value)[:40]!r}; expected a text")
    return value


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} holds {str(value)[:40]!r}; expected a JSON object")
    return value


def _listed(value: object, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InputError(f"{where}: {str(value)[:40]!r}; expected a list")
    return value

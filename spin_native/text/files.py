"""Tokenizer files to a tokenizer whose ids equal those of transformers 5, but for DIVERGENCES."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, processors

from spin_native.errors import InputError
from spin_native.text.classes import (
    ALIASES,
    CLASS_OF_FAMILY,
    CLASSES,
    END_OF_TEXT,
    MODEL_OF,
    ROBERTA_TOKENS,
    Joins,
    Parts,
    in_order,
    parts_of_file,
    word_piece,
)
from spin_native.text.fastbpe import FastBpe
from spin_native.text.settings import TOKEN_FLAGS, WHOLE, Token, TokenizerSettings, read_object, read_settings, text_of

DIVERGENCES = {
    "a special token in a text": "is text, as with split_special_tokens=True; special_tokens_in_text=True reads it as itself",
    "an added token of BERTweet that is not special": "is read as itself; split_special_tokens=True would split it, too",
    "an empty text without special tokens around it (GPT-2)": "is <|endoftext|>, because a row needs a token",
    "a pair whose second text is empty": "is a pair, as in a batch of transformers; its tokenizer(first, '') reads a single "
    "text, and so does its BERTweet that cuts on the left",
    "a lone surrogate": "is refused by name; transformers raises TypeError, or reads it (BERTweet)",
    "model_max_length and tokenizer.json's truncation length": "are not followed; a text is cut to the position table",
    "a first or last token that no file lists": "is refused; transformers would invent an id for it",
    "missing vocabulary files": "are refused; transformers would make a tokenizer of five tokens",
    "a sentencepiece model (.model)": "is refused unless a tokenizer.json lies beside it",
    "BERTweet with normalization": "is refused; it needs packages that this one does not install",
    "a setting of a wrong type": "is refused by name; transformers raises or ignores it",
    "another tokenizer class": "reads its tokenizer.json as it stands, as transformers does for a class that it does not know",
}
BERTWEET, BERTWEET_FILES = "BertweetTokenizer", ("vocab.txt", "bpe.codes")
# Parts of tokenizer.json that cannot change ids. The direction of its truncation is read apart.
WITHOUT_EFFECT = ("version", "truncation", "padding", "decoder", "added_tokens", "post_processor")


@dataclass(frozen=True)
class Built:
    """A tokenizer.

    fingerprint: sha256 over all that can change its ids. truncation_side: where it cuts long texts.
    end_of_text, mask, unknown: the ids of <|endoftext|>, of the mask token and of the unknown token, if the files list them.
    """

    backend: tokenizers.Tokenizer | FastBpe
    fingerprint: str
    truncation_side: str
    end_of_text: int | None
    mask: int | None
    unknown: int | None


def build(files: Mapping[str, Path], family: str, tokenizer_class: str | None, special_tokens_in_text: bool) -> Built:
    """Build the tokenizer of a checkpoint.

    files: name -> path of the files that exist. family: config.json's model_type. tokenizer_class: as config.json names it.
    Raises InputError if the files are no complete set, or damaged.
    """
    where = ", ".join(map(str, files.values()))
    with damage_refused(where):
        whole = read_object(files[WHOLE]) if WHOLE in files else None
        settings = read_settings(files, whole)
        name = _class_name(files, family, settings.tokenizer_class or tokenizer_class)
        backend, used = _backend(name, files, whole, settings)
        if not backend.get_vocab(with_added_tokens=True):
            raise InputError(f"{where}: the vocabulary is empty; fetch the files again")
        looks_for_special = special_tokens_in_text and not settings.flags.get("split_special_tokens", False)
        backend.encode_special_tokens = not looks_for_special  # the library's name for: special tokens in a text are text
        side = settings.truncation_side or "right"
        used |= {"added": _added_used(backend, looks_for_special), "reads_special": looks_for_special, "cut": side}
        backend.encode_batch_fast([""])  # a post-processor with an unknown token panics here, and not at a user's first text
        fingerprint = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
        default = ROBERTA_TOKENS if name == BERTWEET else CLASSES[name].special if name in CLASSES else {}
        special = in_order({**default, **settings.special})
        listed = (special.get("mask_token"), special.get("unk_token"))
        ids = (_listed_id(token, backend, settings) for token in (END_OF_TEXT, *listed))
        return Built(backend, fingerprint, side, *ids)


@contextmanager
def damage_refused(where: str) -> Iterator[None]:
    """Raise what a damaged file makes Python or the tokenizers library raise as one InputError."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise InputError(f"{where}: not readable as tokenizer files ({reason(error)}); fetch them again") from error


def is_failure(error: BaseException) -> bool:
    """Whether this is an Exception, or a panic of the tokenizers library, which derives from BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}".splitlines()[0]


def _class_name(files: Mapping[str, Path], family: str, named: str | None) -> str:
    """The class of transformers that builds the tokenizer."""
    name = (named or CLASS_OF_FAMILY.get(family, "")).removesuffix("Fast")
    name = ALIASES.get(name.removesuffix("Tokenizer"), name)
    if name == "RobertaTokenizer" and files.keys() >= set(BERTWEET_FILES) and not files.keys() & {WHOLE, "vocab.json"}:
        return BERTWEET  # published with RoBERTa's model_type
    return name


def _backend(
    name: str, files: Mapping[str, Path], whole: dict[str, Any] | None, settings: TokenizerSettings
) -> tuple[tokenizers.Tokenizer | FastBpe, dict[str, Any]]:
    """The tokenizer with its added tokens, and what of the files can change its ids."""
    rules = CLASSES.get(name)
    if name == BERTWEET and files.keys() >= set(BERTWEET_FILES):
        return _bertweet(files, settings)
    if whole is not None and rules is None:
        backend = tokenizers.Tokenizer.from_file(str(files[WHOLE]))
        _add_tokens(backend, settings, in_order(settings.special))
        kept = {key: value for key, value in whole.items() if key not in WITHOUT_EFFECT}
        return backend, {**kept, "around": _changing_ids(whole.get("post_processor"))}
    if rules is None or (whole is None and not (rules.vocabulary and files.keys() >= set(rules.vocabulary))):
        expected = " with ".join(rules.vocabulary) if rules is not None and rules.vocabulary else ""
        raise InputError(
            f"no tokenizer in {', '.join(sorted(files)) or 'no files'}: {name or 'this model'} needs "
            f"{expected + ' or ' if expected else ''}{WHOLE}; load it with transformers and save it in this folder"
        )
    special = rules.tokens(settings.special)
    if whole is not None and (kind := whole["model"].get("type")) not in (None, MODEL_OF[rules.build]):
        raise InputError(
            f"{files[WHOLE]}: holds a {kind} model, {name} needs {MODEL_OF[rules.build]}; name the right tokenizer_class in "
            "tokenizer_config.json, or the right model_type in config.json"
        )
    if whole is not None:
        vocab, merges, charsmap = parts_of_file(whole["model"], whole.get("normalizer"))
    else:
        paths, charsmap = [str(files[filename]) for filename in rules.vocabulary], None
        vocab, merges = models.BPE.read_file(*paths) if len(paths) == 2 else (models.WordPiece.read_file(*paths), [])
    needed = [*(rules.around or ()), *(["unk_token"] if rules.build is word_piece else [])]
    if nulls := [role for role in needed if role not in special]:
        raise InputError(f"{', '.join(map(str, files.values()))}: {nulls[0]} is null; {name} needs one")
    backend, used = rules.build(Parts(vocab, merges, charsmap, special, settings.flags))
    around = rules.around or _causal_roles(settings, special)
    _refuse_unlisted([text_of(special[role]) for role in around if role], backend, settings, files)
    _add_tokens(backend, settings, special)
    if rules.around is None and whole is not None:
        backend.post_processor = _post_processor(whole)
        return backend, {**used, "around": _changing_ids(whole.get("post_processor"))}
    first, last = (text_of(special[role]) if role else None for role in around)
    ids = {token: token_id for token in (first, last) if token and (token_id := backend.token_to_id(token)) is not None}
    backend.post_processor = _around(first, last, ids, rules.joins)
    return backend, {**used, "around": [first and ids[first], last and ids[last]]}


def _around(first: str | None, last: str | None, ids: Mapping[str, int], joins: Joins) -> processors.PostProcessor:
    """A post-processor that puts these tokens around a text, and around the texts of a pair."""
    if first is not None and last is not None and joins == "types":
        return processors.BertProcessing((last, ids[last]), (first, ids[first]))
    if first is not None and last is not None and joins == "doubled":
        return processors.RobertaProcessing((last, ids[last]), (first, ids[first]), trim_offsets=False)
    # A template takes no tokens with spaces or colons: names stand for them.
    named = {name: token for name, token in (("first", first), ("last", last)) if token is not None}
    single, second = (
        [f"{piece}:0" for piece in ("first", text, "last") if piece in named or piece == text] for text in ("$A", "$B")
    )
    special = [{"id": name, "ids": [ids[token]], "tokens": [token]} for name, token in named.items()]
    return processors.TemplateProcessing(single=single, pair=[*single, *second], special_tokens=special)


def _bertweet(files: Mapping[str, Path], settings: TokenizerSettings) -> tuple[FastBpe, dict[str, Any]]:
    if settings.flags.get("normalization", False):
        raise InputError(
            f"{files['vocab.txt'].parent}: tokenizer_config.json asks for BERTweet's normalization of tweets, which is not "
            "implemented; normalize the texts as BERTweet's page shows, and set normalization to false"
        )
    special = {role: text_of(token) for role, token in in_order({**ROBERTA_TOKENS, **settings.special}).items()}
    backend = FastBpe.from_files(files["vocab.txt"], files["bpe.codes"], special, settings)
    ranks = sorted(backend.ranks, key=backend.ranks.__getitem__)
    used = {"model": "fastBPE", "vocab": backend.vocab, "merges": ranks, "unknown": backend.unknown}
    return backend, {**used, "around": [backend.first, backend.last]}


def _causal_roles(settings: TokenizerSettings, special: Mapping[str, Token]) -> tuple[str | None, str | None]:
    """The roles of the tokens around a text of GPT-2, whose files may ask for either."""
    asked = (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token"))
    first, last = (role if settings.flags.get(flag, False) and role in special else None for flag, role in asked)
    return first, last


def _refuse_unlisted(
    tokens: list[str], backend: tokenizers.Tokenizer, settings: TokenizerSettings, files: Mapping[str, Path]
) -> None:
    """InputError if a token that stands around every text is in no file."""
    for token in tokens:
        if not _is_listed(token, backend, settings):
            raise InputError(
                f"{', '.join(map(str, files.values()))}: holds no {token}, which every text of this model needs: is it this "
                "model's vocabulary?"
            )


def _listed_id(token: Token | None, backend: tokenizers.Tokenizer | FastBpe, settings: TokenizerSettings) -> int | None:
    """The id of a token, None for one that no file lists. BERTweet's mask is in no file: the class adds it."""
    if token is None or not (isinstance(backend, FastBpe) or _is_listed(text_of(token), backend, settings)):
        return None
    return backend.token_to_id(text_of(token))


def _is_listed(token: str, backend: tokenizers.Tokenizer | FastBpe, settings: TokenizerSettings) -> bool:
    """Whether a token is in the vocabulary, or among the added tokens of the files."""
    if isinstance(backend, FastBpe):
        return token in backend.vocab
    return backend.model.token_to_id(token) is not None or any(token == added.content for added in settings.added.values())


def _add_tokens(backend: tokenizers.Tokenizer, settings: TokenizerSettings, special: Mapping[str, Token]) -> None:
    """Add the listed tokens in the order of their ids, then special tokens that are not listed.

    The library looks a token up in the vocabulary, and gives it the next free id if it is not there.
    """
    there = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    adding: list[Token] = [token for _, token in sorted(settings.added.items()) if repr(token) not in there]
    known = {token.content for token in backend.get_added_tokens_decoder().values()} | set(map(text_of, adding))
    adding += [token for token in [*special.values(), *settings.extra] if text_of(token) not in known]
    names = set(map(text_of, special.values()))
    backend.add_tokens([_as_added(token, is_special=text_of(token) in names) for token in adding])


def _as_added(token: Token, *, is_special: bool) -> AddedToken:
    """An added token; in place, because a token whose `normalized` is not set is normalized unless it is special."""
    if isinstance(token, str):
        return AddedToken(token, special=True)
    token.special = token.special or is_special
    return token


def _post_processor(whole: Mapping[str, Any]) -> processors.PostProcessor | None:
    """The post-processor of tokenizer.json, read without its vocabulary."""
    empty = {**whole, "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    return tokenizers.Tokenizer.from_str(json.dumps(empty)).post_processor


def _changing_ids(post_processor: Any) -> Any:
    """A post-processor of tokenizer.json without the steps that change offsets only."""
    if not isinstance(post_processor, dict) or post_processor.get("type") == "ByteLevel":
        return [None, None]
    if post_processor.get("type") == "Sequence":
        return [step for step in post_processor["processors"] if step.get("type") != "ByteLevel"]
    return post_processor


def _added_used(backend: tokenizers.Tokenizer | FastBpe, looks_for_special: bool) -> list[Any]:
    """The added tokens, if any is looked for in a text.

    The others belong to it: where two overlap, the library finds the longer one first.
    """
    added = backend.get_added_tokens_decoder()
    if not looks_for_special and all(token.special for token in added.values()):
        return []
    return [
        [token_id, token.content, [getattr(token, flag) for flag in TOKEN_FLAGS]] for token_id, token in sorted(added.items())
    ]

"""Ways to damage or to forge a file: its bytes, its JSON, its tensors, its pickle. Each is (random, bytes, ...) -> bytes."""

import io
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

RAW = "~~raw~~"  # before and after a text that is no JSON string, but goes into the file as it stands
PATHS = ("../x", "../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:x", "a\x00b", "~", "x" * 300)
NUMBERS = (-1, 0, 1, 2, 7, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1.7e308)
NO_JSON = ("NaN", "-Infinity", "1e999", "1" + "0" * 5000, "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "'", "01")
OTHERS = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [{}],
    {"a": 1},
    "1",
    "mean",
    "best",
    "refit",
    "bert",
    "x" * 100_000,
    "\ud800",
    "é",
    "😀",
)


# On bytes.


def bytes_changed(random: Random, content: bytes) -> bytes:
    """One to three small changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = _bytes_changed_once(random, content)
    return content


def _bytes_changed_once(random: Random, content: bytes) -> bytes:
    """A bit, a byte, a cut, an insertion, a swap, a repetition, or a run of one byte."""
    at, n = random.randrange(len(content) + 1), random.choice((1, 1, 2, 4, 8, 64, 1000))
    end = min(at + n, len(content))
    before, some, after = content[:at], content[at:end], content[end:]
    elsewhere = random.randrange(len(content) + 1)
    other, new = content[elsewhere : elsewhere + n], random.randbytes(min(n, 16))
    return random.choice(
        (
            before + bytes(byte ^ 1 << random.randrange(8) for byte in some[:1]) + some[1:] + after,
            before + new + after,
            before,
            some + after,
            before + after,
            before + new + some + after,
            before + other + some + after,
            before + other + after,
            before + random.choice((b"\x00", b"\xff", b" ", b"[", b'"')) * (end - at) + after,
        )
    )


def encoded_otherwise(random: Random, content: bytes) -> bytes:
    """The same text with a byte order mark, in UTF-16, in Latin-1, with other line ends, or twice."""
    text = content.decode(errors="replace")
    return random.choice(
        (
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.encode("latin-1", "replace") + b"\xe9",
            content.replace(b"\n", b"\r\n"),
            content.replace(b"\n", b"\r"),
            content + content,
            b"",
            b"version https://git-lfs.github.com/spec/v1\n",
        )
    )


# On JSON.


def json_changed(random: Random, content: bytes) -> bytes:
    """A JSON file with one or two values or keys changed."""
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 2))):
        value = value_changed(random, value)
    return as_json(value)


def as_json(value: Any) -> bytes:
    """JSON, with the marked texts as they stand."""
    text = re.sub(f'"{RAW}(.*?){RAW}"', lambda marked: json.loads(f'"{marked[1]}"'), json.dumps(value))
    return text.encode()


def value_changed(random: Random, value: Any) -> Any:
    """One place of a JSON value: another value there, another key, one key less, one twice, items more or fewer."""
    places = [(None, None), *_places(value)]
    inside, key = random.choice(places)
    if inside is None:
        return (
            _new_value(random, value, value)
            if random.random() < 0.2
            else value_changed(random, value)
            if len(places) > 1
            else value
        )
    what = random.random()
    if what < 0.6:
        inside[key] = _new_value(random, inside[key], value)
    elif isinstance(inside, dict):
        old = inside.pop(key)
        if what < 0.7:
            inside[random.choice((*PATHS, key + "x", key[:-1]))] = old
        elif what < 0.8:  # the key twice
            again = json.dumps(_new_value(random, old, value)) if random.random() < 0.5 else json.dumps(old)
            inside[key] = f"{RAW}{json.dumps(old)},{json.dumps(key)}:{again}{RAW}" if RAW not in again + str(old) else old
        elif what < 0.9:
            inside[key] = old
            inside["unknown"] = _new_value(random, old, value)
    elif what < 0.8:
        inside.append(inside[key])
    else:
        del inside[key]
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, below in inner for place in ((value, key), *_places(below))]


def _new_value(random: Random, old: Any, whole: Any) -> Any:
    kind = random.randrange(6)
    if kind == 0 and isinstance(old, (int, float)):
        return random.choice((old + 1, old - 1, -old, float(old), str(old), [old]))
    if kind == 1:
        inside, key = random.choice(_places(whole) or [([old], 0)])  # a value from elsewhere in the file
        return json.loads(json.dumps(inside[key])) if RAW not in json.dumps(inside[key]) else old
    return random.choice((PATHS, NUMBERS, [RAW + text + RAW for text in NO_JSON], OTHERS)[kind % 4])


# On safetensors files.


def safetensors_changed(random: Random, content: bytes) -> bytes:
    """Another header length, a header with changed JSON, or other numbers."""
    n_header = struct.unpack("<Q", content[:8])[0]
    header, body = content[8 : 8 + n_header], content[8 + n_header :]
    kind = random.randrange(4)
    if kind == 0:
        lengths = (0, 1, n_header - 1, n_header + 1, len(content), 100_000_001, 2**31, 2**63 - 1, 2**63, 2**64 - 1)
        return struct.pack("<Q", random.choice(lengths)) + content[8:]
    if kind == 1:
        header = json_changed(random, header)
    elif kind == 2:
        entries = json.loads(header)
        entry = entries[random.choice([name for name in entries if name != "__metadata__"])]
        field = random.choice(("dtype", "shape", "data_offsets"))
        entry[field] = random.choice(
            {
                "dtype": ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "Q7"),
                "shape": ([2**62, 4], [2**32, 2**32], [0], [], [-1], [1, *entry["shape"]], entry["shape"][::-1]),
                "data_offsets": ([0, 0], [0, 2**63], [8, 0], [0, len(body)], [len(body), 2 * len(body)], [-8, 0]),
            }[field]
        )
        header = json.dumps(entries).encode()
    else:
        at = random.randrange(max(1, len(body) - 8))
        body = (
            body[:at]
            + random.choice((b"\xff" * 8, b"\x00" * 8, struct.pack("<d", np.inf), random.randbytes(8)))
            + body[at + 8 :]
        )
    return struct.pack("<Q", len(header)) + header + body


def tensors_changed(random: Random, content: bytes) -> bytes:
    """A valid file with one tensor of another value, type or shape, under another name, or gone."""
    tensors = load(content)
    name = random.choice(sorted(tensors))
    tensor = tensors.pop(name)
    other = random.choice(sorted(tensors) or [name])
    flat = tensor.reshape(-1)
    with np.errstate(all="ignore"):
        filled = tensor.copy()
        if flat.size:
            whole = filled.dtype.kind in "iu"
            value = random.choice((0, -1, 1, 5, 31, 32, 2**40, -(2**63)) if whole else (0, -1, np.nan, np.inf, 1e38))
            filled.reshape(-1)[random.randrange(flat.size)] = np.array(value).astype(filled.dtype)
        changed = random.choice(
            (
                lambda: filled,
                lambda: filled,
                lambda: filled,
                lambda: tensor.astype(
                    random.choice((np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_))
                ),
                lambda: flat[:-1],
                lambda: np.concatenate([flat, flat[-1:]]),
                lambda: tensor.reshape((1, *tensor.shape)),
                lambda: tensor.T,
                lambda: flat[:1].reshape(()) if flat.size else tensor,
                lambda: np.sort(flat)[::-1].reshape(tensor.shape),
                lambda: tensors.get(other, tensor),
            )
        )()
    target = random.choice((name, name, name, other, name + "x", name.replace("0", "1"), name.replace("1", "9")))
    if random.random() < 0.9:
        tensors[target] = changed
    return save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})


# On pickles.


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *given: object) -> None:
        self.called = function, given

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.called


def pickle_forged(random: Random, content: bytes, canary: Path) -> bytes:
    """What some pytorch_model.bin hold instead of a state dict of plain tensors, and what an attacker would put there."""
    tensors = torch.load(io.BytesIO(content), weights_only=True)
    name = random.choice(sorted(tensors))
    evil = random.choice(
        (
            Calls(os.system, f"touch '{canary}'"),
            Calls(eval, f"open({str(canary)!r}, 'w')"),
            Calls(open, str(canary), "w"),
            Calls(os.mkdir, str(canary)),
            Calls(bytearray, 10**11),
            Calls(torch.load, str(canary)),
        )
    )
    plain = tensors[name]
    odd = random.choice(
        (
            evil,
            plain.to_sparse(),
            torch.quantize_per_tensor(plain.float(), 0.1, 0, torch.qint8),
            plain.to("meta"),
            plain.to(torch.complex64),
            plain[:0],
            plain.reshape(-1)[:1].expand(10**12),
            torch.nn.Parameter(plain),
            {"inner": plain},
            plain.numpy(),
            "text",
            None,
        )
    )
    whole = random.choice(
        (
            lambda: {**tensors, name: odd},
            lambda: {**tensors, "more": odd},
            lambda: {**tensors, 7: plain},
            lambda: {"state_dict": tensors, "epoch": 3},
            lambda: {"model": tensors, "args": odd},
            lambda: [tensors],
            lambda: odd,
            lambda: tensors,
        )
    )()
    kind = random.randrange(4)
    file = io.BytesIO()
    if kind == 0:
        pickle.dump(whole, file, protocol=random.choice((0, 2, 4)))
    else:
        torch.save(whole, file, _use_new_zipfile_serialization=kind != 1)
    return _compressed(file.getvalue()) if kind == 3 else file.getvalue()


def _compressed(content: bytes) -> bytes:
    """A zip archive that unpacks to far more than its size."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry) + b"\x00" * 10**6)
    return file.getvalue()

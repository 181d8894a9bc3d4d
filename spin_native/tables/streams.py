"""Lines of a stream as they arrive: of a pipe, a terminal, or a file."""

import codecs
from collections.abc import Iterator
from io import BufferedIOBase

from spin_native.errors import InputError
from spin_native.tables.files import MAX_CELL, SAMPLE, check_start, checked_encoding, undecodable


def arriving_lines(stream: BufferedIOBase, name: str, encoding: str | None = None) -> Iterator[list[str]]:
    """The lines that are there, as soon as there is one, without their endings; then those that have arrived since; and so on.

    name: its name in errors. encoding: None for UTF-8, with or without a byte order mark.
    Raises InputError, naming the line, for bytes in another encoding, and for a line of more than MAX_CELL characters.
    """
    encoding = checked_encoding(encoding)
    decoder = codecs.getincrementaldecoder(encoding)()
    unfinished: list[str] = []
    n_lines, n_characters = 0, 0
    is_first = True
    while True:
        chunk = stream.read1(SAMPLE)
        if is_first:
            check_start(name, chunk, encoding)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            place = n_lines + 1
            if isinstance(error, UnicodeDecodeError):
                place += error.object[: error.start].decode(encoding, "ignore").count("\n")
            raise InputError(f"{name}: line {place} is not {encoding} text; {undecodable(chunk, encoding)}") from error
        if is_first:
            text, is_first = text.removeprefix("\ufeff"), not text
        *finished, rest = text.split("\n")
        if finished:
            finished[0] = "".join([*unfinished, finished[0]])
            unfinished, n_characters = [], 0
            n_lines += len(finished)
            yield [line.removesuffix("\r") for line in finished]
        unfinished.append(rest)
        n_characters += len(rest)
        if n_characters > MAX_CELL:
            raise InputError(f"{name}: line {n_lines + 1} has more than {MAX_CELL} characters; expected one text per line")
        if not chunk:
            if last := "".join(unfinished):
                yield [last.removesuffix("\r")]
            return

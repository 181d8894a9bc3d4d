"""Labelled rows for the commands: one column of labels, or for several labels per text also several 0/1 columns."""

from pathlib import Path
from typing import Any

from spin_native import tables
from spin_native.errors import InputError


class LabelledFiles:
    """How the rows of a command's files are read: their columns, and their format.

    text_pair: the column of second texts, if each row is a pair. label: the column of labels; or, if there is no such column,
    several 0/1 columns with commas between them, each named as its label. separator: between the labels of one cell (None:
    "|").
    """

    def __init__(
        self,
        text: str,
        label: str,
        separator: str | None,
        delimiter: str | None,
        encoding: str | None,
        text_pair: str | None = None,
    ) -> None:
        self.text, self.text_pair, self.label, self._given_separator = text, text_pair, label, separator
        self._how: dict[str, Any] = {"delimiter": delimiter, "encoding": encoding}
        self._columns: list[str] | None = None

    @property
    def columns(self) -> list[str]:
        """The columns of labels, as the first file that was checked has them."""
        return [self.label] if self._columns is None else self._columns

    def check(self, path: Path) -> None:
        """InputError if a file has no such columns, or cannot be read. The first file decides whether --label names several."""
        source = tables.open_source(path, **self._how)
        if self._columns is None:
            source.check(self._text_columns)
            self._columns = self._found(source)
        source.check([*self._text_columns, *self._columns])

    @property
    def _text_columns(self) -> list[str]:
        return tables.text_columns(self.text, self.text_pair)

    def _found(self, source: tables.Source) -> list[str]:
        names = [name.strip() for name in self.label.split(",")]
        if len(names) > 1:
            try:
                source.check([self.label])
            except InputError:
                return names
        return [self.label]

    def check_task(self, task: str) -> None:
        """InputError for what only several labels per text can use."""
        if task == "multilabel":
            return
        if self._given_separator is not None:
            raise InputError(f"--separator is for a multilabel task, and this is a {task}; leave it out")
        if len(self.columns) > 1:
            raise InputError(f"--label names several columns, which is for a multilabel task, and this is a {task}; name one")

    def read(self, path: Path, task: str, labels_as: type | None) -> tuple[list[Any], list[Any]]:
        """All texts (or pairs of them) and labels of a file. labels_as: the type of one known label (None: not known)."""
        self.check_task(task)
        how = {**self._how, "text_pair": self.text_pair}
        if task != "multilabel":
            return tables.read_labelled(path, self.text, self.label, labels_as=labels_as, **how)
        separator = tables.SEPARATOR if self._given_separator is None else self._given_separator
        return tables.read_label_sets(path, self.text, self.columns, separator=separator, labels_as=labels_as, **how)

"""Labelled rows for the commands: one column of labels, or for several labels per text also several 0/1 columns."""

from pathlib import Path
from typing import Any

from spin_native import tables
from spin_native.errors import InputError


class LabelledFiles:
    """How the rows of a command's files are read: their columns, and their format.

    label: the column of labels; or, if there is no such column, several 0/1 columns with commas between them, each named as its
    label. separator: between the labels of one cell (None: "|"). task: what the labels are for; None: not known yet.
    """

    def __init__(self, text: str, label: str, separator: str | None, delimiter: str | None, encoding: str | None) -> None:
        self.text, self.label, self._given_separator = text, label, separator
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
            source.check([self.text])
            self._columns = self._found(source)
        source.check([self.text, *self._columns])

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

    def read(self, path: Path, task: str, labels_as: type | None) -> tuple[list[str], list[Any]]:
        """All texts and labels of a file. labels_as: the type of one known label (None: not known)."""
        self.check_task(task)
        if task != "multilabel":
            return tables.read_labelled(path, self.text, self.label, labels_as=labels_as, **self._how)
        separator = tables.SEPARATOR if self._given_separator is None else self._given_separator
        return tables.read_label_sets(path, self.text, self.columns, separator=separator, labels_as=labels_as, **self._how)

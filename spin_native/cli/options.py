"""Parameter types, options that several commands share, and help grouped under headings."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from spin_native.classifier.estimators import DTYPES
from spin_native.errors import InputError
from spin_native.given import is_unicode

file_path = click.Path(path_type=Path)


class Utf8Text(click.ParamType):
    """A text on the command line, which is UTF-8 whatever the locale says."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return value if is_unicode(value) else os.fsencode(value).decode()
        except UnicodeDecodeError:
            return self.fail(f"{value!r} is not UTF-8", param, ctx)


utf8_text = Utf8Text()


def one_pair(classifier: str, texts: Sequence[str], or_else: str = "") -> tuple[str, str]:
    """The TEXTS of a command as the two texts of one pair; InputError for another number of them, or "-"."""
    if len(texts) != 2 or "-" in texts:
        raise InputError(
            f"{classifier}: was fitted on pairs of texts; give two TEXTS, the first and the second text of one pair{or_else}"
        )
    return texts[0], texts[1]


class Several(click.ParamType):
    """One value or more, separated by commas. of: their type, or the list of allowed values."""

    name = "list"

    def __init__(self, of: type | Sequence[str]) -> None:
        self._of = click.types.convert_type(of) if isinstance(of, type) else click.Choice(of)
        self._metavar = self._of.name.upper() if isinstance(of, type) else f"[{'|'.join(of)}]"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"{self._metavar},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(self._of.convert(part.strip() if isinstance(part, str) else part, param, ctx) for part in parts)


class OrWord(click.ParamType):
    """A value of another type, or a word that stands for a value. words: word -> value."""

    name = "value or word"

    def __init__(self, of: click.ParamType, metavar: str, words: Mapping[str, Any]) -> None:
        self._of, self._metavar, self._words = of, metavar, words

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "|".join([self._metavar, *self._words])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self._words:
            return self._words[value]
        try:
            return self._of.convert(value, param, ctx)
        except click.BadParameter as error:
            words = " or ".join(map(repr, self._words))
            raise click.BadParameter(f"{error.message.rstrip('.')}; or give {words}", ctx, param) from None


class GroupedOption(click.Option):
    """An option with the heading that GroupedCommand lists it under."""

    def __init__(self, *args: Any, group: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its options under headings. groups: the headings, in order; the last one takes --help."""

    def __init__(self, *args: Any, groups: Sequence[str], **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records: dict[str, list[tuple[str, str]]] = {group: [] for group in self._groups}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                records[getattr(parameter, "group", self._groups[-1])].append(record)
        for group, lines in records.items():
            with formatter.section(group):
                formatter.write_dl(lines)


Decorator = Callable[[Any], Any]


def option(*names: str, group: str = "Options", **attributes: Any) -> Decorator:
    """click.option with a heading."""
    return click.option(*names, cls=GroupedOption, group=group, **attributes)


as_json = option("--json", "as_json", group="Output", is_flag=True, help="Print JSON for machines.")
text_column = option(
    "--text", group="Data", type=utf8_text, default="text", show_default=True, help="Column that holds the texts."
)
pair_column = option(
    "--text-pair",
    group="Data",
    type=utf8_text,
    help="Column of the second texts, if each row is a pair of texts.",
)
label_column = option(
    "--label",
    group="Data",
    type=utf8_text,
    default="label",
    show_default=True,
    help="Column that holds the labels. For several labels per text also several 0/1 columns: --label joy,anger.",
)
separator_option = option(
    "--separator", group="Data", type=utf8_text, help="What separates several labels of one text in a cell.  [default: |]"
)
delimiter_option = option(
    "--delimiter",
    group="Data",
    help="What separates the cells of a CSV file: one character, or tab.  [default: a tab in .tsv files, else a comma]",
)
encoding_option = option(
    "--encoding", group="Data", help="Encoding of CSV and JSONL files, such as cp1252 or utf-16.  [default: utf-8]"
)
device_option = option("--device", default="cpu", show_default=True, help="Where to run the base model: cpu, cuda, cuda:1.")
pickle_option = option("--allow-pickle", is_flag=True, help="Also read pytorch_model.bin. Only for files you trust.")
revision_option = option("--revision", help="Branch, tag or commit of a Hub model.")
dtype_option = option(
    "--dtype", type=click.Choice(list(DTYPES)), help="Number type of the base model.  [default: as it was fitted]"
)
base_option = option("--base-model", help="Folder or Hub name of the classifier's base model, if it has moved.")
exit_option = option(
    "--exit", "exit_", help="When a text stops: fixed:4, confidence:0.9 or patience:2.  [default: as saved in the classifier]"
)

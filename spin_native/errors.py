"""The one error that the package raises on purpose, and its warnings."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one sentence: what, where, got, expected, remedy. The command line prints it without a traceback; work
    finished before it is not lost.
    """


class TextError(InputError):
    """An InputError about one text. row: its number among the texts that were given."""

    def __init__(self, row: int, problem: str, what: str = "") -> None:
        super().__init__(row, problem, what)  # all arguments, so that a worker process can hand it over
        self.row, self.problem, self.what = row, problem, what

    def __str__(self) -> str:
        where = f"{self.what}: " if self.what else ""
        return f"{where}text {self.row}{'' if self.problem.startswith(':') else ' '}{self.problem}"

    def of(self, what: str, row: int) -> "TextError":
        """The same error under the name of the rows and the number that the caller knows the text by."""
        return TextError(row, self.problem, what)


class LeakWarning(UserWarning):
    """The same text is in two parts of the data, so the score on the held-out part is too good."""


class NoNeuronWarning(UserWarning):
    """No neuron is salient: every text gets the same answer."""


class HiddenClassWarning(UserWarning):
    """A class of the held-out rows is hardly ever recognised, and the accuracy hides it."""


class ShiftWarning(UserWarning):
    """The texts that a classifier reads differ from those it was fitted on, so its scores and promises may not hold."""


@contextmanager
def as_input_error(where: object, problem: str, remedy: str) -> Iterator[None]:
    """Turn whatever a library raises about a file into one InputError: where, the problem and what the library said, remedy.

    Also a panic of a library's Rust code, which Python sees as a BaseException.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # KeyboardInterrupt and the like
        said = str(error).strip().splitlines()
        raise InputError(f"{where}: {problem} ({said[0] if said else type(error).__name__}); {remedy}") from error

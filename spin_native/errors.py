"""The one error that the package raises on purpose, and its warnings."""


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

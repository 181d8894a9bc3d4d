"""The one error the package raises on purpose, and what it warns of."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one sentence that names what, where, what was got, what was expected, and the remedy.
    The command line prints it as it is; nothing finished before it is lost.
    """


class LeakWarning(UserWarning):
    """The same text stands in two parts of the data: its score there says less than it seems."""


class NoNeuronWarning(UserWarning):
    """No neuron is salient: every text gets the same answer."""

"""The one error that the package raises on purpose, and its warnings."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one sentence: what, where, got, expected, remedy. The command line prints it without a traceback; work
    finished before it is not lost.
    """


class LeakWarning(UserWarning):
    """The same text is in two parts of the data, so the score on the held-out part is too good."""


class NoNeuronWarning(UserWarning):
    """No neuron is salient: every text gets the same answer."""

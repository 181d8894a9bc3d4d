"""The one error the package raises on purpose."""


class InputError(ValueError):
    """Something the caller gave cannot be used.

    The message is one sentence that names what, where, what was got, what was expected, and the remedy.
    The command line prints it as it is; nothing finished before it is lost.
    """

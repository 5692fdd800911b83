"""The two exceptions that end a program in one sentence instead of a traceback."""


class InputError(ValueError):
    """Wrong input, in one sentence that names the flag, the value and what is allowed.

    Scripts print the sentence and exit with code 2; code that imports them catches this.
    """


class RunError(RuntimeError):
    """A run that cannot go on, in one sentence that says what happened and where; exit code 1.

    Where another exception is its cause, scripts show that first.
    """

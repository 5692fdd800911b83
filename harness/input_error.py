"""The two exceptions that end a program in one sentence instead of a traceback, and words for such sentences."""

from typing import Any


class InputError(ValueError):
    """Wrong input, in one sentence that names the flag, the value and what is allowed.

    Scripts print the sentence and exit with code 2; code that imports them catches this.
    """


class RunError(RuntimeError):
    """A run that cannot go on, in one sentence that says what happened and where; exit code 1.

    Where another exception is its cause, scripts show that first.
    """


def flag_of(name: str) -> str:
    """The command-line flag of a field: total_timesteps -> --total-timesteps."""
    return "--" + name.replace("_", "-")


def shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."

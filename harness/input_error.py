"""The one exception for wrong input."""


class InputError(ValueError):
    """Wrong input, in one sentence that names the flag, the value and what is allowed.

    Scripts print the sentence and exit with code 2; code that imports them catches this.
    """

"""What a file may not decide: which code is imported, and what an environment is made with.

A checkpoint or a run's folder may come from a stranger. The environment that it names is made only where that runs no
code but that of installed packages; a module before the colon of an id and the arguments of a constructor, which may
name modules, files and sizes, count only if the command line repeats them.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from harness.input_error import InputError, flag_of

NAMES = ("env_id", "env_kwargs")


def repeated_flags(args: Any) -> str:
    """The flags of a run that a command must repeat, as no file is trusted with them; see `only_if_repeated`."""
    flags = {name: getattr(args, name) for name in NAMES if hasattr(args, name)}
    return "".join(
        f" {flag_of(name)} {shlex.quote(value)}" for name, value in flags.items() if must_be_repeated(name, value)
    )


def must_be_repeated(name: str, value: Any) -> bool:
    """A module is code, and an environment's arguments may name modules, files and sizes."""
    return (name == "env_id" and ":" in value) or (name == "env_kwargs" and value != "{}")


def only_if_repeated(stored: Mapping[str, Any], given: Mapping[str, Any], where: str) -> None:
    """Raises InputError where a file, not the command line, says which module to import or what to make.

    stored: the flags in the file. given: those of the command line, None where one is not given.
    """
    for name in [name for name in NAMES if name in stored]:
        value = stored[name]
        if must_be_repeated(name, value) and given.get(name) is None:
            raise InputError(
                f"{where}: was trained with {flag_of(name)} {shlex.quote(value)}, which can run code; if you trust "
                "it, give that flag again."
            )

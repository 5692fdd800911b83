"""Flags: read from the command line, checked against their ranges, and taken from the earlier run on --resume."""

import argparse
import dataclasses
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro

from harness.folder import read_config
from harness.input_error import InputError, RunError, flag_of, shortened
from harness.trust import only_if_repeated

A = TypeVar("A")  # a script's dataclass of flags

# Stands beside a flag that may differ when a run goes on; all others decide what is learned, so a resumed run keeps
# them.
MAY_CHANGE = "may change on --resume"


class Range(NamedTuple):
    """The values a flag may have, written beside it: `gamma: Annotated[float, Range(0, 1)] = 0.99`."""

    least: float
    most: float
    above: bool = False  # `least` itself is not allowed

    def holds(self, value: float) -> bool:
        """False for NaN."""
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.least:,} to {self.most:,}"


def parse_args(Args: type[A], presets: Mapping[str, Mapping[str, Any]], description: str | None = None) -> A:
    """Read the command line into `Args`, a dataclass with a default for every field.

    The values of `--preset NAME` become the defaults, so any further flag overrides them and `--help` shows
    them. The returned object carries `given_flags`, the names of the fields set on the command line, for
    `resume_args`.
    """
    # The preset is needed before the real parsing. nargs="?" leaves a missing value for tyro to report.
    preset_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset_parser.add_argument("--preset", nargs="?", default="default")
    preset = preset_parser.parse_known_args()[0].preset
    defaults = Args(preset=preset, **presets[preset]) if preset in presets else Args()

    args = tyro.cli(Args, default=defaults, description=description)
    flags = {word.split("=")[0][2:].replace("-", "_") for word in sys.argv[1:] if word.startswith("--")}
    names = {field.name for field in dataclasses.fields(Args)}
    args.given_flags = {name for name in names if name in flags or f"no_{name}" in flags}
    return args


def run_script(
    main: Callable[[A], Any],
    Args: type[A],
    presets: Mapping[str, Mapping[str, Any]],
    description: str | None,
) -> None:
    """Parse the command line and call `main(args)`; wrong input, a RunError or Ctrl-C ends it in one sentence."""
    try:
        main(parse_args(Args, presets, description))
    except KeyboardInterrupt as error:
        print(f"\nstopped{f': {error}' if str(error) else '.'}", file=sys.stderr)
        sys.exit(130)
    except (InputError, RunError) as error:
        if isinstance(error, RunError) and error.__cause__:
            traceback.print_exception(error.__cause__)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def metadata(Args: type, kind: type) -> dict[str, Any]:
    """Of each flag, what stands beside it in `Annotated` and is a `kind`."""
    hints = get_type_hints(Args, include_extras=True)
    found = {
        name: [data for data in getattr(hint, "__metadata__", ()) if isinstance(data, kind)]
        for name, hint in hints.items()
    }
    return {name: data[0] for name, data in found.items() if data}


def check_args(args: Any) -> None:
    """Check what needs no environment and no network: raises InputError for the first flag of another type than its
    own or out of its range.
    """
    ranges = metadata(type(args), Range)
    for name, hint in get_type_hints(type(args)).items():
        value = getattr(args, name)
        if not any(is_a(value, kind) for kind in kinds_of(hint)):
            allowed = " or ".join(dict.fromkeys(in_words(kind) for kind in kinds_of(hint)))
            raise InputError(f"{flag_of(name)} {shortened(value)}: must be {allowed}.")
        if name in ranges and value is not None and not ranges[name].holds(value):
            raise InputError(f"{flag_of(name)} {shortened(value)}: must be {ranges[name]}.")


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """int | None -> int, None; Literal["a", "b"] -> "a", "b"."""
    if get_origin(hint) is UnionType:
        return tuple(kind for part in get_args(hint) for kind in kinds_of(part))
    return get_args(hint) if get_origin(hint) is Literal else (hint,)


def is_a(value: Any, kind: Any) -> bool:
    """Is the value of that type, or equal to that word? Types that only tyro makes are left to it."""
    if isinstance(kind, str):
        return isinstance(value, str) and value == kind
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(kind, type) or kind not in (bool, str, NoneType) or isinstance(value, kind)


def in_words(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", NoneType: "None"}
    return kind if isinstance(kind, str) else names.get(kind, str(kind))


def resume_args(args: A) -> A:
    """The arguments to continue with: those stored in the folder `args.resume`, with what may change.

    Flags given now count: those on the command line or, for an object made by hand, the fields that differ
    from their default. Without `args.resume` the arguments come back as they are.

    Raises:
        InputError: no run or no checkpoint in the folder, a run of another script, or a given flag that
            differs from the run's and is not marked MAY_CHANGE.
    """
    if not args.resume:
        return args
    Args, folder = type(args), Path(args.resume)
    config = read_config(folder)
    if not (folder / "checkpoint.pt").is_file():
        raise InputError(
            f"--resume {folder}: the run has no checkpoint.pt, so it must be started again, with the command that "
            "started it."
        )

    defaults = dataclasses.asdict(Args())
    unknown = sorted(config["args"].keys() - defaults.keys())
    if unknown:
        raise InputError(
            f"--resume {folder}: the run of '{shortened(config['algo'])}' has the setting {shortened(unknown[0])}, "
            "which this script does not know; resume it with the script and version that started it."
        )
    # JSON knows no tuples.
    stored = {name: tuple(v) if isinstance(v, list) else v for name, v in config["args"].items()}
    stored = dataclasses.asdict(args_in_file(Args, stored, f"--resume {folder}: config.json"))
    now = dataclasses.asdict(args)
    given = getattr(args, "given_flags", {name for name in now if now[name] != defaults[name]})
    changeable = metadata(Args, str)
    for name in sorted(given - changeable.keys()):
        if now[name] != stored[name]:
            raise InputError(
                f"{flag_of(name)} {now[name]}: the run in {folder} was started with {stored[name]}, and only "
                f"{', '.join(map(flag_of, changeable))} may change on --resume."
            )
    only_if_repeated(stored, {name: now[name] for name in given}, f"--resume {folder}")
    return Args(**{**stored, **{name: now[name] for name in given}})


def args_in_file(Args: type[A], stored: Mapping[str, Any], where: str) -> A:
    """The flags that a file holds, checked like those of a command line; what it lacks has its default.

    Raises InputError that begins with `where`.
    """
    names = [field.name for field in dataclasses.fields(Args)]
    args = Args(**{name: stored[name] for name in names if name in stored})
    try:
        check_args(args)
    except InputError as error:
        raise InputError(f"{where}: holds {error}") from error
    return args

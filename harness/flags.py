"""Flags: read from the command line or a file, and checked against their ranges."""

import argparse
import dataclasses
import difflib
import io
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from harness.input_error import InputError, RunError, flag_of, shortened
from harness.starting import end_at_once

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

    Raises InputError for a command line that cannot be read.
    """
    # The preset is needed before the real parsing. nargs="?" leaves a missing value for tyro to report.
    preset_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset_parser.add_argument("--preset", nargs="?", default="default")
    preset = preset_parser.parse_known_args()[0].preset
    defaults = Args(preset=preset, **presets[preset]) if preset in presets else Args()

    try:
        with redirect_stderr(io.StringIO()) as complaint:  # a box of several lines
            args = tyro.cli(Args, default=defaults, description=description)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise InputError(refusal(Args, sys.argv[1:], complaint.getvalue())) from None
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
        if signal.getsignal(signal.SIGINT) is end_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main(parse_args(Args, presets, description))
    except KeyboardInterrupt as error:
        print(f"\nstopped{f': {error}' if str(error) else '.'}", file=sys.stderr)
        sys.exit(130)
    except (InputError, RunError) as error:
        if isinstance(error, RunError) and error.__cause__:
            traceback.print_exception(error.__cause__)
        print("error:", *str(error).split("\n"), file=sys.stderr)  # a value may have lines, the sentence has one
        sys.exit(2 if isinstance(error, InputError) else 1)


# ------------------------------------------------------------------- what is wrong with a command line, in words


def refusal(Args: type, words: Sequence[str], complaint: str) -> str:
    """One sentence on a command line that tyro refuses; where nothing is found here, tyro's own `complaint`."""
    hints = get_type_hints(Args, include_extras=True)
    places = [name for name, hint in hints.items() if tyro.conf.Positional in getattr(hint, "__metadata__", ())]
    known = {flag_of(name) for name in hints if name not in places}
    unnamed, given = [], set()
    for flag, values in by_flag(words):
        if flag is None:
            unnamed += values
            continue
        name = flag[2:].replace("-", "_")
        switch = name if name in hints else name.removeprefix("no_")
        if plain(hints.get(switch)) is bool:
            if values and not places:
                both = f"{flag_of(switch)} or {flag_of('no_' + switch)}"
                return f"{flag} {values[0]}: takes no value; must be {both} alone."
            unnamed += values
            continue
        if flag_of(name) not in known:
            near = difflib.get_close_matches(flag_of(name), sorted(known), n=3)
            near_text = f", near matches are {', '.join(near)}" if near else ""
            return f"{' '.join([flag, *values[:1]])}: there is no such flag{near_text}; --help lists all."
        given.add(name)
        several = get_origin(plain(hints[name])) is tuple
        if not values and not several:
            return f"{flag}: needs a value; must be {allowed(hints[name])}."
        if values and not fits(hints[name], values[0]):
            return f"{flag} {values[0]}: must be {allowed(hints[name])}."
        if not several:
            unnamed += values[1:]
    if len(unnamed) > len(places) and not any(get_origin(plain(hints[name])) is tuple for name in places):
        return f"{unnamed[len(places)]}: belongs to no flag; --help lists them all."
    given |= set(places[: len(unnamed)])
    for field in dataclasses.fields(Args):
        if field.default is tyro.MISSING and field.name not in given:
            name = field.name.upper() if field.name in places else flag_of(field.name)
            return f"{name}: must be given; --help tells what it is."
    return " ".join(re.sub(r"[\s\u2500-\u257f]+", " ", complaint).split())


def by_flag(words: Sequence[str]) -> list[tuple[str | None, list[str]]]:
    """The command line as flags and the values that follow them; first those that follow none."""
    groups: list[tuple[str | None, list[str]]] = [(None, [])]
    for word in words:
        flag, equals, value = word.partition("=")
        if re.match(r"-+[a-zA-Z]", word) and not fits(float, word):
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def plain(hint: Any) -> Any:
    """Without what stands beside it in `Annotated`."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def kinds(hint: Any) -> tuple[Any, ...]:
    """What a flag's value may be: int, None, a Literal, ..."""
    hint = plain(hint)
    if get_origin(hint) is tuple:
        return get_args(hint)[:1]
    # `Literal[...] | None` is of typing's own kind, though written like the others.
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def fits(hint: Any, word: str) -> bool:
    """Can the word be read as a value of this kind? In its range or not."""
    for kind in kinds(hint):
        if kind in (int, float):
            try:
                kind(word)
            except ValueError:
                continue
            return True
        if word in choices(kind) or not choices(kind):
            return True
    return False


def choices(kind: Any) -> tuple[str, ...]:
    """The words for a kind of which there are few values, empty for all others."""
    few = {bool: ("True", "False"), NoneType: ("None",)}
    return few.get(kind, ()) if get_origin(kind) is not Literal else tuple(map(str, get_args(kind)))


def allowed(hint: Any) -> str:
    """In words: "a whole number from 1 to 64", "gated or relu"."""
    ranges = [data for data in getattr(hint, "__metadata__", ()) if isinstance(data, Range)]
    names = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}
    parts: list[str] = []
    for kind in kinds(hint):
        parts += choices(kind) or [" ".join([names[kind], *map(str, ranges if kind in (int, float) else ())])]
    return f"{', '.join(parts[:-1])} or {parts[-1]}" if len(parts) > 1 else parts[0]


# -------------------------------------------------------------------------------------------------- values


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
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        check_value(name, getattr(args, name), hint)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raises InputError unless the flag `name` may have this value. hint: its type, with what stands beside it."""
    ranges = [data for data in getattr(hint, "__metadata__", ()) if isinstance(data, Range)]
    several = get_origin(plain(hint)) is tuple and isinstance(value, tuple)
    for one in value if several else (value,):
        if not any(is_a(one, kind) for kind in kinds(hint)):
            raise InputError(f"{flag_of(name)} {shortened(one)}: must be {allowed(hint)}.")
        if ranges and one is not None and not ranges[0].holds(one):
            raise InputError(f"{flag_of(name)} {shortened(one)}: must be {ranges[0]}.")


def is_a(value: Any, kind: Any) -> bool:
    """Is the value of that type, or one of its words? Types that only tyro makes are left to it."""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(kind, type) or kind not in (bool, str, NoneType) or isinstance(value, kind)


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

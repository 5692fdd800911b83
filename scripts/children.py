"""Runs in processes of their own, as copies of this one, and signals that come at a counted function call."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.flags import run_script

FORK = multiprocessing.get_context("fork")  # a new Python takes seconds to import torch


@dataclass
class NoFlags:
    """The command line is not read: the arguments are there."""


def nothing() -> None:
    pass


def run_child(script: Any, args: Any, log: Path, before: Callable[[], None] = nothing) -> int:
    """A run in a process of its own, after `before` was called in it -> its exit code."""
    process = start_child(script, args, log, before)
    process.join()
    return process.exitcode


def start_child(script: Any, args: Any, log: Path, before: Callable[[], None] = nothing) -> Any:
    def work() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["torture"]

        def main(_: Any) -> None:
            before()
            script.main(args)

        run_script(main, NoFlags, {}, None)

    process = FORK.Process(target=work)
    process.start()
    return process


def signal_at(call: int, number: int) -> Callable[[], None]:
    """What makes a process signal itself at that Python function call of its main thread."""

    def install() -> None:
        left = call

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal left
            left -= event == "call"
            if left == 0:
                sys.setprofile(None)
                os.kill(os.getpid(), number)

        sys.setprofile(count)

    return install


def count_calls(file: Path, until: str) -> Callable[[], None]:
    """What makes a process write the number of its function calls until the one of that name."""

    def install() -> None:
        total = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal total
            total += event == "call"
            if event == "call" and frame.f_code.co_name == until:
                file.write_text(str(total))

        sys.setprofile(count)

    return install

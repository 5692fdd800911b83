"""The progress line, and Ctrl-C."""

import contextlib
import math
import os
import shutil
import signal
import sys
import threading
import time
from typing import Any, TextIO


class Progress:
    """Progress on one line: rewritten in place on a terminal, a full line every 10 s in a file."""

    def __init__(self, total_steps: int, start_step: int = 0, stream: TextIO | None = None):
        self.total_steps = total_steps
        self.start_step = start_step
        self.stream = stream or sys.stdout
        self.on_terminal = self.stream.isatty()
        self.interval = 0.25 if self.on_terminal else 10.0  # seconds
        self._line = ""  # the newest line, shown or not
        self._shown = ""
        self._shown_at = -math.inf
        self._started = time.monotonic()

    def update(
        self,
        step: int,
        *,
        sps: float,
        success_rate: float | None,
        length: float | None,
        episodic_return: float | None,
    ) -> None:
        """Tell where the run is. Shows the success rate or, where it is None, the return."""
        now = time.monotonic()
        parts = [
            f"{step:,}/{self.total_steps:,} steps",
            f"{100 * step / self.total_steps:3.0f}%",
            f"{sps:,.0f} steps/s",
            f"return {number(episodic_return, 3)}" if success_rate is None else f"success {success_rate:.3f}",
            f"length {number(length, 1)}",
        ]
        if step > self.start_step:
            seconds_a_step = (now - self._started) / (step - self.start_step)
            parts.append(f"{clock(max(0, self.total_steps - step) * seconds_a_step)} left")
        self._line = "  ".join(parts)
        if step >= self.total_steps or now - self._shown_at >= self.interval:
            self._show(now)

    def note(self, text: str) -> None:
        """Print a line of its own; on a terminal the progress line moves below it."""
        if self.on_terminal and self._shown:
            self._write("\r" + " " * len(self._shown) + "\r" + text + "\n" + self._shown)
        else:
            self._write(text + "\n")

    def close(self) -> None:
        """Show the newest line if that is still to be done, and leave the line."""
        if self._line and self._shown != self._line:
            self._show(time.monotonic())
        if self.on_terminal and self._shown:
            self._write("\n")

    def _show(self, now: float) -> None:
        if self.on_terminal:
            # A line wider than the terminal would wrap, and "\r" only returns to the start of its last row.
            line = self._line[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + line.ljust(len(self._shown)))
            self._shown = line
        else:
            self._write(self._line + "\n")
            self._shown = self._line
        self._shown_at = now

    def _write(self, text: str) -> None:
        """Where nobody reads any more, as when a terminal or the other end of a pipe is closed, the run goes on."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            nowhere = open(os.devnull, "w")  # noqa: SIM115  to the end of the process
            if self.stream is sys.stdout:
                sys.stdout = nowhere
            self.stream = nowhere


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def clock(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Interrupt:
    """While entered, the first Ctrl-C (or SIGTERM, or a closed terminal's SIGHUP) only sets `requested`; a second one
    stops at once, and so does the first where `at_once` is set.

    Outside of the main thread signals cannot be caught, and it does nothing.
    """

    def __init__(self):
        self.requested, self.at_once = False, False
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []

    def __enter__(self) -> "Interrupt":
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows knows no SIGHUP
                if number is None or (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                    continue  # ignored by nohup, which wants a run to outlive its terminal
                # Ctrl-C too where a shell has it ignored, as for what it runs in the background.
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signal_number, previous in self._previous.items():
            signal.signal(signal_number, previous or signal.SIG_DFL)
        self._previous = {}

    def _handle(self, signal_number: int, frame: object) -> None:
        if signal_number == getattr(signal, "SIGHUP", None):
            self._leave_terminal()
        if self.requested or self.at_once:
            raise KeyboardInterrupt
        self.requested = True
        # os.write, because print may be what the signal interrupted.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this iteration; once more to stop at once\n")

    def _leave_terminal(self) -> None:
        """Nothing can be written to a closed one, and trying to must not end the run before it has saved."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)

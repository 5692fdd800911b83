"""The progress line, and Ctrl-C."""

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
            self.stream.write("\r" + " " * len(self._shown) + "\r" + text + "\n" + self._shown)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Show the newest line if that is still to be done, and leave the line."""
        if self._line and self._shown != self._line:
            self._show(time.monotonic())
        if self.on_terminal and self._shown:
            self.stream.write("\n")
            self.stream.flush()

    def _show(self, now: float) -> None:
        if self.on_terminal:
            # A line wider than the terminal would wrap, and "\r" only returns to the start of its last row.
            line = self._line[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + line.ljust(len(self._shown)))
            self._shown = line
        else:
            self.stream.write(self._line + "\n")
            self._shown = self._line
        self.stream.flush()
        self._shown_at = now


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def clock(seconds: float) -> str:
    """3725 -> 1:02:05."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Interrupt:
    """While entered, the first Ctrl-C (or SIGTERM) only sets `requested`; a second one stops at once.

    Outside of the main thread signals cannot be caught, and it does nothing.
    """

    def __init__(self):
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for signal_number in (signal.SIGINT, signal.SIGTERM):
                self._previous[signal_number] = signal.signal(signal_number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for signal_number, previous in self._previous.items():
            signal.signal(signal_number, previous or signal.SIG_DFL)
        self._previous = {}

    def _handle(self, signal_number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        # os.write, because print may be what the signal interrupted.
        os.write(2, b"\nstopping after this iteration; once more to stop at once\n")

"""Imported first by every script: Ctrl-C ends it in one sentence while PyTorch and the rest are still being imported.

`run_script` takes over from here. Nothing happens where another program imports a script.
"""

import os
import signal
import sys
from types import FrameType


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler instead of KeyboardInterrupt, of which a package that is being imported makes what it likes."""
    os.write(2, b"\nstopped while starting.\n")
    os._exit(130)


def is_a_script_of_ours() -> bool:
    # Without pathlib, which takes longer to import than all of this.
    here, script = os.path.dirname(os.path.abspath(__file__)), os.path.abspath(sys.argv[0])
    return script.endswith(".py") and os.path.dirname(script) == os.path.dirname(here)


if is_a_script_of_ours() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)

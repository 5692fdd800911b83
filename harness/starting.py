"""Imported first by every script: Ctrl-C ends it in one sentence while PyTorch and the rest are still being imported.

`run_script` takes over from here. Nothing happens where another program imports a script.
"""

import os
import signal
import sys
from types import FrameType

SCRIPTS = ("ppo_palmer.py", "ppo_lstm.py", "ppo_trxl.py", "evaluate.py", "export.py")


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler instead of KeyboardInterrupt, of which a package that is being imported makes what it likes."""
    os.write(2, b"\nstopped while starting.\n")
    os._exit(130)


def is_a_script_of_ours() -> bool:
    # Without pathlib, which takes longer to import than all of this.
    here, script = os.path.dirname(os.path.abspath(__file__)), os.path.abspath(sys.argv[0])
    return os.path.basename(script) in SCRIPTS and os.path.dirname(script) == os.path.dirname(here)


def is_a_process_of_a_script() -> bool:
    """One that plays an environment: it imports the script anew, and ends when the script does."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


if is_a_script_of_ours() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_IGN if is_a_process_of_a_script() else end_at_once)

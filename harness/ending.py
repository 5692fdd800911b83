"""How a run ends that is stopped at once, or whose files cannot be written any more: in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.input_error import RunError


@contextmanager
def in_one_sentence(run: Any) -> Iterator[None]:
    """Turns an OSError into a RunError, and lets a KeyboardInterrupt say what is kept."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        raise RunError(f"writing the run's files fails ({what}); {what_is_kept(run)}") from None
    except KeyboardInterrupt as stopped:
        stopped.args = (what_is_kept(run),)
        raise


def what_is_kept(run: Any) -> str:
    if run._saved_step is None:
        return "nothing was saved before, so start again with the same command."
    folder = run._folder
    how = f", which `{folder.resume_command(run.algo)}` continues" if folder else ""
    return f"the checkpoint of {run._saved_step:,} steps is kept{how}."

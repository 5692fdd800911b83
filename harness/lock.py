"""One process at a time writes in a run's folder."""

import os
from pathlib import Path

from harness.input_error import InputError

try:
    import fcntl
except ImportError:  # Windows, where runs do without
    fcntl = None

LOCK = ".lock"


class FolderLock:
    """A lock that the system releases when the process that holds it ends, however it ends."""

    def __init__(self, descriptor: int | None = None):
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_folder(folder: str | Path, flag: str) -> FolderLock:
    """Raises InputError, naming `flag`, if another process has the lock, and OSError where it cannot be opened."""
    if fcntl is None:
        return FolderLock()
    # A file, as some network file systems lock nothing that is not open for writing; not followed where it is a link.
    lock = FolderLock(os.open(Path(folder, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644))
    try:
        fcntl.flock(lock._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.release()
        raise InputError(
            f"{flag} {folder}: another process is writing this run; wait until it ends or stop it."
        ) from error
    except OSError:  # a file system without locks
        pass
    return lock

"""Memory that a minibatch frees is kept for the next one, instead of being given back to the system in between."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes, that glibc takes


def keep_freed_memory() -> None:
    """For this process, where its allocator is that of glibc; others are left as they are.

    glibc gives blocks of some hundred kilobytes back as soon as they are freed, and the system clears each page of
    the next one: a quarter of the time where minibatches are large.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)

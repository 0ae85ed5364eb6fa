"""Memory that networks free is kept for their next batch, where the C library would hand it back to the system."""

import ctypes
import sys

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8

_KEPT_BYTES = 1 << 30
_LARGEST_MMAP_THRESHOLD = 1 << 25
"""glibc takes no larger one."""


def keep_freed_memory() -> None:
    """Let glibc keep up to a gibibyte of freed memory; does nothing with other C libraries.

    A network allocates the same activations for each batch. By default glibc returns blocks of this size to the system
    and fetches them again, page by page and zeroed: up to a quarter of the networks' time on a CPU. Threads have arenas
    of their own, which give memory back whatever the thresholds say, so there is to be one for all.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)

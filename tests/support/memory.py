"""A bound on the memory of a test process.

JAX keeps every program that it has compiled, and each takes more than a megabyte. The
suite compiles thousands. Freed programs have to be compiled again when a later test
needs them, so they are freed only after memory has grown a lot.
"""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

import jax


# In bytes. Imports alone take 500 MB, and a single test up to 200 MB.
SIZE = 1000 * 2**20
GROWTH = 200 * 2**20


def resident() -> int:
    """The memory of this process in bytes; 0 on systems without `/proc`."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def release() -> None:
    """Frees all compiled programs, and returns their memory to the system.

    Functions under `jax.jit` stay usable: their next call compiles them again.
    """
    jax.clear_caches()
    gc.collect()
    # The allocator of glibc keeps freed memory for later until it is told to trim.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class Watch:
    """Releases memory after a test, if that is worthwhile."""

    def __init__(self):
        self.least = 0

    def release_if_grown(self, *, is_last_of_file: bool) -> None:
        """Releases memory that has grown by `GROWTH` since the last time.

        In the middle of a file it also has to reach `SIZE`, because the tests of a file
        share programs, which they would have to compile again.
        """
        size = resident()
        self.least = self.least or size
        if size - self.least >= GROWTH and (is_last_of_file or size >= SIZE):
            release()
            self.least = resident()

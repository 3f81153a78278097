"""What the C library does with freed memory."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt
NEVER = -1


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of large tensors that were freed; False where the C library is another one.

    It hands blocks above a threshold back to the kernel after every operation, and a CPU's step waits for them.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(MMAP_THRESHOLD, 2**26) & libc.mallopt(TRIM_THRESHOLD, NEVER))

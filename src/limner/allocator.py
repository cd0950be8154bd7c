"""How this process holds on to memory."""

import ctypes
import sys

# The parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Ask the C library to keep freed memory for the next tensor of that size.

    By default glibc maps every large tensor afresh and gives it back when it dies, so each operator of a
    network pays for page faults again; where those are slow, as in many virtual machines, that can cost
    more than the arithmetic. It is a setting of the whole process, so programs call it, libraries do not.
    Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 64 * 2**20)

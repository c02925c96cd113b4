"""Memory that training frees stays with the process, to be used again in the next step."""

import ctypes

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep large blocks that it frees, where the C library can be told to.

    By default every block above some MB goes back to the system, which hands it out again page by page, filled with zeros: that is
    a third of the time of a training step on CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, _LARGEST)

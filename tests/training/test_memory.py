"""Freed memory is used again without asking the system for pages."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from sensorium_pipeline.training.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 2**20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps what it likes")
def test_a_large_block_is_used_again_without_a_page_fault() -> None:
    found = {}
    for kind in ("kept", "plain"):
        ended = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True)
        found[kind] = int(ended.stdout)
    assert found["kept"] < 10
    # With huge pages, fewer but never so few.
    assert found["plain"] > found["kept"]

"""A server's memory does not grow with the number of its threads, by the operating system's count."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from headspan.web.allocator import share_one_heap

if sys.argv[1] == "shared":
    assert share_one_heap()

def answer(number):
    # Smaller than the blocks for which NumPy asks for pages of 2 MB.
    first, second = np.ones(500_000), np.ones(400_000)
    return float(first.sum() + second.sum())

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

pools = [ThreadPoolExecutor(1) for _ in range(10)]
before = resident()
for number in range(100):
    # Another thread each time, as the threads of a server take turns.
    pools[number % 10].submit(answer, number).result()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_threads_of_a_server_fill_the_same_heap_again() -> None:
    apart, shared = (_grown_by(name) for name in ("apart", "shared"))
    # Two arrays of 7 MB together.
    assert shared < 12 << 10
    assert shared < apart / 3


def _grown_by(name: str) -> int:
    """Kilobytes of all threads."""
    done = subprocess.run([sys.executable, "-c", _PROGRAM, name], check=True, capture_output=True, text=True)
    return int(done.stdout)

"""A test that freed memory is used again, by the operating system's count of page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, torch
from headspan.model.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
wasted = faults()
assert keep_freed_memory()
for _ in range(3):
    faults()
print(wasted, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_of_large_tensors_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)
    wasted, kept = map(int, done.stdout.split())
    # Five times two tensors of 40 MB, in pages of 4 KB or, if the system chooses so, of 2 MB.
    assert wasted > 100
    # The heap may grow in one of the five rounds, if a small block divides what was freed.
    assert kept < wasted / 4

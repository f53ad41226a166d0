"""What a pass frees is there for the next one: counted by the operating system's page faults."""

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
def test_large_tensors_are_not_faulted_in_anew_every_time() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True)
    wasted, kept = map(int, done.stdout.split())
    # Five times two tensors of 40 MB, some in pages of 4 KB and some, where the system likes, of 2 MB.
    assert wasted > 100
    assert kept < wasted / 10

"""One command for format, lint, types and tests; exits with the first failure's code.

The Triton kernels are tested compiled, on an emulated GPU, and then interpreted, in a second run of pytest, since that
is chosen when Triton is imported. If torch finds a GPU, they run there instead of on the emulated one, in a run of
their own that takes a minute or two. Tests run in one process a core, up to four; those on a GPU, which mostly compile,
in up to eight.

`python tools/check.py` runs all of it, `python tools/check.py --fast` leaves slow tests out; anything else goes to
pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
# A process takes some 2 GB.
_PROCESSES = min(4, os.cpu_count() or 1)
# All tests of a file run in one process, so that its fixtures are made once; interpreted kernels have none in common.
# Files begin in the order of tests/conftest.py.
_BY_FILE = ["-n", f"{_PROCESSES}", "--dist", "loadfile", "--no-loadscope-reorder"]
_BY_TEST = ["-n", f"{_PROCESSES}", "--dist", "worksteal"]
INTERPRETED = (
    "tests/kernels/test_fused.py",
    "tests/kernels/test_linear.py",
    "tests/kernels/test_preprocess.py",
    "tests/kernels/test_gpu_benchmark.py",
)
# The tests that launch kernels on a GPU.
ON_GPU = (
    "tests/kernels/test_fused.py",
    "tests/kernels/test_linear.py",
    "tests/kernels/test_preprocess.py",
    "tests/kernels/test_model_shapes.py",
)


def main(arguments: Sequence[str]) -> int:
    """Run every check; returns the exit code."""
    tests = [argument for argument in arguments if argument != "--fast"]
    if "--fast" in arguments:
        tests += ["-m", "not slow and not full_size"]
    steps = {
        "format": ["ruff", "format", "--check", "--quiet", "."],
        "lint": ["ruff", "check", "--quiet", "."],
        "types": ["mypy", "--no-error-summary"],
        "tests": ["pytest", *_BY_FILE, *tests],
        "interpreted kernels": ["pytest", *_BY_TEST, *INTERPRETED],
    }
    if torch.cuda.is_available():
        steps["tests"] += [f"--ignore={path}" for path in ON_GPU]
        processes = str(min(8, os.cpu_count() or 1))
        steps["kernels on the GPU"] = ["pytest", "-n", processes, "--dist", "worksteal", *ON_GPU]
    for name, command in steps.items():
        print(f"{name}: {' '.join(command)}", flush=True)
        environment = {**os.environ, "TRITON_INTERPRET": "1" if name == "interpreted kernels" else "0"}
        # Each process has a core of its own: more threads would only wait for one another.
        environment.setdefault("OMP_NUM_THREADS", "1")
        # Tests start hundreds of processes. Each would take a third of a second to compile headspan's modules again.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=False).returncode
        if code:
            print(f"{name} failed", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One command for format, lint, types and tests; exits with the first failure's code.

The Triton kernels are tested compiled, on an emulated GPU, and, where that cannot be, interpreted, in another run of
pytest, since interpreting is chosen when Triton is imported. That run and the check of types go on beside the other
tests, whose first and last minutes leave cores idle; what they print is shown when they end. If torch finds a GPU, the
compiled kernels run there instead of on the emulated one, in a run of their own that takes a minute or two. Tests run
in one process a core, up to four; those on a GPU, which mostly compile, in up to eight.

`python tools/check.py` runs all of it, `python tools/check.py --fast` leaves slow tests out; anything else goes to
pytest.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A process takes some 2 GB.
_PROCESSES = min(4, os.cpu_count() or 1)
# All tests of a file run in one process, so that its fixtures are made once. Files begin in the order of
# tests/conftest.py.
_BY_FILE = ["-n", f"{_PROCESSES}", "--dist", "loadfile", "--no-loadscope-reorder"]
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
    first = {
        "format": ["ruff", "format", "--check", "--quiet", "."],
        "lint": ["ruff", "check", "--quiet", "."],
    }
    beside = {
        "types": ["mypy", "--no-error-summary"],
        "interpreted kernels": ["pytest", "-p", "tests.kernels.without_emulated", *INTERPRETED],
    }
    last = {"tests": ["pytest", *_BY_FILE, *tests]}
    if _has_gpu():
        last["tests"] += [f"--ignore={path}" for path in ON_GPU]
        processes = str(min(8, os.cpu_count() or 1))
        last["kernels on the GPU"] = ["pytest", "-n", processes, "--dist", "worksteal", *ON_GPU]
    if code := _run_all(first):
        return code
    others = _Beside(beside)
    code = _run_all(last)
    return others.ended(stop=bool(code)) or code


def _run_all(steps: Mapping[str, Sequence[str]]) -> int:
    """Run steps until one fails; returns its exit code."""
    for name, command in steps.items():
        print(f"{name}: {' '.join(command)}", flush=True)
        code = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, env=_environment(name), check=False
        ).returncode
        if code:
            print(f"{name} failed", file=sys.stderr)
            return code
    return 0


class _Beside:
    """Steps that run one after another while others run, until one fails."""

    def __init__(self, steps: Mapping[str, Sequence[str]]) -> None:
        self._code = 0
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(steps,))
        self._thread.start()

    def _run(self, steps: Mapping[str, Sequence[str]]) -> None:
        for name, command in steps.items():
            with tempfile.TemporaryFile() as said:
                with subprocess.Popen(
                    [sys.executable, "-m", *command],
                    cwd=ROOT,
                    env=_environment(name),
                    stdout=said,
                    stderr=subprocess.STDOUT,
                ) as self._running:
                    if self._stopped.is_set():
                        self._running.terminate()
                    code = self._running.wait()
                if self._stopped.is_set():
                    return
                said.seek(0)
                words = said.read().decode(errors="replace")
                failed = f"{name} failed\n" if code else ""
                print(f"\n{name}: {' '.join(command)}\n{words}{failed}", end="", flush=True)
            if code:
                self._code = code
                return

    def ended(self, stop: bool) -> int:
        """Wait for the end of the steps, or stop them; returns the exit code of a step that failed."""
        if stop:
            self._stopped.set()
            if self._running is not None:
                self._running.terminate()
        self._thread.join()
        return self._code


def _environment(step: str) -> dict[str, str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1" if step == "interpreted kernels" else "0"}
    # Each process has a core of its own: more threads would only wait for one another.
    environment.setdefault("OMP_NUM_THREADS", "1")
    # Tests start hundreds of processes. Each would take a third of a second to compile headspan's modules again.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _has_gpu() -> bool:
    """Whether torch finds a GPU; it is imported only where there is a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

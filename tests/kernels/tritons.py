"""The versions of Triton whose compiled code these tests support; other versions skip the tests of compiled code.

These tests read what Triton generates: PTX in the emulator, registers and instructions in binaries. A new Triton may
write PTX that the emulator does not know, so untried versions skip the tests and print the reason. Tests in Triton's
interpreter and on a GPU run with any Triton.

To try a new Triton: install it, set NEWEST to its version, and run tests/kernels.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch
from packaging.version import Version

OLDEST, NEWEST = "3.6.0", "3.9.0"

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
# The kernels also run with older Tritons and PyTorchs, so deprecation warnings of newer ones are not errors.
DEPRECATIONS = pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning")


def why_untried(version: str) -> str:
    """One line on why compiled code is not tested with this Triton; empty if it is."""
    if Version(OLDEST).release <= Version(version).release <= Version(NEWEST).release:
        return ""
    return (
        f"Triton {version}: compiled kernels are tested with Triton {OLDEST} to {NEWEST} only; "
        "tests/kernels/tritons.py says how to try another"
    )


def installed_and_untried() -> str:
    """As `why_untried`, for the installed Triton; empty if there is none, or if it only interprets."""
    if INTERPRETED or find_spec("triton") is None:
        return ""
    # Here, since Triton's wheels exist for Linux only.
    import triton

    return why_untried(triton.__version__)


def why_not_compiled() -> str:
    """One line on why this process cannot test compiled code; empty if it can."""
    return "Triton's interpreter compiles nothing" if INTERPRETED else installed_and_untried()

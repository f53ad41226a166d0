"""Leave out tests that the emulator runs: `pytest -p tests.kernels.without_emulated`, in Triton's interpreter.

The emulator runs what Triton has compiled, which proves more than interpreting the kernel, unless it has not been tried
with the installed Triton. Then no test is left out.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import pytest

from tests.kernels.tritons import why_untried


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that only the interpreter can run."""
    # Triton's wheels exist for Linux only.
    if find_spec("triton") is None or why_untried(version("triton")):
        return
    emulated = [item for item in items if item.get_closest_marker("interpreted") is None]
    config.hook.pytest_deselected(items=emulated)
    items[:] = [item for item in items if item not in emulated]

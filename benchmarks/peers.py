"""Libraries that headspan is compared with, imported where they are installed."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType


def overcomplete_sae() -> ModuleType | None:
    """`overcomplete.sae`, which needs torch, einops, scikit-learn and Pillow; None where it is not installed.

    The package imports its plots at once, and these need OpenCV and a matplotlib before 3.9. So the package is put in
    place without running its `__init__`.
    """
    if "overcomplete" not in sys.modules:
        found = find_spec("overcomplete")
        if found is None or found.submodule_search_locations is None or find_spec("einops") is None:
            return None
        package = ModuleType("overcomplete")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["overcomplete"] = package
    return importlib.import_module("overcomplete.sae")

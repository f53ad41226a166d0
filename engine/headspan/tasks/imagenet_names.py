"""The names of ImageNet's 1,000 classes and the prompts for them, as open_clip ships them.

They are OpenAI's: the names in the order of the classes' WordNet numbers, and the 80 prompts of CLIP's figures.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def imagenet_classes() -> tuple[str, ...]:
    """The names; "missile" and "sunglasses" occur twice."""
    return tuple(_metadata().IMAGENET_CLASSNAMES)


def imagenet_templates() -> tuple[str, ...]:
    """The 80 prompts, with `{c}` for the name of a class."""
    return tuple(template("{c}") for template in _metadata().OPENAI_IMAGENET_TEMPLATES)


@cache
def _metadata() -> ModuleType:
    """open_clip's module of names and prompts. It is read by its file, since its package would import torch."""
    package = find_spec("open_clip")
    assert package is not None, "open_clip is a dependency"
    assert package.submodule_search_locations, "open_clip is a package"
    file = Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"
    spec = spec_from_file_location("headspan_zero_shot_metadata", file)
    assert spec is not None, "it is a Python file"
    assert spec.loader is not None, "it is a Python file"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

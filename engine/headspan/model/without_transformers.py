"""Keep open_clip from importing the package transformers before a model needs it.

Where transformers is installed, open_clip imports a part of it that takes a second or more, for text towers of Hugging
Face and for captions, although few models need it. It gets stand-ins for the classes that it takes from there. Each
becomes the real class, and transformers is imported, as soon as it is called or asked for something. Whoever else
imports transformers, meanwhile or later, gets the real one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_PACKAGE = "transformers"


@contextmanager
def without_transformers() -> Iterator[None]:
    """Let modules that are imported meanwhile take their classes of transformers only when they use them."""
    if _PACKAGE in sys.modules or find_spec(_PACKAGE) is None:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        _remove_stand_ins()


def _remove_stand_ins() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn):
            del sys.modules[name]


def _real(module: str, name: str) -> Any:
    _remove_stand_ins()
    return getattr(import_module(module), name)


class _StandIn(ModuleType):
    """Stands for a module of transformers; its classes are stand-ins, and anything else needs the real module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            # The import system asks for `__file__` and the like.
            raise AttributeError(name)
        if name[0].isupper() and not name.isupper():
            return _LaterClass(name, (), {"__module__": self.__name__})
        return _real(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    """Finds a stand-in for every module of transformers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _PACKAGE:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Has nothing to execute."""


class _LaterClass(type):
    """The type of stand-ins for classes."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        return cls._real()(*arguments, **options)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: object) -> bool:
        # Nothing is an instance of a class that has not been imported.
        package = sys.modules.get(_PACKAGE)
        return not isinstance(package, _StandIn | None) and isinstance(instance, cls._real())

    def _real(cls) -> Any:
        return _real(cls.__module__, cls.__name__)

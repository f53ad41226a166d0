"""Import open_clip without torch's compiler, which takes longer to import than everything else that a model needs.

Two libraries import the compiler (`torch._dynamo`) although nothing is compiled. torchvision takes a function from it,
which it calls only in operators that headspan does not use. timm decorates functions of one model, so that they are not
compiled. Both get a function of the same meaning, which uses torch's own as soon as it is called and the compiler is
there. Everything else is as usual: whoever imports the compiler, meanwhile or later, gets the real one, and a library
that needs more of it only takes longer to import.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from importlib import import_module
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

from headspan.model.without_transformers import without_transformers

_COMPILER = "torch._dynamo"
_UTILS = f"{_COMPILER}.utils"


def import_open_clip() -> None:
    """Import open_clip, without torch's compiler and transformers if possible.

    An ImportError is left to the next import.
    """
    with suppress(ImportError):
        # On its own, because it may import the compiler itself.
        torch = import_module("torch")
        if "open_clip" in sys.modules:
            return
        compiler_is_there = _COMPILER in sys.modules
        with nullcontext() if compiler_is_there else _without_compiler(torch.compiler), without_transformers():
            import_module("open_clip")


@contextmanager
def _without_compiler(public: Any) -> Iterator[None]:
    finder, disable = _StandInRemover(), public.disable
    sys.modules[_UTILS] = _StandIn(_UTILS)
    sys.meta_path.insert(0, finder)
    public.disable = _disable
    try:
        yield
    finally:
        public.disable = disable
        sys.meta_path.remove(finder)
        _remove_stand_in()


def _remove_stand_in() -> None:
    if isinstance(sys.modules.get(_UTILS), _StandIn):
        del sys.modules[_UTILS]


class _StandInRemover(MetaPathFinder):
    """Finds no module, but learns when the compiler is imported, which must not meet a stand-in."""

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> None:
        if fullname == _COMPILER:
            _remove_stand_in()


class _StandIn(ModuleType):
    """Stands for `torch._dynamo.utils` until something other than the one known function is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name == "is_compile_supported":
            return _is_compile_supported
        if name.startswith("__"):
            # The import system asks for `__path__` and the like.
            raise AttributeError(name)
        _remove_stand_in()
        return getattr(import_module(_UTILS), name)


def _is_compile_supported(device_type: str) -> bool:
    """Call torch's function of that name."""
    return bool(import_module(_UTILS).is_compile_supported(device_type))


def _disable(fn: Callable[..., Any] | None = None, *arguments: Any, **options: Any) -> Callable[..., Any]:
    """Decorate like `torch.compiler.disable`, but import the compiler only if something else has imported it."""
    if fn is None:
        return lambda later: _disable(later, *arguments, **options)

    @wraps(fn)
    def not_compiled(*args: Any, **kwargs: Any) -> Any:
        # Without the compiler nothing can be compiled.
        call = import_module(_COMPILER).disable(fn, *arguments, **options) if _COMPILER in sys.modules else fn
        return call(*args, **kwargs)

    return not_compiled

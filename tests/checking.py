"""Check the types and shapes of every call like `jaxtyping.jaxtyped`, in half the time.

jaxtyping makes its checks of a function when the function is defined: for every function of a module that is imported,
and for an inner function each time that it is defined. It also binds the arguments of each call, and checks them twice.
Here a function's checks are made when it is first called, once for all functions of the same code, and a signature
without arrays, which has no axes to compare, is checked by beartype alone. A call whose arguments and result have the
types and shapes of an earlier call is not checked again, since the answer depends on nothing else; and of the calls of
a function that has been called often, only some are looked at.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from types import CodeType, FunctionType, GeneratorType
from typing import Any, TypeVar, get_args, get_type_hints

import jaxtyping
import numpy as np
import torch
from beartype import BeartypeConf, beartype

_JAXTYPED = jaxtyping.jaxtyped
# What gives a function of some code its checks, with that code, by its identity: constructors of two dataclasses whose
# fields have the same names have equal code, and other types.
_CHECKS: dict[int, tuple[CodeType, Callable[[FunctionType], Callable[..., Any]]]] = {}
_FUNCTION = "__beartype_func"
# After so many calls of a function, one in so many is looked at.
_OFTEN, _ONE_IN = 256, 8
# A longer word is none of the values that an annotation may name.
_LONGEST_WORD = 40
# Of larger collections, all items would be looked at.
_MOST_VALUES = 16
_ARRAYS = {np.ndarray, np.memmap, torch.Tensor, torch.nn.Parameter}
_SIMPLE = {int, float, bool, bytes, type(None), GeneratorType}
# As from jaxtyping, a TypeError: code that reads foreign files catches those.
_CONFIG = BeartypeConf(violation_type=jaxtyping.TypeCheckError)


def check_quickly() -> None:
    """Let the decorators that jaxtyping's import hook writes make the checks of this module."""
    jaxtyping.jaxtyped = checked  # type: ignore[assignment]


def checked(function: Any = None, *, typechecker: Any) -> Any:
    """Decorate a function, or the constructor of a dataclass; anything else is left to jaxtyping."""
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if isinstance(function, FunctionType):
        return _checked(function)
    if not inspect.isclass(function):
        return _JAXTYPED(function, typechecker=typechecker)
    constructor = vars(function).get("__init__")
    if is_dataclass(function) and isinstance(constructor, FunctionType) and not hasattr(constructor, "__wrapped__"):
        function.__init__ = _checked(constructor)  # type: ignore[method-assign]
    return function


def _checked(function: FunctionType) -> Callable[..., Any]:
    checks: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal checks
        __tracebackhide__ = True
        if checks is None:
            code = function.__code__
            if id(code) not in _CHECKS:
                _CHECKS[id(code)] = code, _made(function)
            checks = _CHECKS[id(code)][1](function)
        return checks(*arguments, **named)

    return call


def _made(function: FunctionType) -> Callable[[FunctionType], Callable[..., Any]]:
    hints = {name: _hint(text, function) for name, text in function.__annotations__.items()}
    kinds = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    yields = any(is_one(function) for is_one in kinds)
    if yields or any(_has_axes(hint) for hint in hints.values()):
        return _with_axes(function, hints)
    if not hints:
        return lambda other: other
    template = _typed(function, hints)
    defaults = template.__kwdefaults__ or {}
    if _FUNCTION not in defaults:
        # Nothing to check, or another version of beartype.
        return lambda other: _typed(other, hints)

    def of_other(other: FunctionType) -> Callable[..., Any]:
        found = _copy(template)
        found.__kwdefaults__ = {**defaults, _FUNCTION: other}
        return found

    return of_other


def _typed(function: FunctionType, hints: dict[str, Any]) -> Callable[..., Any]:
    copy = _copy(function)
    copy.__annotations__ = hints
    return beartype(conf=_CONFIG)(copy)


def _with_axes(function: FunctionType, hints: dict[str, Any]) -> Callable[[FunctionType], Callable[..., Any]]:
    """Checks by jaxtyping of a function that calls its first argument."""

    def call(_called_: FunctionType, /, *arguments: Any, **named: Any) -> Any:
        return _called_(*arguments, **named)

    signature = inspect.signature(function)
    first = inspect.Parameter("_called_", inspect.Parameter.POSITIONAL_ONLY, annotation=Any)
    others = [each.replace(annotation=hints.get(each.name, each.annotation)) for each in signature.parameters.values()]
    result = hints.get("return", signature.return_annotation)
    template = functools.update_wrapper(call, function)
    del template.__wrapped__
    template.__signature__ = signature.replace(parameters=[first, *others], return_annotation=result)  # type: ignore[attr-defined]
    check = _JAXTYPED(template, typechecker=beartype)
    # The kinds of results that were accepted, by the kinds of the arguments.
    accepted: dict[Any, set[Any]] = {}
    calls = itertools.count()
    return lambda other: functools.partial(_checked_call, check, accepted, calls, other)


def _checked_call(
    check: Callable[..., Any],
    accepted: dict[Any, set[Any]],
    calls: Iterator[int],
    function: FunctionType,
    /,
    *arguments: Any,
    **named: Any,
) -> Any:
    """Call a function with checks, of which those that were passed by the same kinds of values are left out."""
    __tracebackhide__ = True
    number = next(calls)
    if number >= _OFTEN and number % _ONE_IN:
        return function(*arguments, **named)
    asked = _kind((arguments, named))
    if asked is None:
        return check(function, *arguments, **named)
    if asked in accepted:
        result = function(*arguments, **named)
        found = _kind(result)
        if found is None or found not in accepted[asked]:
            check(lambda *_, **__: result, *arguments, **named)
    else:
        result = check(function, *arguments, **named)
        found = _kind(result)
    if found is not None:
        accepted.setdefault(asked, set()).add(found)
    return result


def _kind(value: Any) -> Any:
    """All that a check depends on: type and shape, and the value of a word; None if that is not known."""
    kind = type(value)
    if kind in _ARRAYS:
        return kind, value.dtype, value.shape
    if kind is str:
        return value if len(value) < _LONGEST_WORD else kind
    if kind is list or issubclass(kind, tuple):
        kinds = tuple(map(_kind, value)) if len(value) <= _MOST_VALUES else (None,)
        return None if None in kinds else (kind, kinds)
    if kind is dict:
        kinds = tuple(map(_kind, (*value, *value.values()))) if len(value) <= _MOST_VALUES else (None,)
        return None if None in kinds else (kind, kinds)
    if kind in _SIMPLE or issubclass(kind, np.generic):
        return kind
    if isinstance(value, type):
        return value
    # Of other collections, more is checked than their type.
    return None if isinstance(value, Iterable) or hasattr(value, "shape") else kind


def _copy(function: Any) -> FunctionType:
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    return copy


def _hint(text: Any, function: FunctionType) -> Any:
    """The type that an annotation names; anything, like in jaxtyping, if it cannot be known at run time."""

    def annotated() -> None: ...

    annotated.__annotations__ = {"hint": text}
    try:
        return get_type_hints(annotated, function.__globals__, include_extras=True)["hint"]
    except Exception:
        return Any


def _has_axes(hint: Any) -> bool:
    if isinstance(hint, TypeVar):
        return _has_axes((hint.__bound__, *hint.__constraints__))
    if isinstance(hint, list | tuple):
        return any(_has_axes(part) for part in hint)
    return getattr(hint, "__module__", "").partition(".")[0] == "jaxtyping" or _has_axes(get_args(hint))

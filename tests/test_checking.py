"""The tests' checks of types and shapes refuse what `jaxtyping.jaxtyped` with beartype refuses, and accept the rest."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float32, TypeCheckError

from tests import checking

Array = TypeVar("Array", bound=Float32[np.ndarray, "row"])


def plain(number: int, names: Sequence[str] = (), *more: float, limit: int | None = None) -> str:
    return "few" if number < 3 else limit  # type: ignore[return-value]


def multiplied(left: Float32[np.ndarray, "row inner"], right: Float32[np.ndarray, "inner column"]) -> Any:
    return left @ right


def transposed(array: Float32[np.ndarray, "row column"], really: bool = True) -> Float32[np.ndarray, "column row"]:
    return array.T if really else array


def within(arrays: dict[str, Float32[np.ndarray, "row 2"]], same: Float32[np.ndarray, "row"] | None) -> None:
    """Arrays inside of other types."""


def bound(first: Array, second: Array) -> None:
    """Arrays by a type variable."""


def counting(until: int) -> Iterator[int]:
    yield from range(until)


def of_unknown(value: NotDefinedAnywhere, number: int) -> int:  # type: ignore[name-defined]
    return number


def without_types(value, *others):  # type: ignore[no-untyped-def]
    return value


@dataclass
class Pair:
    left: Float32[np.ndarray, "row"]
    right: Float32[np.ndarray, "row"]
    name: str = ""


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], bool]] = [
    (plain, (1,), {}, True),
    (plain, ("1",), {}, False),
    (plain, (1, ["a"], 2.0, 3.0), {"limit": 4}, True),
    (plain, (1, [1]), {}, False),
    (plain, (1, ["a"], "b"), {}, False),
    (plain, (1,), {"limit": "a"}, False),
    (plain, (), {"number": 1, "names": ["a"]}, True),
    (plain, (3,), {}, False),
    (plain, (3,), {"limit": 5}, False),
    (multiplied, (zeros(2, 3), zeros(3, 4)), {}, True),
    (multiplied, (zeros(2, 3), zeros(2, 4)), {}, False),
    (multiplied, (), {"left": zeros(2, 3), "right": zeros(3)}, False),
    (multiplied, (np.zeros((2, 3)), zeros(3, 4)), {}, False),
    (transposed, (zeros(2, 3),), {}, True),
    (transposed, (zeros(2, 3), False), {}, False),
    (transposed, (zeros(2, 2), False), {}, True),
    (within, ({"a": zeros(4, 2)}, zeros(4)), {}, True),
    (within, ({"a": zeros(4, 2)}, zeros(3)), {}, False),
    (within, ({"a": zeros(4, 3)}, None), {}, False),
    (bound, (zeros(2), zeros(2)), {}, True),
    (bound, (zeros(2, 2), zeros(2)), {}, False),
    (counting, (3,), {}, True),
    (counting, ("3",), {}, False),
    (of_unknown, (zeros(2), 3), {}, True),
    (of_unknown, (zeros(2), "3"), {}, False),
    (without_types, (1, 2), {}, True),
]


def accepted(function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    try:
        function(*arguments, **named)
    except TypeCheckError:
        return False
    return True


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_a_call_is_refused_if_and_only_if_jaxtyping_refuses_it(number: int) -> None:
    function, arguments, named, allowed = CALLS[number]
    quick = checking.checked(function, typechecker=beartype)
    theirs = checking._JAXTYPED(function, typechecker=beartype)
    for _ in range(2):
        assert accepted(quick, arguments, named) == accepted(theirs, arguments, named) == allowed
    if allowed and function not in (counting, multiplied):
        np.testing.assert_equal(quick(*arguments, **named), function(*arguments, **named))


def test_the_constructor_of_a_dataclass_is_checked_once() -> None:
    before = Pair.__init__
    try:
        for _ in range(2):
            assert checking.checked(typechecker=beartype)(Pair) is Pair
        assert Pair.__init__.__wrapped__ is before  # type: ignore[attr-defined]
        assert accepted(Pair, (zeros(2), zeros(2)), {"name": "a"})
        assert not accepted(Pair, (zeros(2), zeros(3)), {})
        assert not accepted(Pair, (zeros(2), zeros(2), 3), {})
    finally:
        Pair.__init__ = before  # type: ignore[method-assign]


def test_dataclasses_with_fields_of_the_same_names_keep_their_own_types() -> None:
    @dataclass
    class Seconds:
        each: float

    @dataclass
    class Stages:
        each: dict[str, float]

    for kind in (Seconds, Stages):
        checking.checked(typechecker=beartype)(kind)
    assert accepted(Seconds, (1.0,), {})
    assert accepted(Stages, ({"decode": 1.0},), {})
    assert not accepted(Seconds, ({"decode": 1.0},), {})
    assert not accepted(Stages, (1.0,), {})


def test_inner_functions_share_their_checks_and_keep_their_own_variables() -> None:
    def outer(own: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
        @checking.checked(typechecker=beartype)
        def number(factor: int = 1) -> int:
            return factor * own

        @checking.checked(typechecker=beartype)
        def rows(array: Float32[np.ndarray, "row 2"], other: Float32[np.ndarray, "row"]) -> Any:
            return own, len(array) + len(other)

        return number, rows

    first, second, third = outer(2), outer(3), outer("four")
    before = len(checking._CHECKS)
    assert (first[0](5), second[0](5), second[0]()) == (10, 15, 3)
    assert (first[1](zeros(3, 2), zeros(3)), second[1](zeros(1, 2), zeros(1))) == ((2, 6), (3, 2))
    assert len(checking._CHECKS) == before + 2
    for number, rows in (first, second, third):
        assert not accepted(number, ("a",), {})
        assert not accepted(rows, (zeros(3, 2), zeros(2)), {})
    # The result of the third is a text.
    assert not accepted(third[0], (), {})
    assert len(checking._CHECKS) == before + 2


def test_headspan_is_checked_in_tests() -> None:
    from headspan.texts.pool import Pool

    assert not accepted(Pool, (3, ("a",)), {})


def test_a_call_like_an_accepted_one_is_not_checked_again_unless_its_result_differs() -> None:
    def made(rows: Float32[np.ndarray, "row column"], shape: Any, name: str = "") -> Float32[np.ndarray, "row"]:
        return np.zeros(shape.of, np.float32)

    class Shape:
        of = (2,)

    calls: list[Any] = []
    quick = checking.checked(made, typechecker=beartype)
    shape = Shape()
    assert accepted(quick, (zeros(2, 3), shape), {})
    with pytest.MonkeyPatch.context() as patch:
        bind = inspect.Signature.bind
        patch.setattr(inspect.Signature, "bind", lambda *given, **named: calls.append(1) or bind(*given, **named))
        assert accepted(quick, (zeros(2, 3), shape), {})
        assert not calls
        # The same kinds of arguments, but another result: refused, and refused again.
        shape.of = (3,)
        for _ in range(2):
            assert not accepted(quick, (zeros(2, 3), shape), {})
        assert accepted(quick, (zeros(3, 3), shape), {})
        assert not accepted(quick, (zeros(2, 3).astype(np.float64), shape), {})
        assert len(calls) >= 4

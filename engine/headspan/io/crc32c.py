"""Combine crc32c checksums of neighbouring byte strings.

A checksum is a polynomial over GF(2), modulo the Castagnoli polynomial. Appending n bytes multiplies the checksum of
what came before by x^(8n), and adds the checksum of the appended bytes. Bit 31 of a checksum is the coefficient of x⁰.
"""

from __future__ import annotations

from functools import cache

# The Castagnoli polynomial without x³², in the order of bits of a checksum.
_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31


def combined(first: int, second: int, second_bytes: int) -> int:
    """The crc32c of two byte strings joined, from the crc32c of each and the length of the second."""
    place = 0
    while second_bytes:
        if digit := second_bytes & 0xFF:
            first = _product(first, _shift(digit, place))
        second_bytes >>= 8
        place += 1
    return first ^ second


@cache
def _shift(digit: int, place: int) -> int:
    """x^(8 · digit · 256^place) modulo the polynomial; the length of a byte string has few such digits."""
    shift = _ONE
    for power in range(8):
        if digit >> power & 1:
            shift = _product(shift, _shift_by_power_of_two(8 * place + power))
    return shift


@cache
def _shift_by_power_of_two(power: int) -> int:
    """x^(8 · 2^power) modulo the polynomial."""
    if power == 0:
        return _ONE >> 8
    half = _shift_by_power_of_two(power - 1)
    return _product(half, half)


def _product(a: int, b: int) -> int:
    """The product of two polynomials modulo the Castagnoli polynomial."""
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product

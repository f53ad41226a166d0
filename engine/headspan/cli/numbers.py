"""Types of flags whose values are numbers: a value out of range is refused when the command line is read.

An error's text follows the flag and its value, which `flag_parser` puts before it.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

# The largest number that NumPy and torch count with.
_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `least` to `most`; with `word`, also that word, which stays text."""

    least: int = 1
    most: int = _MOST
    word: str | None = None

    def __call__(self, text: str) -> int | str:
        if self.word is not None and text == self.word:
            return text
        try:
            found = int(text)
        except ValueError:
            also = f", or {self.word}" if self.word else ""
            to = f" to {self.most:,}" if self.most < _MOST else ""
            raise argparse.ArgumentTypeError(f"is not a whole number; give one from {self.least}{to}{also}") from None
        if found < self.least:
            raise argparse.ArgumentTypeError(f"is too small; give at least {self.least}")
        if found > self.most:
            raise argparse.ArgumentTypeError(f"is too large; give at most {self.most:,}")
        return found


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number from `least` to `most`, or above `least` if that is itself not possible."""

    least: float = 0.0
    most: float = math.inf
    above: bool = False

    def __call__(self, text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"is not a number; {self._wanted()}") from None
        if not math.isfinite(found) or not self.least <= found <= self.most or (self.above and found == self.least):
            raise argparse.ArgumentTypeError(f"is out of range; {self._wanted()}")
        return found

    def _wanted(self) -> str:
        to = f"{' and up' if self.above else ''} to {self.most:g}" if self.most < math.inf else ""
        return f"give one {'above' if self.above else 'from'} {self.least:g}{to}"


# Whole numbers, and others.
FROM_0, FROM_1 = Whole(0), Whole()
ZERO_OR_MORE, ABOVE_ZERO = Real(), Real(above=True)

"""What one judge says about one description of a class, and what judges are.

A judge is a language model, a person, or any function of a text and the name of a class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from headspan.describe.descriptions.result import SPURIOUS, UNDECIDED

# What a description can be about: first what images show, then what they do not.
ATTRIBUTES = (
    "colour", "shape", "texture", "part", "size", "count", "position", "pose", "background", "style",
    "habitat", "use", "origin", "behaviour", "material", "kind", "history", "feeling", "other",
)  # fmt: skip


class Described(NamedTuple):
    """What is judged: a text about a class, whichever questions it answered."""

    class_name: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a description teaches about its class: a number of `VERDICTS`, and the attribute that it is about."""

    number: int
    # Empty if the description teaches nothing, or if the judge does not say.
    attribute: str = ""

    def __post_init__(self) -> None:
        assert self.number > SPURIOUS or not self.attribute, self


# The judge cannot say.
NO_VERDICT = Verdict(UNDECIDED)
# Called with a text and the name of its class.
Judge = Callable[[str, str], Verdict]

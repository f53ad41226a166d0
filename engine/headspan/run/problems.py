"""A problem that a check of a store finds."""

from __future__ import annotations

from dataclasses import dataclass

# The unit of a problem that does not belong to a single unit.
WHOLE_STORE = -1


@dataclass(frozen=True, slots=True)
class Problem:
    """A disagreement: the unit and rows it is in, and what it is."""

    unit: int
    first_row: int
    rows: int
    what: str
    # The path of a file in the store, or the name of a source shard; empty if there is neither.
    where: str = ""
    # Whether a source has changed, and not the store.
    of_source: bool = False
    # Whether it is in a result of an analysis, which that analysis can compute again.
    of_analysis: bool = False

    @property
    def of_store(self) -> bool:
        """Whether `headspan repair` should repair it."""
        return not (self.of_source or self.of_analysis)

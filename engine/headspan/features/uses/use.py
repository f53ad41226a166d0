"""What every use of features records beside its numbers: scores, residual, how chance was drawn, and lineage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from headspan.features.scores.result import FeatureScores
from headspan.frames import Tabular
from headspan.store.lineage import Lineage


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Use(Tabular):
    """The part that results of all uses share. Each use stands beside random features of equal energy."""

    # The command that gives the result, as in `headspan features use bias`.
    use: ClassVar[str]
    # The run of scores that gives features their classes.
    scores_run: str
    # What happens to what the dictionary does not explain: kept or dropped.
    residual: str
    # How far the energy of a random set may be from that of the class, as a share of it.
    tolerance: float
    # Random sets that were wanted for each class, and the seed of all that is drawn.
    draws: int
    seed: int
    # What limits the comparison, in sentences without a full stop.
    remarks: tuple[str, ...] = ()
    # Identifies the result, and says what it was made from.
    lineage: Lineage | None = None

    @property
    def older(self) -> str | None:
        """The run of scores, if it was replaced or removed since; else None."""
        return self.lineage.older if self.lineage else None


def how_made(scores: FeatureScores, residual: str, tolerance: float, draws: int, seed: int) -> dict[str, Any]:
    """The fields of `Use` that are known before its numbers are."""
    return {"scores_run": scores.run, "residual": residual, "tolerance": tolerance, "draws": draws, "seed": seed}

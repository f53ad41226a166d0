"""Plain values of one head and of all heads' scores, each beside chance; `describe` fills them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headspan.concepts.labels import LABELLED_TEXTS
from headspan.concepts.nulls import LEVEL
from headspan.head_names import head_name
from headspan.spans.nulls import Chance

# A head with less than this part of the average head's share of the variance has a low magnitude.
LOW_MAGNITUDE = 0.1


@dataclass(frozen=True, slots=True)
class Share:
    """The share of the variance of a head's contributions that its first `texts` texts explain."""

    texts: int
    explained: float
    # None if the run recorded no chance.
    chance: Chance | None = None


@dataclass(frozen=True, slots=True)
class DescribedHead:
    """One head's numbers, label and first texts, each text with whether it is consistent with the label."""

    layer: int
    head: int
    # After 1, 5, 20 and all texts, as far as the run has them.
    shares: tuple[Share, ...]
    texts: tuple[tuple[str, bool | None], ...]
    # Label, CCS and its group; None without labels.
    label: str | None = None
    score: int | None = None
    group: str | None = None
    # The probability of such a score by chance, None if it is not known; and whether the label beats chance.
    score_p: float | None = None
    labelled: bool = True
    # Shares of the embeddings' variance and of their mean squared length.
    variance_share: float | None = None
    squared_length_share: float | None = None
    low_magnitude: bool = False
    # Effective number of dimensions of the contributions, and the share of the first five texts that a bootstrap keeps.
    effective_rank: float | None = None
    stability: float | None = None

    @property
    def name(self) -> str:
        """The name in the field's notation, such as `L22.H13`."""
        return head_name(self.layer, self.head)

    @property
    def first(self) -> Share:
        """The share after five texts, or after fewer if the run has no more."""
        return max((share for share in self.shares if share.texts <= LABELLED_TEXTS), key=lambda share: share.texts)

    @property
    def no_effect(self) -> bool:
        """Whether chance gives what the first texts explain more often than LEVEL."""
        return self.first.chance is not None and not self.first.chance.p <= LEVEL

    @property
    def weak(self) -> bool:
        """Whether a label says little about the model: the texts have no effect, or the head hardly matters."""
        return self.no_effect or self.low_magnitude

    @property
    def rank(self) -> tuple[float, ...]:
        """What orders heads, strongest first: excess over chance, else CCS and the share explained."""
        explained = -math.inf if math.isnan(self.first.explained) else self.first.explained
        leading = (self.first.chance.excess,) if self.first.chance else (float(self.score or 0), explained)
        return (*(-value for value in leading), float(self.layer), float(self.head))


@dataclass(frozen=True, slots=True)
class Scores:
    """The summaries of the Concept Consistency Scores, beside what chance gives."""

    at_k: list[float]
    groups: dict[str, int]
    ccr: float
    # The same by chance, and the expected number of heads whose score beats chance; None if it is not known.
    expected_at_k: tuple[float, ...] | None = None
    expected_groups: dict[str, float] | None = None
    expected_ccr: float | None = None
    expected_labelled: float | None = None
    # Whether chance includes rotated pools.
    rotated: bool = False

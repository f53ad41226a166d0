"""The grid of heads: what its cells can be coloured by, and the level and words of each cell.

A measure has six levels, 0 to 5, which are the same six colours for all measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from headspan.concepts.labels import LABELLED_TEXTS
from headspan.concepts.nulls import LEVEL
from headspan.plots.levels import CCS, EXCESS, EXPLAINED, MAGNITUDE, points
from headspan.report.content import Content
from headspan.report.described_head import LOW_MAGNITUDE, DescribedHead


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of every head that the grid can show."""

    # The first letter is that of the cells' classes, `e0` to `e5`.
    key: str
    title: str
    about: str
    # The range of each level, in words.
    levels: tuple[str, ...]
    level: Callable[[DescribedHead], int]
    words: Callable[[DescribedHead], str]


def measures(content: Content) -> list[Measure]:
    """The measures that the results allow; the first is shown first. There is none without heads."""
    if not content.heads:
        return []
    found = []
    if content.has_chance:
        found.append(_EXCESS)
    else:
        found.append(_EXPLAINED)
    # A head has fewer texts if the pool or the run does.
    found = [replace(each, about=each.about.format(texts=content.heads[0].first.texts)) for each in found]
    if content.has_magnitudes:
        found.append(_MAGNITUDE)
    if content.scores is not None:
        found.append(_CCS)
    return found


def _excess_level(head: DescribedHead) -> int:
    chance = head.first.chance
    return 0 if chance is None or head.no_effect else EXCESS.of(chance.excess)


def _excess_words(head: DescribedHead) -> str:
    chance = head.first.chance
    return points(math.nan if chance is None else chance.excess)


def _magnitude_level(head: DescribedHead) -> int:
    share = math.nan if head.variance_share is None else head.variance_share
    return 0 if head.low_magnitude else MAGNITUDE.of(share)


def _magnitude_words(head: DescribedHead) -> str:
    share = math.nan if head.variance_share is None else head.variance_share
    return "–" if math.isnan(share) else f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.1f}"


_EXCESS = Measure(
    "excess",
    "Excess over chance",
    "The share of a head’s variance that its first {texts} texts explain, less what a pool without meaning "
    "explains (the same texts’ vectors, rotated at random), in percentage points. Heads with a share that chance gives "
    f"with a probability above {100 * LEVEL:.0f}\u202f% have no effect.",
    EXCESS.names,
    _excess_level,
    _excess_words,
)
_EXPLAINED = Measure(
    "explained",
    "Share explained",
    "The share of a head’s variance that its first {texts} texts explain, in percent. This run recorded no "
    "chance to compare it with: run headspan textspan again, under another name (--run).",
    EXPLAINED.names,
    lambda head: EXPLAINED.of(head.first.explained),
    lambda head: "–" if math.isnan(head.first.explained) else f"{100 * head.first.explained:.0f}",
)
_MAGNITUDE = Measure(
    "magnitude",
    "Magnitude",
    "The variance of a head’s contributions in percent of the variance of the embeddings. Contributions correlate, so "
    f"these shares need not sum to 100. A head with less than {LOW_MAGNITUDE:g} of the average head’s share has a low "
    "magnitude: it hardly changes an embedding, whatever its label. The share of the squared length, in the heads’ "
    "sections, includes the mean contribution, which is the same for all images.",
    MAGNITUDE.names,
    _magnitude_level,
    _magnitude_words,
)
_CCS = Measure(
    "ccs",
    "CCS",
    f"The number of a head’s first {LABELLED_TEXTS} texts that match its label.",
    CCS,
    lambda head: head.score or 0,
    lambda head: "–" if head.score is None else f"{head.score}",
)

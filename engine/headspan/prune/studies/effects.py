"""What a task loses without sets of heads: its figures, changes with intervals, and the place among random heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from headspan.prune.studies.statistics import Interval, McNemar, RankCorrelation, mcnemar_of
from headspan.prune.studies.study_plan import HeadSet, Kind

# Figures that are equal but for the rounding of their sums.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class GroupEffect:
    """What a task loses without one group of heads."""

    # All figures without the group, by name, the headline first.
    figures: Mapping[str, float]
    # The change of the headline, with the paired bootstrap interval over items.
    change: Interval


@dataclass(frozen=True, slots=True)
class RandomEffect:
    """The headline without random heads: mean and 95 % range over draws."""

    draws: int
    mean: float
    low: float
    high: float
    # The share of draws that cost at least as much as the group, where the group counts as a draw: a permutation test.
    p: float


@dataclass(frozen=True, slots=True)
class TaskEffects:
    """One task: its figures with the whole model, and without each set of heads of a study."""

    name: str
    title: str
    metric: str
    # The figure whose changes are reported, and whether more of it is better.
    headline: str
    higher_is_better: bool
    # The store of the images, its images, and the items that are scored, such as images with a known class.
    store: str
    images: int
    items: int
    whole: Mapping[str, float]
    # The headline without each of the study's sets, in their order.
    values: tuple[float, ...]
    # Items that became wrong and that became right without each set; None if items are not right or wrong.
    lost: tuple[int, ...] | None
    gained: tuple[int, ...] | None
    # By the name of the group.
    groups: Mapping[str, GroupEffect]
    # Published figures for this model by variant, such as `whole` and `high`, and a sentence about them.
    published: Mapping[str, float] = field(default_factory=dict)
    published_note: str = ""
    # The mean loss of margin without each single head, in the order of the heads: how much smaller the right class's
    # cosine is, above the best other class's. None if it was not measured.
    margin_losses: tuple[float, ...] | None = None
    # Rank correlations of CCS with what a single head's removal costs, by measure: `loss` and `margin loss`.
    correlations: Mapping[str, RankCorrelation] = field(default_factory=dict)
    # The heads removed one after the other, and the headline after each; None if that was not asked for.
    greedy: tuple[tuple[int, int, float], ...] | None = None

    @property
    def is_share(self) -> bool:
        """Whether the headline is a share, which is shown in percent."""
        return is_share(self.headline)

    @property
    def chance(self) -> float | None:
        """The headline by chance, as the metric defines it; None if it does not."""
        return self.whole.get("chance", self.whole.get(f"chance_{self.headline}"))

    @property
    def other_figures(self) -> tuple[str, ...]:
        """The names of the figures beside the headline and chance."""
        return tuple(name for name in self.whole if name != self.headline and not name.startswith("chance"))

    @property
    def sign(self) -> int:
        """1 if more of the headline is better, otherwise -1."""
        return 1 if self.higher_is_better else -1

    def change(self, place: int) -> float:
        """The change of the headline without the set at `place`."""
        return self.values[place] - self.whole[self.headline]

    def mcnemar(self, place: int) -> McNemar | None:
        """McNemar's exact test for the set at `place`; None if items are not right or wrong."""
        return None if self.lost is None or self.gained is None else mcnemar_of(self.lost[place], self.gained[place])

    def random(self, sets: Sequence[HeadSet], kind: Kind, of: str, group: str | None = None) -> RandomEffect | None:
        """The draws of a kind for one group, beside `group`, by default that group; None if there are none."""
        drawn = np.array([self.values[place] for place in places(sets, kind, of)])
        if not len(drawn):
            return None
        low, high = np.quantile(drawn, [0.025, 0.975])
        own = [self.values[place] for place in places(sets, "group", of if group is None else group)]
        worse = int((self.sign * (drawn - own[0]) <= _ROUNDING).sum()) if own else len(drawn)
        return RandomEffect(len(drawn), float(drawn.mean()), float(low), float(high), (1 + worse) / (1 + len(drawn)))


def places(sets: Sequence[HeadSet], kind: Kind, of: str | None = None) -> list[int]:
    """The places of the sets of a kind, or of those of one group."""
    return [place for place, each in enumerate(sets) if each.kind == kind and of in (None, each.of)]


def is_share(figure: str) -> bool:
    """Whether the figure of that name is a share from 0 to 1; ranks and skews are none."""
    return not any(word in figure for word in ("rank", "skew", "ndkl"))

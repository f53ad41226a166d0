"""The classifiers that are attacked: plain, of the whole reconstruction, of classes of features, and their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from headspan.features.scores.result import FeatureScores
from headspan.features.uses.attack_result import Kind
from headspan.features.uses.chosen import chosen_classes
from headspan.features.uses.matched import controls_of


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """A classifier: what it is called and keeps; None keeps the whole embedding."""

    kind: Kind
    name: str
    keep: Bool[np.ndarray, " feature"] | None
    energy: float

    @property
    def features(self) -> int:
        """The number of features that it keeps."""
        return 0 if self.keep is None else int(self.keep.sum())


def filters_of(
    scores: FeatureScores,
    energies: Float64[np.ndarray, " feature"],
    keep: Sequence[str],
    remove: Sequence[str],
    draws: int,
    seed: int,
    tolerance: float,
) -> tuple[list[Filter], list[str]]:
    """The classifiers, each followed by its random sets; and what limits the comparison."""
    members = chosen_classes(scores, [*dict.fromkeys([*keep, *remove])])
    every = np.ones(len(energies), bool)
    total = max(float(energies.sum()), 1e-30)
    found = [Filter("plain", "plain", None, 1.0), Filter("reconstruction", "all features", every, 1.0)]
    controls, remarks = controls_of(members, energies, scores, draws, seed, tolerance)
    for word, names in (("only", keep), ("without", remove)):
        for name in (each for each in names if each in members):
            sets = [members[name], *controls[name].members]
            for place, own in enumerate(sets):
                kept = own if word == "only" else ~own
                kind: Kind = "random" if place else "class"
                found.append(Filter(kind, f"{word} {name}", kept, float(energies[kept].sum()) / total))
    return found, remarks

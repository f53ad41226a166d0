"""Compare trained dictionaries: which of their features the others found too, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headspan.errors import SettingsError
from headspan.features.scores.stability import SHARED, Stability, stability
from headspan.features.training.dictionary import Dictionary, open_dictionary
from headspan.frames import Tabular


@dataclass(frozen=True, slots=True, repr=False)
class ComparedDictionaries(Tabular):
    """Dictionaries with the cosine of each feature with its match in the others."""

    folders: tuple[str, ...]
    learners: tuple[str, ...]
    stability: Stability
    # From this cosine on, a feature counts as found by both.
    shared_from: float = SHARED

    def __repr__(self) -> str:
        return f"ComparedDictionaries({len(self.folders)} dictionaries: mean matched cosine {self.stability.mean:.3f})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        cosines = self.stability.cosines
        return {
            "dictionary": [name for name, each in zip(self.folders, cosines, strict=True) for _ in each],
            "feature": [feature for each in cosines for feature in range(len(each))],
            "cosine": [float(value) for each in cosines for value in each],
        }


def compare_dictionaries(dictionaries: Sequence[Dictionary | str | Path], seed: int = 0) -> ComparedDictionaries:
    """Match the features of dictionaries one to one, as `stability` does; `seed` draws the directions of chance.

    Raises SettingsError for fewer than two, for other spaces or models, or for a learner that has no directions; and
    StoreError as `open_dictionary` does.
    """
    opened = [each if isinstance(each, Dictionary) else open_dictionary(each) for each in dictionaries]
    first = opened[0] if opened else None
    directions = []
    for each in opened:
        assert first is not None
        if difference := first.space.difference(each.space):
            raise SettingsError(
                f"{first.folder} and {each.folder} are of different spaces ({difference}); choose dictionaries of one "
                "space"
            )
        with torch.inference_mode():
            found = each.learner.directions()
        if found is None:
            raise SettingsError(
                f"{each.folder}: features of {each.kind} have no directions of their own; compare the directions of "
                "their scores with hs.features.stability"
            )
        directions.append(found.float().cpu().numpy())
    return ComparedDictionaries(
        tuple(str(each.folder) for each in opened),
        tuple(each.kind for each in opened),
        stability(directions, seed),
    )

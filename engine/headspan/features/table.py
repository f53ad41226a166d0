"""Features as a table: which ones, in which order, with their scores and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from headspan.errors import SettingsError, counted
from headspan.features.scores.result import CLASS_NAMES, CLASSES, FeatureScores
from headspan.frames import Tabular

# What features can be sorted by; `name` is the cosine of the first name.
SORTS = ("active", "mds", "energy", "monosemanticity", "name", "number")


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class FeatureTable(Tabular):
    """Some features, one in each row."""

    scores: FeatureScores
    features: Int64[np.ndarray, " row"]

    @classmethod
    def of(cls, scores: FeatureScores, features: Sequence[int]) -> FeatureTable:
        """The rows of these features, in this order. Raises SettingsError if there is no such feature."""
        return cls(scores, np.array([checked_feature(scores, int(each)) for each in features], np.int64))

    def __repr__(self) -> str:
        return f"FeatureTable({counted(len(self.features), 'feature')} of {len(self.scores.mds):,}: {self.scores.run})"

    def __len__(self) -> int:
        return len(self.features)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        scores, rows = self.scores, self.features
        columns: dict[str, Sequence[Any]] = {
            "feature": rows.tolist(),
            "class": class_names(scores.class_by_interval[rows]),
            "class_by_spread": class_names(scores.class_by_spread[rows]),
            "mds": _known(scores.mds[rows]),
            "mds_low": _known(scores.mds_interval[rows, 0]),
            "mds_high": _known(scores.mds_interval[rows, 1]),
            "shuffled_mds": _known(scores.shuffled_mds[rows]),
            "energy": _known(scores.energy[rows]),
            "energy_low": _known(scores.energy_interval[rows, 0]),
            "energy_high": _known(scores.energy_interval[rows, 1]),
            "shuffled_energy": _known(scores.shuffled_energy[rows]),
            "active": scores.active[rows].tolist(),
            "image_active": scores.image_active[rows].tolist(),
            "text_active": scores.text_active[rows].tolist(),
            "image_mean": _known(scores.image_mean[rows]),
            "text_mean": _known(scores.text_mean[rows]),
            "monosemanticity": _known(scores.monosemanticity[rows]),
            "cross_monosemanticity": _known(scores.cross_monosemanticity[rows]),
        }
        for place, size in enumerate(scores.similarity_sizes):
            columns[f"similarity_{size}"] = _known(scores.similarity[rows, place])
        if scores.names and scores.name_cosines is not None:
            for place in range(scores.name_cosines.shape[1]):
                columns[f"name_{place + 1}"] = [_at(scores.names[feature], place) for feature in rows.tolist()]
                columns[f"cosine_{place + 1}"] = _known(scores.name_cosines[rows, place])
        for name in ("name_p", "name_mixture_p"):
            values = getattr(scores, name)
            if values is not None:
                columns[name] = _known(values[rows])
        return columns


def feature_table(
    scores: FeatureScores,
    chosen: str | None = None,
    sort: str = "active",
    least_active: int = 1,
    count: int | None = None,
    *,
    ascending: bool = False,
) -> FeatureTable:
    """The features of a class, with the largest of some number first.

    Args:
        scores: Scores, as `read_scores` reads them.
        chosen: A class by intervals, such as `image-dominant`; None for all.
        sort: One of `SORTS`, the largest first. Features that lack the number come last, and equal ones in their order.
        least_active: Leave out features that are active in fewer pairs.
        count: How many features at most; None for all.
        ascending: The smallest first.

    Raises SettingsError if one of these is unknown or out of range, or names are missing.
    """
    if sort not in SORTS:
        raise SettingsError(f"sort {sort!r} is unknown; choose from {', '.join(SORTS)}")
    if count is not None and count < 1:
        raise SettingsError(f"{counted(count, 'feature')}: ask for at least 1")
    if least_active < 0:
        raise SettingsError(f"least_active {least_active} is negative; give a number of pairs from 0")
    keep = scores.active >= least_active
    if chosen is not None:
        keep &= scores.class_by_interval == class_of(chosen)
    features = np.flatnonzero(keep)
    by = _values(scores, sort)[features]
    # NaN comes last either way.
    return FeatureTable(scores, features[np.argsort(by if ascending else -by, kind="stable")][:count])


def class_of(name: str) -> int:
    """The class of a name. Raises SettingsError if there is none."""
    if name not in CLASSES:
        raise SettingsError(f"class {name!r} is unknown; choose from {', '.join(CLASSES)}")
    return CLASSES[name]


def class_counts(scores: FeatureScores) -> dict[str, tuple[int, int]]:
    """How many features each class has, by intervals and by spread."""
    return {
        name: (int((scores.class_by_interval == number).sum()), int((scores.class_by_spread == number).sum()))
        for number, name in CLASS_NAMES.items()
    }


def class_names(classes: np.ndarray) -> list[str]:
    """The names of classes."""
    return [CLASS_NAMES[int(each)] for each in classes]


def checked_feature(scores: FeatureScores, feature: int) -> int:
    """`feature`. Raises SettingsError if the scores have no feature of that number."""
    if not 0 <= feature < len(scores.mds):
        raise SettingsError(
            f"feature {feature}: {scores.run} has features 0 to {len(scores.mds) - 1}; name one of them"
        )
    return feature


def _values(scores: FeatureScores, sort: str) -> Float64[np.ndarray, " feature"]:
    if sort == "number":
        return np.arange(len(scores.mds), dtype=np.float64)
    if sort == "name":
        if scores.name_cosines is None:
            raise SettingsError(f"{scores.run}: features have no names to sort by; name them by a pool of texts first")
        return scores.name_cosines[:, 0].astype(np.float64)
    return np.asarray(getattr(scores, sort), np.float64)


def _known(values: np.ndarray) -> list[float | None]:
    """Numbers, None where there is none."""
    return [None if np.isnan(value) else float(value) for value in values]


def _at(names: Sequence[str], place: int) -> str | None:
    return names[place] if place < len(names) else None

"""Choose features by the class that their scores give them: image-dominant, text-dominant or cross-modal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from headspan.errors import SettingsError
from headspan.features.scores.result import CLASSES, FeatureScores

# The classes that uses look at unless the user says otherwise; undecided features have too few pairs for a class.
DECIDED = ("image-dominant", "text-dominant", "cross-modal")


def class_members(scores: FeatureScores, name: str) -> Bool[np.ndarray, " feature"]:
    """Whether each feature is of a class by its interval. Raises SettingsError for a class that does not exist."""
    if name not in CLASSES:
        raise SettingsError(f"class of features {name!r}: there is no such class; choose one of {', '.join(CLASSES)}")
    return np.asarray(scores.class_by_interval == CLASSES[name])


def chosen_classes(scores: FeatureScores, names: Sequence[str]) -> dict[str, Bool[np.ndarray, " feature"]]:
    """The members of each class that has some.

    Raises SettingsError for a class that does not exist, and if none of them has a feature.
    """
    every = {name: class_members(scores, name) for name in names}
    found = {name: members for name, members in every.items() if members.any()}
    if not found:
        counts = ", ".join(f"{name} {int(class_members(scores, name).sum())}" for name in CLASSES)
        raise SettingsError(
            f"{scores.dictionary}: none of its features is {' or '.join(names) or 'named'} by the scores of run "
            f"{scores.run!r} ({counts}); score more pairs, or choose another class"
        )
    return found

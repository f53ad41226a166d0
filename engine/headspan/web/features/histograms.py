"""Histograms of features' scores by class, beside the scores with captions shuffled."""

from __future__ import annotations

import numpy as np

from headspan.features.scores.result import CLASSES, FeatureScores
from headspan.web.answers.features import Histogram
from headspan.web.features.lists import Measure, Rule, classes_by, score_of

BARS = 40
# The same numbers as the page's `bar / BARS`, so that a bar and the list of its features count the same.
_EDGES = np.arange(BARS + 1) / BARS


def histograms(scores: FeatureScores) -> list[Histogram]:
    """One histogram for each score."""
    return [_histogram(scores, measure) for measure in Measure]


def class_counts(scores: FeatureScores) -> dict[str, dict[str, int]]:
    """How many features are of each class, by the rule."""
    return {
        rule: {name: int((classes_by(scores, rule) == number).sum()) for name, number in CLASSES.items()}
        for rule in Rule
    }


def _histogram(scores: FeatureScores, measure: Measure) -> Histogram:
    values = score_of(scores, measure)
    shuffled = scores.shuffled_mds if measure is Measure.MDS else scores.shuffled_energy
    return Histogram(
        measure=measure,
        counts={
            rule: {name: _counts(values[classes_by(scores, rule) == number]) for name, number in CLASSES.items()}
            for rule in Rule
        },
        shuffled=_counts(shuffled),
        without=int(np.isnan(values).sum()),
        shuffled_without=int(np.isnan(shuffled).sum()),
    )


def _counts(values: np.ndarray) -> list[int]:
    found: list[int] = np.histogram(values[~np.isnan(values)], _EDGES)[0].tolist()
    return found

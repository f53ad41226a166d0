"""Choose and order features: by class, score, words, and the images that they are most active in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float64, Int64

from headspan.features.scores.result import CLASSES, FeatureScores
from headspan.web.asked import AskedStore
from headspan.web.features.runs import SEARCHED_CAPTIONS, captions_of

# What each of a feature's searched texts takes in memory beside its letters.
_TEXT_BYTES = 60


class Class(StrEnum):
    """The class of a feature."""

    IMAGE = "image-dominant"
    CROSS = "cross-modal"
    TEXT = "text-dominant"
    UNDECIDED = "undecided"


class Rule(StrEnum):
    """What classes follow from: the mean and deviation of all features' MDS, or each feature's interval."""

    SPREAD = "spread"
    INTERVAL = "interval"


class Measure(StrEnum):
    """The score that a histogram shows."""

    MDS = "mds"
    ENERGY = "energy"


class Sort(StrEnum):
    """What a list of features is ordered by."""

    FEATURE = "feature"
    MDS = "mds"
    ENERGY = "energy"
    PAIRS = "active"
    IMAGES = "image_active"
    TEXTS = "text_active"
    MONOSEMANTICITY = "monosemanticity"
    CROSS_MONOSEMANTICITY = "cross_monosemanticity"
    # Above its captions-shuffled value, so that what the pairing adds comes first.
    GAP = "gap"


@dataclass(frozen=True)
class Asking:
    """What a request asks of features. Everything that is given must hold."""

    classes: tuple[Class, ...] = ()
    rule: Rule = Rule.SPREAD
    words: str = ""
    # The score from `low` to below `high`, or to 1.
    measure: Measure = Measure.MDS
    low: float | None = None
    high: float | None = None
    # The index of an image that must be among those with the largest codes.
    image: int | None = None


def chosen_features(
    asked: AskedStore, scores: FeatureScores, asking: Asking, sort: Sort, descending: bool
) -> Int64[np.ndarray, " chosen"]:
    """The numbers of the features that pass, in order. Features without the number that is sorted by come last."""
    passed = np.ones(len(scores.mds), bool)
    if asking.classes:
        passed &= np.isin(classes_by(scores, asking.rule), [CLASSES[each] for each in asking.classes])
    if asking.low is not None or asking.high is not None:
        passed &= _within(
            score_of(scores, asking.measure), asking.low or 0.0, 1.0 if asking.high is None else asking.high
        )
    if asking.image is not None:
        passed &= (scores.top_images == asking.image).any(axis=1)
    if words := asking.words.casefold().split():
        passed &= _with_words(asked, scores, words)
    keys = _keys(scores, sort)
    found = np.flatnonzero(passed)
    ordered = np.argsort(-keys[found] if descending else keys[found], kind="stable")
    return found[ordered]


def classes_by(scores: FeatureScores, rule: Rule) -> np.ndarray:
    """The class of every feature by a rule."""
    return scores.class_by_spread if rule is Rule.SPREAD else scores.class_by_interval


def score_of(scores: FeatureScores, measure: Measure) -> Float64[np.ndarray, " feature"]:
    """The score of every feature that a histogram shows."""
    return scores.mds if measure is Measure.MDS else scores.energy


def _within(values: Float64[np.ndarray, " feature"], low: float, high: float) -> Bool[np.ndarray, " feature"]:
    return (values >= low) & ((values < high) | ((high >= 1) & (values <= 1)))


def _keys(scores: FeatureScores, sort: Sort) -> np.ndarray:
    """What is sorted by. NaN comes last in either order."""
    if sort is Sort.FEATURE:
        return np.arange(len(scores.mds))
    if sort is Sort.GAP:
        return np.asarray(np.abs(scores.mds - scores.shuffled_mds))
    found: np.ndarray = getattr(scores, sort.value)
    return found


def _with_words(asked: AskedStore, scores: FeatureScores, words: list[str]) -> Bool[np.ndarray, " feature"]:
    """The features whose names or first captions have every word, and the one that a number alone names."""
    texts = asked.keep(
        ("feature texts", scores.run),
        lambda: _texts(asked, scores),
        lambda found: sum(_TEXT_BYTES + 4 * len(one) for one in found),
    )
    passed = np.fromiter((all(word in text for word in words) for text in texts), bool, len(texts))
    if len(words) == 1 and (number := re.fullmatch(r"#?([0-9]{1,9})", words[0])) and int(number[1]) < len(passed):
        passed[int(number[1])] = True
    return passed


def _texts(asked: AskedStore, scores: FeatureScores) -> list[str]:
    """What is searched of each feature: its names and its first captions, without case."""
    searched = (scores.top_captions if scores.text_active.any() else scores.top_images)[:, :SEARCHED_CAPTIONS]
    captions = captions_of(asked, searched.ravel())
    wide = searched.shape[1]
    return [
        "\n".join(
            [*(scores.names[each] if scores.names else ()), *filter(None, captions[each * wide : (each + 1) * wide])]
        ).casefold()
        for each in range(len(scores.mds))
    ]

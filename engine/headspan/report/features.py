"""The report's section on sparse features: MDS beside shuffled captions, classes, and the strongest of each class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from headspan.errors import counted
from headspan.features.most_active import TopSamples, top_samples
from headspan.features.scores.classes import BOUNDS, LEAST_PAIRS
from headspan.features.scores.result import (
    CLASS_NAMES,
    CROSS_MODAL,
    IMAGE_DOMINANT,
    TEXT_DOMINANT,
    UNDECIDED,
    FeatureScores,
)
from headspan.features.table import class_counts
from headspan.store.reader import Store

# The strongest features of a class, and what is shown of each.
_FEATURES, _IMAGES, _CAPTIONS = 4, 4, 3
_BINS = 20
# A name is in doubt if so many mixtures of features are as near to a text.
_LEVEL = 0.05
# More runs are named only.
_RUNS = 4
_SHOWN_CLASSES = (IMAGE_DOMINANT, CROSS_MODAL, TEXT_DOMINANT)
# The bounds between the classes, in percent of the histogram's width.
CLASS_BOUNDS = tuple(round(100 * bound, 2) for bound in BOUNDS)


@dataclass(frozen=True, slots=True)
class FeatureShot:
    """One of the images that a feature is most active on."""

    key: str
    caption: str | None
    code: float
    # The image's place among the page's pictures; None if it could not be read.
    picture: int | None


@dataclass(frozen=True, slots=True)
class ShownFeature:
    """One feature, in words."""

    number: int
    mds: str
    shuffled: str
    active: int
    # The nearest text with its cosine; whether mixtures of features are as near to a text.
    name: str | None
    cosine: str
    doubtful: bool
    shots: tuple[FeatureShot, ...]
    captions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ShownClass:
    """A class of features: its number of features by both rules, how many have names, and the strongest ones."""

    name: str
    by_interval: int
    by_spread: int
    # Features that are nearer to a text than mixtures of features; None without names.
    named: int | None
    features: tuple[ShownFeature, ...]


@dataclass(frozen=True, slots=True)
class Bin:
    """A bar of the histogram: its range, numbers of features, and heights in percent."""

    range: str
    count: int
    shuffled: int
    height: float
    shuffled_height: float


@dataclass(frozen=True, slots=True)
class ShownFeatures:
    """One run of scores of features."""

    run: str
    note: str
    # Empty where features have no MDS, since texts are not in their space.
    bins: tuple[Bin, ...]
    classes: tuple[ShownClass, ...]
    figures: tuple[tuple[str, str], ...]
    has_names: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChosenFeatures:
    """A run with the samples of the features that the report shows, by class."""

    scores: FeatureScores
    samples: Mapping[int, tuple[TopSamples, ...]]

    @property
    def images(self) -> list[int]:
        """The images whose pictures are shown."""
        return [shot.image for each in self.samples.values() for found in each for shot in found.images]


def shown_runs(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The runs that the report shows, and those that it only names."""
    return list(names[:_RUNS]), list(names[_RUNS:])


def choose_features(store: Store, scores: FeatureScores) -> ChosenFeatures:
    """The strongest features of each class by intervals: those with the largest mean squared codes of both sides."""
    strength = scores.image_square + scores.text_square
    classes = _SHOWN_CLASSES if _has_mds(scores) else (UNDECIDED,)
    found: dict[int, tuple[TopSamples, ...]] = {}
    for each in classes:
        own = np.flatnonzero((scores.class_by_interval == each) & (strength > 0))
        strongest = own[np.argsort(-strength[own], kind="stable")][:_FEATURES]
        samples = top_samples(store, scores, strongest.tolist(), _IMAGES) if len(strongest) else ()
        found[each] = samples
    return ChosenFeatures(scores, found)


def shown_features(chosen: ChosenFeatures, pictures: Mapping[int, int]) -> ShownFeatures:
    """A run as it is shown. `pictures` are the places of images among the page's pictures."""
    scores = chosen.scores
    counts = class_counts(scores)
    has_names = bool(scores.names)
    classes = []
    for each, name in CLASS_NAMES.items():
        own = scores.class_by_interval == each
        named = None if scores.name_mixture_p is None else int((scores.name_mixture_p[own] <= _LEVEL).sum())
        features = tuple(_feature(scores, samples, pictures) for samples in chosen.samples.get(each, ()))
        classes.append(ShownClass(name, *counts[name], named, features))
    return ShownFeatures(
        scores.run,
        f"{counted(len(scores.mds), 'feature')} of the learner {scores.learner} over {counted(scores.pairs, 'pair')}",
        _histogram(scores),
        tuple(classes),
        _figures(scores),
        has_names,
        tuple(_remarks(scores)),
    )


def _has_mds(scores: FeatureScores) -> bool:
    return bool(np.isfinite(scores.mds).any())


def _histogram(scores: FeatureScores) -> tuple[Bin, ...]:
    enough = scores.active >= LEAST_PAIRS
    counts, shuffled = _counted(scores.mds[enough]), _counted(scores.shuffled_mds[enough])
    if not counts.any():
        return ()
    most = max(int(counts.max()), int(shuffled.max()))
    return tuple(
        Bin(
            f"{place / _BINS:.2f} to {(place + 1) / _BINS:.2f}",
            int(own),
            int(null),
            round(100 * own / most, 1),
            round(100 * null / most, 1),
        )
        for place, (own, null) in enumerate(zip(counts, shuffled, strict=True))
    )


def _counted(values: Float64[np.ndarray, " feature"]) -> Int64[np.ndarray, " bin"]:
    return np.histogram(values[np.isfinite(values)], _BINS, (0, 1))[0].astype(np.int64)


def _feature(scores: FeatureScores, samples: TopSamples, pictures: Mapping[int, int]) -> ShownFeature:
    feature = samples.feature
    low, high = scores.mds_interval[feature]
    name, cosine = (scores.names[feature][0] if scores.names and scores.names[feature] else None), "–"
    if name is not None and scores.name_cosines is not None:
        cosine = _number(float(scores.name_cosines[feature, 0]))
    doubtful = name is not None and scores.name_mixture_p is not None and scores.name_mixture_p[feature] > _LEVEL
    interval = f" ({low:.2f} to {high:.2f})" if math.isfinite(low) else ""
    return ShownFeature(
        feature,
        f"{_number(float(scores.mds[feature]))}{interval}",
        _number(float(scores.shuffled_mds[feature])),
        int(scores.active[feature]),
        name,
        cosine,
        bool(doubtful),
        tuple(FeatureShot(each.key, each.caption, each.code, pictures.get(each.image)) for each in samples.images),
        tuple(each.text for each in samples.captions[:_CAPTIONS]),
    )


def _figures(scores: FeatureScores) -> tuple[tuple[str, str], ...]:
    """What the dictionary reconstructs, how sparse it is, and how many features are dead."""
    names = {
        "image_r2": "R² of images",
        "text_r2": "R² of captions",
        "image_l0": "active features of an image",
        "text_l0": "active features of a caption",
        "dead": "features that are never active",
    }
    known = {name: scores.quality[name] for name in names if math.isfinite(scores.quality.get(name, math.nan))}
    return tuple((names[name], f"{value:.3g}") for name, value in known.items())


def _remarks(scores: FeatureScores) -> list[str]:
    remarks = []
    if scores.older is not None:
        remarks.append(f"The names are of an older {scores.older}: run features show --texts again.")
    if not scores.names:
        remarks.append("Features have no names: run features show --texts POOL.")
    chance = scores.name_chance
    if {"rotated_mean", "mixtures_mean"} <= chance.keys():
        remarks.append(
            f"Names are texts of {scores.name_pool}. By chance, the cosine of the nearest text is "
            f"{chance['rotated_mean']:.2f} in a pool without meaning, and {chance['mixtures_mean']:.2f} for random "
            f"mixtures of features. A name is in doubt (?) if more than {100 * _LEVEL:.0f} % of the mixtures are as "
            "near."
        )
    if _has_mds(scores):
        moved = _moved(scores)
        if moved is not None:
            remarks.append(
                f"Over features active in at least {LEAST_PAIRS} pairs, MDS moves by {moved:.2f} on average when "
                "captions are shuffled. Where it hardly moves, MDS says how often and how strongly each side is "
                "active, and nothing about which caption belongs to which image."
            )
    else:
        remarks.append("These features are of a space that texts are not in, so there is no MDS and no class.")
    return remarks


def _moved(scores: FeatureScores) -> float | None:
    moved = np.abs(scores.mds - scores.shuffled_mds)[scores.active >= LEAST_PAIRS]
    moved = moved[np.isfinite(moved)]
    return float(moved.mean()) if len(moved) else None


def _number(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.2f}"

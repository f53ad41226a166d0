"""The runs of feature scores that an address names, kept in memory, and what else a request says about features."""

from __future__ import annotations

import re
from contextlib import suppress

import numpy as np
from jaxtyping import Bool

from headspan.errors import StoreError
from headspan.features.saved import KIND, read_scores
from headspan.features.scores.result import CLASS_NAMES, FeatureScores
from headspan.head_names import head_name
from headspan.store.head_space import Head
from headspan.store.results import load_settings
from headspan.web.answers.features import FeatureRow
from headspan.web.asked import AskedStore
from headspan.web.refusals import Missing
from headspan.web.saved_runs import known_run, run_names

# Pictures of a feature in a list, and its captions that a search looks at.
_SHOWN_IMAGES, SEARCHED_CAPTIONS = 3, 3

_SIDES = {"image": "images", "text": "texts"}
_QUALITY = {"r2": "R²", "fvu": "FVU", "l0": "L0", "dead": "Dead share", "cosine": "Cosine"}


def asked_scores(asked: AskedStore, run: str | None) -> FeatureScores:
    """The scores of a run, by default of the shown one. Raises Missing if it is not there."""
    name = known_run(asked, KIND, run, no_run(asked)) or default_run(asked)
    return asked.keep(("features", name), lambda: read_scores(asked.store, name), bytes_of)


def default_run(asked: AskedStore) -> str:
    """The run that is shown if none is named: the first one that is of no heads, or else the first one."""
    of_heads = _heads_of_runs(asked)
    return next((name for name, heads in of_heads.items() if not heads), next(iter(of_heads)))


def runs_of_head(asked: AskedStore, head: Head) -> list[str]:
    """The names of the runs whose features are of this head's coordinates, alone or with others."""
    return [name for name, heads in _heads_of_runs(asked).items() if head in heads]


def no_run(asked: AskedStore) -> str:
    """What to do where a store has no run."""
    path = asked.store.path
    return (
        f"{asked.name}: has no scores of features: `headspan features train {path} --out run.features` learns features "
        f"of the pairs, and `headspan features score {path} --dictionary run.features` scores them."
    )


def asked_feature(asked: AskedStore, scores: FeatureScores, feature: str) -> int:
    """The number of a feature. Raises Missing if there is none of that number."""
    if not (feature.isascii() and feature.isdecimal() and len(feature) < 10 and int(feature) < len(scores.mds)):
        raise Missing(
            f"{asked.name}: the run {scores.run} has no feature {feature[:40]!r}; features go from 0 to "
            f"{len(scores.mds) - 1}"
        )
    return int(feature)


def bytes_of(scores: FeatureScores) -> int:
    """The memory of a run's arrays and names."""
    arrays = (getattr(scores, name) for name in scores.__slots__)
    names = sum(64 + len(text) for texts in scores.names for text in texts)
    return names + sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def class_name(number: int) -> str:
    """The name of a class."""
    return CLASS_NAMES[int(number)]


def first_name(scores: FeatureScores, feature: int) -> str | None:
    """The text nearest to a feature; None if features have no names."""
    texts = scores.names[feature] if scores.names else ()
    return texts[0] if texts else None


def feature_rows(asked: AskedStore, scores: FeatureScores, features: list[int]) -> list[FeatureRow]:
    """Some features as rows of a list, in this order."""
    captions = standing_captions(asked, scores, features)
    return [
        FeatureRow(
            feature=each,
            name=first_name(scores, each),
            name_cosine=None if scores.name_cosines is None or not scores.names else scores.name_cosines[each, 0],
            caption=captions[place],
            images=_rows(asked, scores.top_images[each, :_SHOWN_IMAGES]),
            image_active=scores.image_active[each],
            text_active=scores.text_active[each],
            active=scores.active[each],
            mds=scores.mds[each],
            mds_low=scores.mds_interval[each, 0],
            mds_high=scores.mds_interval[each, 1],
            shuffled_mds=scores.shuffled_mds[each],
            energy=scores.energy[each],
            energy_low=scores.energy_interval[each, 0],
            energy_high=scores.energy_interval[each, 1],
            shuffled_energy=scores.shuffled_energy[each],
            class_by_spread=class_name(scores.class_by_spread[each]),
            class_by_interval=class_name(scores.class_by_interval[each]),
            monosemanticity=scores.monosemanticity[each],
            cross_monosemanticity=scores.cross_monosemanticity[each],
            similarity=scores.similarity[each].tolist(),
        )
        for place, each in enumerate(features)
    ]


def standing_captions(asked: AskedStore, scores: FeatureScores, features: list[int]) -> list[str | None]:
    """The caption that stands for each feature: the one with the largest code, or else that of its first image."""
    firsts = np.array([_first(scores.top_captions[each], scores.top_images[each]) for each in features], np.int64)
    return captions_of(asked, firsts)


def _first(captions: np.ndarray, images: np.ndarray) -> int:
    """The first image index of two lists; -1 if both are empty."""
    return next((int(place[0]) for place in (captions, images) if len(place) and place[0] >= 0), -1)


def captions_of(asked: AskedStore, images: np.ndarray) -> list[str | None]:
    """The captions of images by their indices; None where there is no image, or it has none."""
    there = are_shown(asked, images)
    if not there.any():
        return [None] * len(images)
    once, places = np.unique(images[there], return_inverse=True)
    texts = asked.store.samples(once, ["caption"])["caption"].to_pylist()
    found: list[str | None] = [None] * len(images)
    for place, text in zip(np.flatnonzero(there).tolist(), places.tolist(), strict=True):
        found[place] = texts[text]
    return found


def are_shown(asked: AskedStore, images: np.ndarray) -> Bool[np.ndarray, " image"]:
    """Which images of a list the store shows; lists end with -1 where there are fewer."""
    return (images >= 0) & (images < asked.store.images)


def _rows(asked: AskedStore, images: np.ndarray) -> list[int]:
    """The rows of the images that the store shows."""
    found: list[int] = asked.store.rows[images[are_shown(asked, images)]].tolist()
    return found


def _heads_of_runs(asked: AskedStore) -> dict[str, list[Head]]:
    """The heads of each run, from its settings; none of a run of the embedding, or of one that cannot be read."""
    return asked.keep("heads of features", lambda: {name: _heads(asked, name) for name in run_names(asked, KIND)})


def _heads(asked: AskedStore, run: str) -> list[Head]:
    with suppress(StoreError, LookupError, TypeError, ValueError):
        space = load_settings(asked.store, KIND, run)["space"]
        return [(int(layer), int(head)) for layer, head in space["heads"]]
    return []


def in_words(quality: str) -> str:
    """The name of a score of the whole dictionary, such as `image_r2` or `win_rate_20_p`, for people."""
    side, _, what = quality.partition("_")
    if side in _SIDES:
        return f"{in_words(what)} of {_SIDES[side]}"
    if found := re.fullmatch(r"win_rate_([0-9]+)(_p)?", quality):
        return f"{'p of ' if found[2] else ''}WinRate, {found[1]} images"
    return _QUALITY.get(quality, re.sub(r" r([0-9]+)$", r" R@\1", quality.replace("_", " ").capitalize()))


def space_words(scores: FeatureScores) -> str:
    """What the features are of, in words."""
    if scores.space is None or not scores.space.heads:
        return "the embedding" if scores.space is None else f"the {scores.space.kind}"
    return ", ".join(head_name(*head) for head in scores.space.heads[:8]) + (
        f" and {len(scores.space.heads) - 8} more" if len(scores.space.heads) > 8 else ""
    )

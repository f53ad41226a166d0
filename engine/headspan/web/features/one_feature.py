"""What one feature lies in: the heads along its direction, and the features whose directions are nearest."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from headspan.errors import HeadspanError
from headspan.explore.heads.text_shares import text_shares
from headspan.features.pairs.space import EMBEDDING
from headspan.features.scores.result import FeatureScores
from headspan.head_names import head_name
from headspan.web.answers.common import Hit
from headspan.web.answers.features import FeatureHead, LikeFeature
from headspan.web.asked import AskedStore
from headspan.web.features.runs import are_shown, class_name, first_name, standing_captions

VARIANCE, LENGTH = "variance", "length"
_ALIKE = 12
# Images and captions of a feature that are shown; a run may have more.
_SHOWN = 30


def top_hits(asked: AskedStore, images: np.ndarray, codes: Float32[np.ndarray, " top"]) -> list[Hit]:
    """Images with the largest codes as hits."""
    there = are_shown(asked, images[:_SHOWN])
    return asked.hits(images[:_SHOWN][there], codes[:_SHOWN][there])


def heads_along(asked: AskedStore, scores: FeatureScores, feature: int) -> tuple[str, list[FeatureHead], list[str]]:
    """Which share is given of each head, the heads by falling share, and why there are none."""
    direction = scores.directions[feature].astype(np.float64)
    space = scores.space
    if space is not None and space.heads:
        lengths = (direction.reshape(len(space.heads), -1) ** 2).sum(axis=1)
        shares = lengths / lengths.sum() if lengths.any() else np.full(len(lengths), np.nan)
        found = [_head(asked, head, float(share), None) for head, share in zip(space.heads, shares, strict=True)]
        return LENGTH, sorted(found, key=lambda head: -(head.share or 0)), []
    if space is not None and space.kind != EMBEDDING:
        return VARIANCE, [], [f"These features are of {space.kind}, which heads have no share of."]
    try:
        along = text_shares(asked.store, direction)
    except HeadspanError as error:
        return VARIANCE, [], [f"{error}."]
    return (
        VARIANCE,
        [
            _head(asked, head, along.of(*head), float(along.random[along.layers.index(head[0]), head[1]]))
            for head in along.ranking()
        ],
        [],
    )


def features_alike(asked: AskedStore, scores: FeatureScores, feature: int) -> list[LikeFeature]:
    """The features whose directions have the largest cosines with this one's."""
    lengths = asked.keep(
        ("lengths of features", scores.run), lambda: np.linalg.norm(scores.directions, axis=1), lambda kept: kept.nbytes
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = scores.directions @ scores.directions[feature] / (lengths * lengths[feature])
    cosines[feature] = np.nan
    order = np.argsort(-cosines, kind="stable")[:_ALIKE]
    order = order[np.isfinite(cosines[order])]
    captions = standing_captions(asked, scores, order.tolist())
    return [
        LikeFeature(
            feature=each,
            name=first_name(scores, each),
            caption=captions[place],
            class_by_spread=class_name(scores.class_by_spread[each]),
            class_by_interval=class_name(scores.class_by_interval[each]),
            cosine=cosines[each],
        )
        for place, each in enumerate(order.tolist())
    ]


def _head(asked: AskedStore, head: tuple[int, int], share: float, random: float | None) -> FeatureHead:
    return FeatureHead(
        layer=head[0],
        head=head[1],
        name=head_name(*head),
        label=asked.results().label(head),
        share=share,
        random=random,
    )

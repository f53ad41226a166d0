"""Sparse features of a store's pairs: a run of scores, its features as a list, and one feature."""

from __future__ import annotations

from math import isfinite
from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from headspan.features.saved import KIND
from headspan.web.answers.common import NearText
from headspan.web.answers.features import FeatureAnswer, FeatureList, Features, FeatureUses
from headspan.web.answers.stores import Fact
from headspan.web.asked import Asked, AskedStore, named
from headspan.web.failures import RESPONSES
from headspan.web.features.histograms import class_counts, histograms
from headspan.web.features.lists import Asking, Class, Measure, Rule, Sort, chosen_features
from headspan.web.features.one_feature import features_alike, heads_along, top_hits
from headspan.web.features.runs import (
    asked_feature,
    asked_scores,
    feature_rows,
    in_words,
    no_run,
    space_words,
)
from headspan.web.features.uses import no_uses, saved_uses
from headspan.web.saved_runs import run_names

router = APIRouter(prefix="/api/stores/{store}/features", tags=["features"], responses=RESPONSES)
Run = Annotated[
    str | None, Query(max_length=100, description="A run of headspan features score; by default the first one")
]
Score = Annotated[float | None, Query(ge=0, le=1, allow_inf_nan=False)]


@router.get("", response_model=Features)
def features(asked: Asked, run: Run = None) -> Response:
    """A run of scores: histograms beside those with captions shuffled, counts of classes, and facts."""
    return asked.answer(("feature run", run), lambda: _features(asked, run))


@router.get("/list", response_model=FeatureList)
def feature_list(
    asked: Asked,
    run: Run = None,
    words: Annotated[str, Query(max_length=200, description="Words of names or captions, or a number")] = "",
    classes: Annotated[
        list[Class] | None, Query(alias="class", max_length=4, description="Give it once for each class")
    ] = None,
    rule: Rule = Rule.SPREAD,
    measure: Measure = Measure.MDS,
    low: Score = None,
    high: Score = None,
    image: Annotated[
        str | None, Query(max_length=40, description="The row of an image that the features are most active in")
    ] = None,
    sort: Sort = Sort.FEATURE,
    descending: bool = False,
    offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    limit: Annotated[int, Query(ge=0, le=1000)] = 50,
) -> Response:
    """One page of the features that pass a filter, in an order."""
    index = None if image is None else asked.index_of(image)
    asking = Asking(tuple(dict.fromkeys(classes or ())), rule, words.strip(), measure, low, high, index)
    key = ("feature list", run, asking, sort, descending, offset, limit)
    return asked.answer(key, lambda: _list(asked, run, asking, sort, descending, offset, limit))


@router.get("/uses", response_model=FeatureUses)
def feature_uses(asked: Asked, run: Run = None) -> Response:
    """What the features of a run of scores were used for: saved probes, attacks and edits, with their controls."""
    return asked.answer(("feature uses", run), lambda: _uses(asked, run))


@router.get("/{feature}", response_model=FeatureAnswer)
def feature_answer(
    asked: Asked,
    feature: Annotated[str, Path(max_length=40, description="The number of a feature")],
    run: Run = None,
) -> Response:
    """One feature: its scores, the images and captions with its largest codes, texts, heads and features near it."""
    number = asked_feature(asked, asked_scores(asked, run), feature)
    return asked.answer(("feature", number, run), lambda: _feature(asked, run, number))


def _features(asked: AskedStore, run: str | None) -> Features:
    names = run_names(asked, KIND)
    if not names and run is None:
        return Features(
            store=asked.name,
            run=None,
            runs=[],
            heads=[],
            features=0,
            pairs=0,
            has_texts=False,
            spread=(None, None),
            classes={},
            histograms=[],
            similarity_sizes=[],
            named=False,
            facts=[],
            notices=[no_run(asked)],
        )
    scores = asked_scores(asked, run)
    notices = []
    if not scores.names:
        notices.append(
            f"Features have no names: `headspan features show {asked.store.path} --run {scores.run} --texts general` "
            "names them by the texts of a pool. Until then, the caption with the largest code stands for a feature."
        )
    elif scores.older:
        notices.append(
            f"The names are of an older {scores.older}, which was replaced or removed since; name them again."
        )
    return Features(
        store=asked.name,
        run=scores.run,
        runs=names,
        heads=named(scores.space.heads if scores.space is not None else ()),
        features=len(scores.mds),
        pairs=scores.pairs,
        has_texts=bool(scores.text_active.any()),
        spread=(scores.quality.get("mds_low"), scores.quality.get("mds_high")),
        classes=class_counts(scores),
        histograms=histograms(scores),
        similarity_sizes=list(scores.similarity_sizes),
        named=bool(scores.names),
        facts=[
            Fact(name="Learner", value=scores.learner),
            Fact(name="Dictionary", value=scores.dictionary),
            Fact(name="Features of", value=space_words(scores)),
            *(
                Fact(name=in_words(name), value=f"{value:.4g}")
                for name, value in scores.quality.items()
                if isfinite(value) and name not in ("mds_low", "mds_high")
            ),
        ],
        notices=notices,
    )


def _list(
    asked: AskedStore, run: str | None, asking: Asking, sort: Sort, descending: bool, offset: int, limit: int
) -> FeatureList:
    scores = asked_scores(asked, run)
    chosen = chosen_features(asked, scores, asking, sort, descending)
    page = chosen[offset : offset + limit].tolist()
    return FeatureList(
        store=asked.name,
        run=scores.run,
        total=len(chosen),
        offset=offset,
        features=feature_rows(asked, scores, page),
    )


def _uses(asked: AskedStore, run: str | None) -> FeatureUses:
    scores = asked_scores(asked, run)
    uses = saved_uses(asked, scores.run)
    return FeatureUses(store=asked.name, run=scores.run, uses=uses, notices=[] if uses else no_uses(asked, scores))


def _feature(asked: AskedStore, run: str | None, feature: int) -> FeatureAnswer:
    scores = asked_scores(asked, run)
    share, heads, notices = heads_along(asked, scores, feature)
    texts = []
    if scores.names and scores.name_cosines is not None:
        texts = [
            NearText(text=text, cosine=cosine)
            for text, cosine in zip(scores.names[feature], scores.name_cosines[feature], strict=False)
        ]
    return FeatureAnswer(
        store=asked.name,
        run=scores.run,
        features=len(scores.mds),
        has_texts=bool(scores.text_active.any()),
        pairs=scores.pairs,
        row=feature_rows(asked, scores, [feature])[0],
        image_mean=scores.image_mean[feature],
        text_mean=scores.text_mean[feature],
        similarity_sizes=list(scores.similarity_sizes),
        images=top_hits(asked, scores.top_images[feature], scores.top_image_codes[feature]),
        captions=top_hits(asked, scores.top_captions[feature], scores.top_caption_codes[feature]),
        texts=texts,
        pool=scores.name_pool,
        name_p=None if scores.name_p is None else scores.name_p[feature],
        name_mixture_p=None if scores.name_mixture_p is None else scores.name_mixture_p[feature],
        heads=heads,
        share=share,
        alike=features_alike(asked, scores, feature),
        notices=notices,
    )

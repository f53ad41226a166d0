"""One head: its texts with every vote, its spectrum, the heads like it, and the images at both ends of a text."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query, Response

from headspan.errors import SettingsError
from headspan.explore.heads.alike import covariance_overlaps, covariance_roots
from headspan.explore.nearest.neighbours import both_ends
from headspan.head_names import head_name
from headspan.spans.result import HeadSpans
from headspan.store.head_space import Head, stored_heads
from headspan.texts.pool import Pool, read_pool
from headspan.texts.stored import largest_pool
from headspan.web.answers.heads import Direction, Extremes, HeadAnswer, LikeHead, SpanText, Spectrum
from headspan.web.asked import Asked, AskedStore, named
from headspan.web.described.runs import runs_rewarded_through
from headspan.web.failures import RESPONSES
from headspan.web.features.runs import runs_of_head
from headspan.web.head_results import HeadResults
from headspan.web.planes import space_of
from headspan.web.routes.stores import RunName, head_summaries

router = APIRouter(prefix="/api/stores/{store}/heads/{head}", tags=["heads"], responses=RESPONSES)
HeadPath = Annotated[str, Path(max_length=40, description="A head such as L22.H13")]
Text = Annotated[str, Query(min_length=1, max_length=2000)]
_ALIKE = 12


@router.get("", response_model=HeadAnswer)
def head_answer(asked: Asked, head: HeadPath, run: RunName = None) -> Response:
    """One head: its texts with chance and votes, the shares of its principal directions, and the heads like it."""
    found = asked.head(head)
    return asked.answer(("head", found, run), lambda: _head_answer(asked, found, run))


@router.get("/spectrum", response_model=Spectrum)
def spectrum_answer(asked: Asked, head: HeadPath) -> Response:
    """The singular directions of what a head's weights can write, named by texts. Needs the model."""
    found = asked.head(head)
    return asked.answer(("spectrum", found), lambda: _spectrum(asked, found))


@router.get("/extremes", response_model=Extremes)
def extremes(
    asked: Asked, head: HeadPath, text: Text | None = None, count: Annotated[int, Query(ge=1, le=100)] = 12
) -> Response:
    """The images that score highest and lowest along a text through a head; by default along the head's first text."""
    found = asked.head(head)
    said = text if text is not None else _first_text(asked, found)
    return asked.answer(("extremes", found, said, count), lambda: _extremes(asked, found, said, count))


def _head_answer(asked: AskedStore, found: Head, run: str | None) -> HeadAnswer:
    results = asked.results(run)
    summary = next(each for each in head_summaries(asked, run) if (each.layer, each.head) == found)
    notices = list(results.notices)
    if results.run is not None and not results.describes(found):
        notices.append(f"The run {results.run} does not describe {head_name(*found)}.")
    spectrum: list[float | None] = []
    try:
        spectrum = space_of(asked, found).shares.tolist()
    except SettingsError as error:
        notices.append(f"{error}.")
    return HeadAnswer(
        store=asked.name,
        summary=summary,
        spans=_span_texts(results, found),
        spectrum=spectrum,
        alike=_alike(asked, found, results) if spectrum else [],
        feature_runs=runs_of_head(asked, found),
        description_runs=runs_rewarded_through(asked, found),
        notices=notices,
    )


def _extremes(asked: AskedStore, found: Head, said: str, count: int) -> Extremes:
    (vector,), cut = asked.vectors([said])
    top, bottom = both_ends(asked.store, vector, [found], count, asked.explorer.searches)
    return Extremes(
        store=asked.name,
        head=named([found])[0],
        text=said,
        cut=cut.get(said),
        top=asked.hits(top.images, top.scores),
        bottom=asked.hits(bottom.images, bottom.scores),
    )


def _first_text(asked: AskedStore, head: Head) -> str:
    results = asked.results()
    texts = results.spans.texts(*head, 1) if results.spans is not None and results.describes(head) else []
    if not texts:
        raise SettingsError(f"{asked.name}: {head_name(*head)} has no texts; give a text")
    return texts[0]


def _span_texts(results: HeadResults, head: Head) -> list[SpanText]:
    spans = results.spans
    if spans is None or not results.describes(head):
        return []
    votes = None if results.votes is None else results.votes.head(*head)
    consistent = _consistent(results, head)
    found, before = [], 0.0
    for number, place in enumerate(spans.places(*head)):
        explained = spans.explained_by(*head, number + 1)
        voted = votes.texts[number].votes if votes is not None and number < len(votes.texts) else ()
        found.append(
            SpanText(
                text=spans.pool.texts[place],
                concept=None if spans.pool.concepts is None else spans.pool.concepts[place],
                explained=explained,
                chance=_chance(spans, head, number + 1),
                added=explained - before,
                consistent=consistent[number] if number < len(consistent) else None,
                votes={vote.judge: vote.fits for vote in voted},
            )
        )
        before = explained
    return found


def _consistent(results: HeadResults, head: Head) -> list[bool]:
    """Whether each of the first texts fits the label; empty if nobody voted or there is no label."""
    if results.label(head) is None or results.labels is None:
        return []
    votes = results.labels.consistent if results.found is None else results.found.consistent
    return [] if votes is None else votes[results.labels.layers.index(head[0]), head[1]].tolist()


def _chance(spans: HeadSpans, head: Head, count: int) -> float | None:
    return None if spans.null is None else spans.chance(*head, count).mean


def _alike(asked: AskedStore, head: Head, results: HeadResults) -> list[LikeHead]:
    """The heads whose covariances overlap most with this one's."""
    roots = asked.keep("covariance roots", lambda: covariance_roots(asked.store), lambda found: int(found.nbytes))
    overlaps = asked.keep(("overlaps", head), lambda: covariance_overlaps(asked.store, head, roots))
    heads, flat = stored_heads(asked.store), overlaps.ravel()
    order = [place for place in np.argsort(-flat, kind="stable") if heads[place] != head and np.isfinite(flat[place])]
    return [
        LikeHead(
            layer=heads[place][0],
            head=heads[place][1],
            name=head_name(*heads[place]),
            label=results.label(heads[place]),
            overlap=flat[place],
        )
        for place in order[:_ALIKE]
    ]


def _spectrum(asked: AskedStore, head: Head) -> Spectrum:
    results = asked.results()
    pool = None if results.spans is None else results.spans.pool.name
    found = asked.explorer.model.spectrum(asked.store, head, pool)
    directions = []
    for place, value in enumerate(found.singular_values[0].tolist()):
        texts, weights = [], []
        for side, sign in ((0, 1), (1, -1)):
            for index, weight in zip(
                *(part[0, place, side].tolist() for part in (found.indices, found.weights)), strict=True
            ):
                if index >= 0:
                    texts.append(found.pool.texts[index])
                    weights.append(sign * weight)
        directions.append(Direction(strength=value, variance_share=found.share[0, place], texts=texts, weights=weights))
    return Spectrum(store=asked.name, head=named([head])[0], directions=directions)


def pool_of(asked: AskedStore) -> Pool:
    """The texts that describe what has none: those of the shown run, else the largest stored pool, else `general`."""
    results = asked.results()
    if results.spans is not None:
        return results.spans.pool
    return largest_pool(asked.store) or read_pool("general")

"""Some of a store's images: what they can be chosen by, which they are, and what the heads say about them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Query, Response

from headspan.errors import SettingsError
from headspan.explore.beside_store import BesideStore, beside_store
from headspan.head_names import head_name
from headspan.spans.nulls import DRAWS
from headspan.spans.over_store import textspan
from headspan.store.selection import Selection
from headspan.texts.stored import find_vectors
from headspan.web.answers.selections import CaptionWord, Described, Facets, Listing, SelectedHead
from headspan.web.asked import Asked, AskedStore
from headspan.web.failures import RESPONSES
from headspan.web.filtered import filtered_rows
from headspan.web.routes.heads import pool_of
from headspan.web.samples.columns import read_columns
from headspan.web.samples.filters import Filter, parse_polygon, unique_words
from headspan.web.samples.words import frequent_words

router = APIRouter(prefix="/api/stores/{store}", tags=["selections"], responses=RESPONSES)
# Of more images, an even sample is described, so that an answer takes seconds.
_DESCRIBED = 10_000
_SHOWN_CLASSES = 1000
_MOST = 100


class Order(StrEnum):
    """The order of a listing."""

    ROW = "row"
    KEY = "key"


async def asked_filter(
    words: Annotated[str | None, Query(max_length=1000, description="Words of captions, with commas between")] = None,
    any_word: bool = False,
    classes: Annotated[
        str | None, Query(max_length=1000, description="Numbers of classes, with commas between")
    ] = None,
    keys: Annotated[
        list[str] | None, Query(max_length=1000, description="Keys; give the parameter once for each")
    ] = None,
    column: Annotated[str | None, Query(max_length=200, description="A column of the metadata")] = None,
    value: Annotated[str | None, Query(max_length=1000, description="Its value")] = None,
    plane: Annotated[str | None, Query(max_length=40, description="A head such as L22.H13, or `embedding`")] = None,
    polygon: Annotated[str | None, Query(max_length=20_000, description="Corners in the plane as x,y;x,y;x,y")] = None,
) -> Filter:
    """What the parameters of a request ask of images."""
    return Filter(
        words=unique_words(words.split(",")) if words else (),
        any_word=any_word,
        classes=_numbers(classes) if classes else (),
        keys=tuple(dict.fromkeys(keys or ())),
        column=column or None,
        value=value if column else None,
        plane=plane or None,
        polygon=parse_polygon(polygon) if polygon else (),
    )


AskedFilter = Annotated[Filter, Depends(asked_filter)]


@router.get("/facets", response_model=Facets)
def facets(asked: Asked) -> Response:
    """What images can be chosen by: classes, frequent words of captions, columns of metadata."""
    return asked.answer("facets", lambda: _facets(asked))


@router.get("/images", response_model=Listing)
def listing(
    asked: Asked,
    filtering: AskedFilter,
    order: Order = Order.ROW,
    offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
    limit: Annotated[int, Query(ge=0, le=250)] = 60,
) -> Response:
    """One page of the images that pass a filter."""
    return asked.answer(
        ("images", filtering, order, offset, limit), lambda: _listing(asked, filtering, order, offset, limit)
    )


def _listing(asked: AskedStore, filtering: Filter, order: Order, offset: int, limit: int) -> Listing:
    rows = filtered_rows(asked, filtering, order is Order.KEY)
    page = rows[offset : offset + limit]
    return Listing(
        store=asked.name,
        total=len(rows),
        offset=offset,
        images=asked.hits(asked.store.images_of_rows(page)),
        words=filtering.in_words(asked.class_names),
    )


@router.get("/selection/heads", response_model=Described)
def described(
    asked: Asked,
    filtering: AskedFilter,
    texts_per_head: Annotated[int, Query(ge=1, le=20)] = 5,
    draws: Annotated[int, Query(ge=0, le=DRAWS)] = 0,
) -> Response:
    """What the heads say about the images that pass a filter: those first that differ most from the whole store."""
    return asked.answer(
        ("described", filtering, texts_per_head, draws), lambda: _described(asked, filtering, texts_per_head, draws)
    )


def _facets(asked: AskedStore) -> Facets:
    classes, columns = asked.classes(), read_columns(asked.store)
    words, captions = frequent_words(asked.store)
    order = np.argsort(-classes.counts, kind="stable")[:_SHOWN_CLASSES]
    return Facets(
        store=asked.name,
        classes={f"{classes.numbers[place]}": int(classes.counts[place]) for place in order},
        words=[CaptionWord(word=word, images=count) for word, count in words.items()],
        columns=list(columns),
        class_names=classes.names,
        values=columns,
        captions_counted=captions,
    )


def _described(asked: AskedStore, filtering: Filter, texts_per_head: int, draws: int) -> Described:
    store, pool = asked.store, pool_of(asked)
    if find_vectors(store, pool) is None:
        raise SettingsError(
            f"{asked.name}: the store keeps no texts with vectors, which describe heads; run headspan textspan"
        )
    rows, words, notices = filtered_rows(asked, filtering), filtering.in_words(asked.class_names), []
    if not len(rows):
        raise SettingsError(f"{asked.name}: no image passes this filter, so there is nothing to describe; ask for less")
    total = len(rows)
    if total > _DESCRIBED:
        rows = rows[np.linspace(0, total - 1, _DESCRIBED).astype(np.int64)]
        notices.append(f"{_DESCRIBED:,} of the {total:,} images are described, taken evenly over their rows.")
    texts_per_head = min(texts_per_head, len(pool.texts))
    spans = textspan(store, pool, texts_per_head, draws=draws, images=Selection(rows.astype(np.int64), words))
    if few := spans.too_few_images():
        notices.append(f"{few[0].upper()}{few[1:]}.")
    found = beside_store(store, spans)
    return Described(
        store=asked.name, words=words, images=total, heads=_selected(asked, found)[:_MOST], notices=notices
    )


def _selected(asked: AskedStore, found: BesideStore) -> list[SelectedHead]:
    results, ratio = asked.results(), found.ratio
    return [
        SelectedHead(
            layer=head[0],
            head=head[1],
            name=head_name(*head),
            label=results.label(head),
            texts=found.spans.texts(*head),
            variance_share=found.variance_share[place],
            store_variance_share=found.store_variance_share[place],
            ratio=ratio[place],
            shift=found.shift[place],
            towards=found.towards[place],
        )
        for place, head in enumerate(found.heads)
    ]


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        found = ()
    if not found or any(abs(number) >= 1 << 63 for number in found):
        raise SettingsError(f"classes {text[:40]!r}: are no numbers of classes; give 3,7, for example")
    return found

"""Two stores side by side, of different models on the same images: labels, scores, and neighbours of one image."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from headspan.errors import SettingsError
from headspan.web.answers.comparisons import ComparedLabel, Comparison, SharedNeighbours
from headspan.web.asked import EMBEDDING, AskedStore, Missing, asked_store, named
from headspan.web.compared import Compared, different_methods, heads_by_label
from headspan.web.failures import RESPONSES
from headspan.web.routes.neighbours import Count, ThroughText, neighbours_of_image
from headspan.web.samples.shared_keys import shared_keys
from headspan.web.through import asked_through

router = APIRouter(prefix="/api/compare", tags=["compare"], responses=RESPONSES)

StoreName = Annotated[str, Query(max_length=200)]


@router.get("")
def comparison(request: Request, a: StoreName, b: StoreName) -> Comparison:
    """The labels of two stores side by side, how many heads have each CCS, and how many images the stores share."""
    pair = asked_store(request, a), asked_store(request, b)
    one, other = (_compared(asked) for asked in pair)
    counts = one.score_counts, other.score_counts
    return Comparison(
        stores=(a, b),
        shared_images=_shared_images(*pair),
        labels=[
            ComparedLabel(
                label=label,
                heads=(named(first), named(second)),
                ccs=(one.score(first), other.score(second)),
                variance_share=(one.share(first), other.share(second)),
            )
            for label, (first, second) in heads_by_label(one, other).items()
        ],
        ccs_counts=counts if any(counts) else None,
        ccs_counts_by_chance=(one.score_counts_by_chance, other.score_counts_by_chance) if any(counts) else None,
        notices=[*one.notices, *other.notices, *different_methods(one, other)],
    )


@router.get("/neighbours")
def compared_neighbours(
    request: Request,
    a: StoreName,
    b: StoreName,
    key: Annotated[str, Query(max_length=4000)],
    through_a: ThroughText = EMBEDDING,
    through_b: ThroughText = EMBEDDING,
    count: Count = 12,
) -> SharedNeighbours:
    """The neighbours of the image of one key in two stores, and the keys that are among both."""
    pair = asked_store(request, a), asked_store(request, b)
    images = [_image_of_key(asked, key) for asked in pair]
    found = [
        neighbours_of_image(asked, asked.image(str(asked.store.rows[image])), asked_through(asked, through), count)
        for asked, image, through in zip(pair, images, (through_a, through_b), strict=True)
    ]
    keys = [[hit.key for hit in each.hits] for each in found]
    others = [asked.store.images - 1 for asked in pair]
    # Of the images that both show, apart from the one of the query.
    shared = max(0, _shared_images(*pair) - 1)
    drawn = [len(each) / of if of else 0.0 for each, of in zip(keys, others, strict=True)]
    return SharedNeighbours(
        key=key,
        rows=(int(pair[0].store.rows[images[0]]), int(pair[1].store.rows[images[1]])),
        through=(through_a, through_b),
        neighbours=(found[0], found[1]),
        shared=[each for each in dict.fromkeys(keys[0]) if each in set(keys[1])],
        chance=shared * drawn[0] * drawn[1],
    )


def _compared(asked: AskedStore) -> Compared:
    return asked.keep("compared", lambda: Compared.of(asked.name, asked.store, asked.results()))


def _shared_images(one: AskedStore, other: AskedStore) -> int:
    """The number of keys that both show, counted once for each state of both."""
    of = "shared keys", other.name, one.explorer.stores.version(other.name)
    return one.keep(of, lambda: shared_keys(one.store, other.store))


def _image_of_key(asked: AskedStore, key: str) -> int:
    try:
        return asked.store.image_of_key(key)
    except SettingsError as error:
        raise Missing(str(error)) from error

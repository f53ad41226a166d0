"""What changes if heads are mean-ablated: one image's zero-shot answers and neighbours, and the store's accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query
from jaxtyping import Int64

from headspan.errors import counted
from headspan.explore.nearest.neighbours import ablated_vector
from headspan.explore.query.query_image import unit_embedding
from headspan.tasks.texts_as_classes import NamedClasses, class_values, named_classes
from headspan.tasks.truths import UNKNOWN
from headspan.web.answers.what_if import Accuracy, WhatIf
from headspan.web.asked import EMBEDDING, Asked, AskedStore, named
from headspan.web.asked_texts import SomeTexts, Texts, asked_texts
from headspan.web.failures import RESPONSES
from headspan.web.routes.images import ImageName
from headspan.web.routes.neighbours import Count, WithoutText, neighbours_of_image
from headspan.web.through import asked_through, removed_heads
from headspan.web.zero_shot import zero_shot

router = APIRouter(prefix="/api/stores/{store}/what-if", tags=["what if"], responses=RESPONSES)

# Images whose classes are compared, and names of classes that a notice lists.
_MOST_IMAGES, _SHOWN = 10_000, 8


@router.get("/accuracy")
def accuracy(
    asked: Asked,
    text: Texts,
    without: WithoutText = "",
    column: Annotated[
        str | None, Query(max_length=200, description="A column of the metadata whose values are the classes.")
    ] = None,
) -> Accuracy:
    """Zero-shot accuracy with all heads, and with the contributions of some at their means.

    A text belongs to the class whose name it contains, or, if classes have numbers only, to the class of its place.
    Images of classes that no text names are left out. At most 10,000 images are classified.
    """
    removed, texts = removed_heads(asked, without), asked_texts(asked, text)
    images, values = _looked_at(asked, column)
    classes = named_classes(texts.texts, values)
    truths = classes.numbers(values)
    known = np.flatnonzero(truths != UNKNOWN)
    before = after = chance = None
    if len(known):
        vectors, truth = classes.vectors(texts.units), truths[known]
        # Imported here, since the package of studies takes long and no other screen needs it.
        from headspan.prune.direct.ablation import ablated_products, unit_embeddings

        units = asked.keep("looked at", lambda: unit_embeddings(asked.store, images), lambda found: found.nbytes)
        whole = (units @ vectors.T)[known]
        left = ablated_products(asked.store, whole, vectors, removed, images[known])
        before, after = (float(np.mean(each.argmax(axis=1) == truth)) for each in (whole, left))
        chance = float(np.bincount(truth).max() / len(truth))
    return Accuracy(
        store=asked.name,
        classes={
            name: [texts.texts[place] for place in places]
            for name, places in zip(classes.names, classes.texts, strict=True)
        },
        column=column,
        without=named(removed),
        images=len(known),
        looked_at=len(images),
        before=before,
        after=after,
        chance=chance,
        notices=[*texts.notices, *_notices(asked, texts.texts, values, classes, column)],
    )


@router.get("/{image}")
def what_if(
    asked: Asked, image: ImageName, text: SomeTexts = None, without: WithoutText = "", count: Count = 12
) -> WhatIf:
    """An image's answers with all heads, and with the contributions of some at their means, in all images.

    Embeddings are divided by their original length and not normalised again.
    """
    removed = removed_heads(asked, without)
    query, texts = asked.image(image), asked_texts(asked, text or [])
    before, after = unit_embedding(query), ablated_vector(asked.store, query, removed)
    with ThreadPoolExecutor(1) as beside:
        # Two searches, which two processes may do at once.
        left = beside.submit(neighbours_of_image, asked, query, asked_through(asked, EMBEDDING, without), count)
        whole = neighbours_of_image(asked, query, asked_through(asked, EMBEDDING), count)
    return WhatIf(
        store=asked.name,
        id=image,
        without=named(removed),
        before=zero_shot(texts.texts, before @ texts.units.T),
        after=zero_shot(texts.texts, after @ texts.units.T),
        neighbours_before=whole,
        neighbours_after=left.result(),
        embedding_cosine=float(before @ after / np.linalg.norm(after)),
        notices=texts.notices,
    )


def _looked_at(asked: AskedStore, column: str | None) -> tuple[Int64[np.ndarray, " some"], list[str | None]]:
    """At most 10,000 images, evenly spaced, and the class of each in words."""

    def read() -> tuple[Int64[np.ndarray, " some"], list[str | None]]:
        count = min(asked.store.images, _MOST_IMAGES)
        images = np.unique(np.linspace(0, max(0, asked.store.images - 1), count).astype(np.int64))
        return images, class_values(asked.store, images, column)

    return asked.keep(("classes", column), read)


def _notices(
    asked: AskedStore,
    texts: Sequence[str],
    values: Sequence[str | None],
    classes: NamedClasses,
    column: str | None,
) -> list[str]:
    known = sorted({value for value in values if value is not None})
    found = []
    if not known:
        where = "no image has a class" if column is None else f"no image's metadata has a value of {column!r}"
        found.append(f"{where}, so there is no accuracy; name a column of the metadata with column=")
    elif not classes.names:
        some = ", ".join(known[:_SHOWN]) + (", …" if len(known) > _SHOWN else "")
        found.append(f"no text contains the name of a class, so there is no accuracy; the classes are: {some}")
    elif unused := len(texts) - sum(map(len, classes.texts)):
        found.append(f"{counted(unused, 'text')} that {'names' if unused == 1 else 'name'} no class left out")
    if asked.store.images > _MOST_IMAGES:
        found.append(f"over {_MOST_IMAGES:,} of {asked.store.images:,} images, evenly spaced")
    return found

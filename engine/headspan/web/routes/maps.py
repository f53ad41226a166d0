"""Maps of texts over one image: where heads see a text, and where they see one text rather than another."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query

from headspan.explore.maps.segments import segment
from headspan.store.head_space import stored_heads
from headspan.web.answers.images import Map, Maps
from headspan.web.asked import ALL_HEADS, Asked, named
from headspan.web.asked_texts import Text, Texts, asked_texts
from headspan.web.failures import RESPONSES
from headspan.web.routes.images import ImageName
from headspan.web.state.uploads import PREFIX
from headspan.web.through import asked_through

router = APIRouter(prefix="/api/stores/{store}/images/{image}", tags=["images"], responses=RESPONSES)

Through = Annotated[str, Query(max_length=4000, description="all, L3.H2,L3.H4, label:NAME or random:NAME:SEED.")]
Without = Annotated[str, Query(max_length=4000, description="Heads to leave out, as in L3.H2,L3.H4.")]


@router.get("/maps")
def image_maps(
    asked: Asked,
    image: ImageName,
    text: Texts,
    against: Text | None = None,
    through: Through = ALL_HEADS,
    without: Without = "",
) -> Maps:
    """A map for each text: what each patch adds to its cosine through the heads; minus that of the text `against`.

    A store that holds patches answers for its images; for others the model computes them.
    """
    chosen = asked_through(asked, through, without)
    heads = chosen.heads
    if heads is None:
        # Patches are known of heads only.
        heads = [head for head in stored_heads(asked.store) if head not in set(chosen.ablated)]
    words = dict.fromkeys(text)
    texts = asked_texts(asked, [*words, *([] if against is None else [against])])
    from_store = "patches" in asked.store.contents.specs and not image.startswith(PREFIX)
    query = asked.index_of(image) if from_store else asked.image(image, with_patches=True)
    found = segment(asked.store, query, list(texts.vectors), heads)
    by_text = dict(zip(texts.texts, found.maps[0], strict=True))
    # A difference of nothing is 0, never −0.
    shown = [by_text[word] if against is None else by_text[word] - by_text[against] + np.float32(0) for word in words]
    maps = np.stack(shown)
    return Maps(
        store=asked.name,
        id=image,
        rows=maps.shape[1],
        columns=maps.shape[2],
        through=through,
        heads=named(heads),
        maps=[
            Map(text=word, against=against, values=each.tolist(), total=float(each.sum(dtype=np.float64)))
            for word, each in zip(words, maps, strict=True)
        ],
        full=replace(found, maps=maps[None]).full,
        source="store" if from_store else "model",
        notices=texts.notices,
    )

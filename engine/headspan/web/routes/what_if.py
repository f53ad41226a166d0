"""What changes if heads are mean-ablated: one image's zero-shot answers and neighbours, and the store's accuracy."""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter

from headspan.explore.nearest.neighbours import ablated_vector
from headspan.web.answers.what_if import WhatIf
from headspan.web.asked import EMBEDDING, Asked, named
from headspan.web.asked_texts import Texts, asked_texts
from headspan.web.routes.images import ImageName, unit_embedding
from headspan.web.routes.neighbours import Count, WithoutText, neighbours_of_image
from headspan.web.through import asked_through, removed_heads
from headspan.web.zero_shot import zero_shot

router = APIRouter(prefix="/api/stores/{store}/what-if", tags=["what if"])


@router.get("/{image}")
def what_if(asked: Asked, image: ImageName, text: Texts = [], without: WithoutText = "", count: Count = 12) -> WhatIf:
    """An image's answers with all heads, and with the contributions of some at their means, in all images.

    Embeddings are divided by their original length and not normalised again.
    """
    removed = removed_heads(asked, without)
    query, texts = asked.image(image), asked_texts(asked, text)
    before, after = unit_embedding(query), ablated_vector(asked.store, query, removed)
    return WhatIf(
        store=asked.name,
        id=image,
        without=named(removed),
        before=zero_shot(texts.texts, before @ texts.units.T),
        after=zero_shot(texts.texts, after @ texts.units.T),
        neighbours_before=neighbours_of_image(asked, query, asked_through(asked, EMBEDDING), count),
        neighbours_after=neighbours_of_image(asked, query, asked_through(asked, EMBEDDING, without), count),
        embedding_cosine=float(before @ after / np.linalg.norm(after)),
        notices=texts.notices,
    )

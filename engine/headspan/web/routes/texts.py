"""A text: which heads carry it; and the texts that are answered without the model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from headspan.explore.heads.text_shares import TextShares, text_shares
from headspan.head_names import head_name
from headspan.store.results import runs
from headspan.texts.stored import stored_pool
from headspan.web.answers.texts import KnownTexts, TextAnswer, TextHead
from headspan.web.asked import Asked, AskedStore
from headspan.web.failures import RESPONSES
from headspan.web.routes.heads import Text

router = APIRouter(prefix="/api/stores/{store}/texts", tags=["texts"], responses=RESPONSES)


@router.get("", response_model=TextAnswer)
def text_answer(asked: Asked, text: Text) -> Response:
    """Which heads carry a text, those that carry most first."""
    return asked.answer(("text", text), lambda: _text_answer(asked, text))


def _text_answer(asked: AskedStore, text: str) -> TextAnswer:
    (vector,), cut = asked.vectors([text])
    found = text_shares(asked.store, vector)
    return TextAnswer(
        store=asked.name,
        text=text,
        cut=cut.get(text),
        images=found.images,
        score_mean=found.score_mean,
        score_deviation=found.score_deviation,
        pool=found.pool,
        heads=_heads(asked, found),
    )


@router.get("/known")
def known_texts(
    asked: Asked,
    prefix: Annotated[str, Query(max_length=200)] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 20,
) -> KnownTexts:
    """Stored texts that begin with `prefix`, then those that have it within; case is ignored."""
    wanted = " ".join(prefix.casefold().split())
    begin: list[str] = []
    within: list[str] = []
    for text, folded in asked.keep("known texts", lambda: _known(asked)):
        if folded.startswith(wanted):
            begin.append(text)
        elif wanted in folded and len(within) < limit:
            within.append(text)
        if len(begin) == limit:
            break
    return KnownTexts(store=asked.name, texts=[*begin, *within][:limit])


def _known(asked: AskedStore) -> list[tuple[str, str]]:
    """All texts of the stored pools, and each without case."""
    store = asked.store
    found = dict.fromkeys(text for name in runs(store, "texts") for text in stored_pool(store, name).texts)
    return [(text, text.casefold()) for text in found]


def _heads(asked: AskedStore, found: TextShares) -> list[TextHead]:
    results = asked.results()
    heads = []
    for layer, head in found.ranking():
        place = found.layers.index(layer), head
        heads.append(
            TextHead(
                layer=layer,
                head=head,
                name=head_name(layer, head),
                label=results.label((layer, head)),
                share=found.share[place],
                random=found.random[place],
                percentile=None if found.percentile is None else found.percentile[place],
                mean=found.mean[place],
            )
        )
    return heads

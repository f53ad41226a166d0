"""One image, stored or dropped in: where it comes from, what each component adds to a text's score, and zero-shot."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Path, Query

from headspan.errors import SourceError
from headspan.explore.query.image_parts import ImageParts, image_parts
from headspan.explore.query.query_image import unit_embedding
from headspan.explore.query.whole_pictures import PictureShape, picture_shape
from headspan.head_names import head_name
from headspan.redact import redact
from headspan.store.tables import SAMPLES
from headspan.web.answers.common import NearText
from headspan.web.answers.images import Bar, Bars, ImageAnswer, Seen, ZeroShot
from headspan.web.asked import Asked, AskedStore
from headspan.web.asked_texts import Text, Texts, asked_texts
from headspan.web.failures import RESPONSES
from headspan.web.samples.metadata import class_name, metadata_of
from headspan.web.state.uploads import PREFIX
from headspan.web.zero_shot import zero_shot

router = APIRouter(prefix="/api/stores/{store}/images/{image}", tags=["images"], responses=RESPONSES)

# The row of a stored image, or the id of a dropped-in one.
ImageName = Annotated[str, Path(max_length=100, description="An image's row, or the id of a dropped-in one.")]


@router.get("")
def image_answer(asked: Asked, image: ImageName) -> ImageAnswer:
    """Where an image comes from, what is known of it, and which part of its picture the model sees.

    If the picture cannot be read, `missing` says why, and everything else is answered from the store.
    """
    if image.startswith(PREFIX):
        shape = picture_shape(asked.store, asked.explorer.uploads.get(image))
        return ImageAnswer(
            store=asked.name,
            id=image,
            row=None,
            key="dropped-in image",
            caption=None,
            label=None,
            class_name=None,
            metadata={},
            shard=None,
            member=None,
            width=shape.width,
            height=shape.height,
            seen=_seen(shape),
            missing=None,
            maps_need_model=True,
        )
    index = asked.index_of(image)
    (sample,) = asked.store.few_samples([index], SAMPLES.names)
    metadata = metadata_of(sample["metadata"])
    found, missing = _picture(asked, index)
    return ImageAnswer(
        store=asked.name,
        id=str(sample["row"]),
        row=sample["row"],
        key=sample["key"],
        caption=sample["caption"],
        label=sample["label"],
        class_name=class_name(metadata) or asked.classes().name(sample["label"]),
        metadata=metadata,
        shard=redact(sample["url"]),
        member=sample["member"],
        width=None if found is None else found.width,
        height=None if found is None else found.height,
        seen=None if found is None else _seen(found),
        missing=missing,
        maps_need_model="patches" not in asked.store.contents.specs,
    )


@router.get("/bars")
def image_bars(asked: Asked, image: ImageName, text: Text) -> Bars:
    """What every component adds to the cosine of an image and a text. The bars sum to the cosine."""
    texts = asked_texts(asked, [text])
    parts = image_parts(asked.store, asked.image(image), texts.vectors[0])
    bars = _bars(asked, parts)
    return Bars(
        store=asked.name,
        id=image,
        text=text,
        cut=texts.cut.get(text),
        cosine=parts.cosine,
        sum=float(np.sum([bar.value for bar in bars])),
        remainder=parts.rest,
        bars=bars,
    )


@router.get("/zero-shot")
def image_zero_shot(asked: Asked, image: ImageName, text: Texts) -> list[ZeroShot]:
    """The cosine of an image with each text, and the texts' probabilities at CLIP's logit scale of 100."""
    texts = asked_texts(asked, text)
    return zero_shot(texts.texts, unit_embedding(asked.image(image)) @ texts.units.T)


@router.get("/texts")
def image_texts(asked: Asked, image: ImageName, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> list[NearText]:
    """The texts with the largest cosines with an image, among all whose vectors the store keeps, largest first."""
    known = asked.explorer.model.known_texts(asked.store)
    cosines = known.vectors @ unit_embedding(asked.image(image)).astype(np.float32)
    nearest = np.argsort(-cosines, kind="stable")[:limit]
    return [NearText(text=known.texts[place], cosine=float(cosines[place])) for place in nearest]


def _picture(asked: AskedStore, index: int) -> tuple[PictureShape | None, str | None]:
    """The shape of a stored image's picture, or why it cannot be read."""
    try:
        return picture_shape(asked.store, index, shards=asked.explorer.shards), None
    except SourceError as error:
        todo = "" if asked.explorer.shards else "; start headspan explore with --shards to say where the shards are now"
        return None, f"the picture cannot be shown, since its shard cannot be read: {redact(str(error))}{todo}"


def _seen(shape: PictureShape) -> Seen:
    return Seen(left=shape.seen.left, top=shape.seen.top, right=shape.seen.right, bottom=shape.seen.bottom)


def _bars(asked: AskedStore, parts: ImageParts) -> list[Bar]:
    """A bar for each head and each MLP, and the rest last."""
    results = asked.results()
    heads = [
        Bar(
            name=head_name(layer, head),
            layer=layer,
            head=head,
            label=results.label((layer, head)),
            value=float(value),
            mean=mean,
        )
        for (layer, head), value, mean in zip(parts.heads, parts.of_heads, parts.means_of_heads, strict=True)
    ]
    terms = [
        Bar(name=name, layer=layer, head=None, label=None, value=float(value), mean=mean)
        for (name, layer), value, mean in zip(parts.terms, parts.of_terms, parts.means_of_terms, strict=True)
    ]
    rest = Bar(name=parts.rest_name, layer=None, head=None, label=None, value=parts.rest, mean=parts.mean_rest)
    return [*heads, *terms, rest]

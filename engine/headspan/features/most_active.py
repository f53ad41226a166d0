"""What a feature is most active on: the images with their keys, and the captions with their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from headspan.errors import StoreError
from headspan.features.pairs.caption_index import index_captions
from headspan.features.scores.result import FeatureScores
from headspan.features.table import checked_feature
from headspan.store.reader import Store
from headspan.tasks.captioned import caption_lines

COUNT = 10


@dataclass(frozen=True, slots=True)
class TopImage:
    """An image of a store, and the feature's code of it."""

    image: int
    key: str
    code: float
    # The first caption of the image; None if it has none.
    caption: str | None


@dataclass(frozen=True, slots=True)
class TopCaption:
    """A caption, and the feature's code of it. Equal captions are one, with the image that has it first."""

    text: str
    code: float
    image: int
    # How many of the feature's top captions are this one.
    times: int


@dataclass(frozen=True, slots=True)
class TopSamples:
    """The images and captions that a feature is most active on, the largest code first."""

    feature: int
    images: tuple[TopImage, ...]
    captions: tuple[TopCaption, ...]


def top_samples(
    store: Store, scores: FeatureScores, features: Sequence[int], count: int = COUNT
) -> tuple[TopSamples, ...]:
    """The top samples of some features, read from the store at once; at most `count` images and captions each.

    Raises SettingsError if there is no such feature, and StoreError if the store lacks an image that the scores name.
    """
    rows = [checked_feature(scores, int(feature)) for feature in features]
    images = [_present(scores.top_images[row], scores.top_image_codes[row]) for row in rows]
    captions = [_present(scores.top_captions[row], scores.top_caption_codes[row]) for row in rows]
    wanted = np.unique(np.concatenate([scores.top_images[rows].reshape(-1), scores.top_captions[rows].reshape(-1)]))
    wanted = wanted[wanted >= 0]
    if len(wanted) and wanted[-1] >= store.images:
        raise StoreError(
            f"{store.path}: has {store.images:,} images, but {scores.run} names image {wanted[-1]:,}; score the "
            "dictionary on this store again"
        )
    table = store.samples(wanted, ["key", "caption", "metadata"])
    lines = [
        caption_lines(*given) for given in zip(table["caption"].to_pylist(), table["metadata"].to_pylist(), strict=True)
    ]
    keys = dict(zip(wanted.tolist(), table["key"].to_pylist(), strict=True))
    own_lines = dict(zip(wanted.tolist(), lines, strict=True))
    first = {image: each[0] if each else None for image, each in own_lines.items()}
    several = {image for image, each in zip(wanted.tolist(), lines, strict=True) if len(each) > 1}
    exact = _exact_texts(store, scores, rows, several)
    found = []
    for row, own, of_texts in zip(rows, images, captions, strict=True):
        texts: dict[str, TopCaption] = {}
        for place, (image, code) in enumerate(of_texts):
            text = exact.get((row, place))
            # Captions are numbered anew when an unfinished store grows.
            if text not in own_lines[image]:
                text = first[image]
            text = text or ""
            before = texts.get(text)
            # The first of equal captions has the largest code.
            texts[text] = (
                TopCaption(text, code, image, 1)
                if before is None
                else TopCaption(text, before.code, before.image, before.times + 1)
            )
        tops = tuple(TopImage(image, keys[image], code, first[image]) for image, code in own[:count])
        found.append(TopSamples(row, tops, tuple(texts.values())[:count]))
    return tuple(found)


def _present(images: Int64[np.ndarray, " top"], codes: np.ndarray) -> list[tuple[int, float]]:
    return [(int(image), float(code)) for image, code in zip(images, codes, strict=True) if image >= 0]


def _exact_texts(
    store: Store, scores: FeatureScores, rows: Sequence[int], several: set[int]
) -> dict[tuple[int, int], str]:
    """The texts of top captions of images with several captions, by feature and place.

    Empty without such images, or where the scores do not record which caption it was.
    """
    numbers = scores.top_caption_numbers
    if numbers is None:
        return {}
    places = [
        (row, place)
        for row in rows
        for place, image in enumerate(scores.top_captions[row].tolist())
        if image in several and numbers[row, place] >= 0
    ]
    if not places:
        return {}
    # Reads the captions of the whole store, which is why it is done for these images only.
    texts = index_captions(store).texts(store, [int(numbers[place]) for place in places])
    return dict(zip(places, texts, strict=True))

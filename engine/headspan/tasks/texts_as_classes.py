"""Zero-shot classification without a declared task: classes that images have, and the texts that name them.

A text names the class whose name it contains as whole words, and of several the longest one: "a photo of a polar bear"
names `polar_bear`, not `bear`. If classes have numbers only, and no text contains one, the texts name classes 0, 1, …
in their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from headspan.store.reader import Store
from headspan.tasks.truths import CLASS_NAME, UNKNOWN, metadata_of_images, plain


@dataclass(frozen=True, slots=True)
class NamedClasses:
    """Classes that texts name: for each its name, and the places of its texts."""

    names: tuple[str, ...]
    texts: tuple[tuple[int, ...], ...]

    def vectors(self, of_texts: Float[np.ndarray, "text joint"]) -> Float32[np.ndarray, "class joint"]:
        """A class's vector is the mean of its texts' unit vectors, normalised again (Radford et al., ICML 2021)."""
        means = np.stack([of_texts[list(places)].mean(axis=0) for places in self.texts])
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def numbers(self, values: Sequence[str | None]) -> Int64[np.ndarray, " images"]:
        """The number of each image's class; -1 for those without one, or whose class no text names."""
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(self.names)}
        return np.array([numbers.get(value, UNKNOWN) for value in values], np.int64)


def class_values(store: Store, images: Int64[np.ndarray, " some"], column: str | None = None) -> list[str | None]:
    """The class of each image in words: its name or number, or the metadata's value of `column`; None without one.

    A column is a key of the metadata, or a path of keys and places, such as `objects/0/shape`, in which names are
    written as in a JSON pointer: `~1` is a slash, and `~0` a tilde.
    """
    metadata = metadata_of_images(store, images)
    if column is not None:
        return [_word(_at(each, column)) for each in metadata]
    # As in tasks, a negative number marks images without a class.
    labels = store.samples(images, ["label"])["label"].to_pylist()
    numbers = [None if label is None or label < 0 else str(label) for label in labels]
    names = [_word(each.get(CLASS_NAME)) for each in metadata]
    return [name or number for name, number in zip(names, numbers, strict=True)]


def named_classes(texts: Sequence[str], values: Sequence[str | None]) -> NamedClasses:
    """The classes among `values` that the texts name, in alphabetical order."""
    known = sorted({value for value in values if value is not None})
    by_class: dict[str, list[int]] = {}
    words = [plain(text) for text in texts]
    longest_first = sorted(known, key=lambda name: (-len(name), name))
    patterns = {name: re.compile(rf"(?<!\w){re.escape(plain(name))}(?!\w)") for name in longest_first if plain(name)}
    for place, text in enumerate(words):
        named = next((name for name, pattern in patterns.items() if pattern.search(text)), None)
        if named is not None:
            by_class.setdefault(named, []).append(place)
    if not by_class and known and all(name.isdigit() for name in known):
        by_class = {f"{place}": [place] for place in range(len(texts))}
    ordered = sorted(by_class)
    return NamedClasses(tuple(ordered), tuple(tuple(by_class[name]) for name in ordered))


def _at(metadata: Mapping[str, Any], column: str) -> Any:
    """The value of a column; None where there is none."""
    if column in metadata:
        return metadata[column]
    found: Any = metadata
    for part in column.split("/"):
        if isinstance(found, dict):
            found = found.get(part.replace("~1", "/").replace("~0", "~"))
        elif isinstance(found, list) and part.isascii() and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return found


def _word(value: object) -> str | None:
    """A value of the metadata as the name of a class; None for lists and objects, which are none."""
    return str(value) if isinstance(value, str | int | float) and value != "" else None

"""Zero-shot classification with descriptions as the prompts of their classes, beside the classes' names and chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int64

from headspan.describe.rewards.reward import Reward
from headspan.features.pairs.image_vectors import embeddings
from headspan.store.selection import selection_of
from headspan.tasks.zero_shot import Classes, accuracy

# Images whose embeddings are read at the same time.
_READ = 4096
# Class names as prompts: alone, and in the template that CLIP's authors begin with.
_NAME, _PHOTO = "{c}", "a photo of a {c}."


def zero_shot_figures(
    reward: Reward, descriptions: Mapping[str, Sequence[Sequence[str]]], seen: int | None = None
) -> dict[str, float]:
    """The accuracy of every set of descriptions, of the classes' names, and of naming the most common class.

    A class's vector is the mean of its texts' unit vectors, normalised again; a text that occurs twice counts twice.

    Args:
        reward: Knows the store, its model, and the classes of the images.
        descriptions: By the name of a figure, the texts of each class.
        seen: The most images of a class that the reward averages over. If classes have more, `_unseen` figures are over
            the others alone; None if the reward saw all.

    Figures beside those of the descriptions are `zero_shot_names` (names alone), `zero_shot_photo` ("a photo of a …"),
    `zero_shot_chance` and `zero_shot_images`; with `_unseen` at their end where such images exist.
    """
    classes = reward.classes
    names = [name.replace("_", " ") for name in classes.names]
    sets: dict[str, Sequence[Sequence[str]]] = {
        **descriptions,
        "zero_shot_names": [[_NAME.replace("{c}", name)] for name in names],
        "zero_shot_photo": [[_PHOTO.replace("{c}", name)] for name in names],
    }
    images = np.flatnonzero(classes.numbers >= 0)
    truths = [classes.names[number] for number in classes.numbers[images]]
    picked = _picked(reward, images, {name: _classes(reward, texts) for name, texts in sets.items()})
    found = _accuracies(picked, truths, np.ones(len(images), bool), "")
    unseen = ~np.isin(images, _seen(reward, seen))
    return found | (_accuracies(picked, truths, unseen, "_unseen") if unseen.any() else {})


def _accuracies(
    picked: Mapping[str, Sequence[str]], truths: Sequence[str], kept: Bool[np.ndarray, " image"], end: str
) -> dict[str, float]:
    right = [truth if keep else None for truth, keep in zip(truths, kept, strict=True)]
    scores = {name: accuracy(each, right) for name, each in picked.items()}
    one = next(iter(scores.values()))
    return {
        **{f"{name}{end}": score.share for name, score in scores.items()},
        f"zero_shot_chance{end}": one.chance,
        f"zero_shot_images{end}": float(one.images),
    }


def _seen(reward: Reward, most: int | None) -> Int64[np.ndarray, " image"]:
    """The images that the reward averages over."""
    return np.concatenate([reward.classes.images(number, most) for number in range(len(reward.classes.names))])


def _classes(reward: Reward, texts: Sequence[Sequence[str]]) -> Classes:
    means = np.stack([_mean(reward, each) for each in texts])
    return Classes(reward.classes.names, means / np.linalg.norm(means, axis=1, keepdims=True))


def _mean(reward: Reward, texts: Sequence[str]) -> Float32[np.ndarray, " joint"]:
    times = Counter(texts)
    weights = np.array([*times.values()], np.float64) / len(texts)
    mean: Float32[np.ndarray, " joint"] = (weights @ reward.texts.vectors([*times])).astype(np.float32)
    return mean


def _picked(
    reward: Reward, images: Int64[np.ndarray, " image"], classes: Mapping[str, Classes]
) -> dict[str, list[str]]:
    """The class that each set of prompts names for each image."""
    found: dict[str, list[str]] = {name: [] for name in classes}
    for start in range(0, len(images), _READ):
        vectors = embeddings(reward.store, selection_of(reward.store, images[start : start + _READ]).rows)
        for name, each in classes.items():
            found[name] += each.name(vectors)
    return found

"""Whether the heads of a concept matter for that concept in particular: a difference of differences.

The heads of one concept are pruned, and every concept's accuracy is measured before and after. The difference is the
drop of the concept itself, minus the drop of the others: their mean, and the largest of them. It stands beside the same
difference under as many random heads of the same layers, since some concepts are more fragile than others whatever is
pruned.

The idea is that of Madasu, Lal, Howard, arXiv 2503.11103, who compare the two drops by eye; intervals are percentiles
of a bootstrap over images, which are drawn for all concepts and all sets of heads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int, Int8

from headspan.errors import SettingsError
from headspan.events import Listener, Progress, ignore
from headspan.prune.choice.draws import DRAWS, matched_draws
from headspan.prune.direct.ablation import direct_effect
from headspan.prune.studies.statistics import SAMPLES, Interval, interval, resampling_counts
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.tasks.classification import Classification
from headspan.tasks.truths import UNKNOWN
from headspan.tasks.zero_shot import Classes

# From sets of heads to the embeddings without each of them, of any length.
Pruner = Callable[[Sequence[Sequence[Head]]], Iterable[Float32[np.ndarray, "images joint"]]]


@dataclass(frozen=True, slots=True)
class Concept:
    """What a concept is scored by: the classes that a model names, and the true class of the images about it."""

    classes: Classes
    # Places in `classes`; -1 for images that are not about the concept.
    truths: Int[np.ndarray, " images"]

    def correct(self, embeddings: Float32[np.ndarray, "images joint"]) -> Bool[np.ndarray, " images"]:
        """Whether the right class is nearest; False for images that are not about the concept."""
        right: Bool[np.ndarray, " images"] = (embeddings @ self.classes.vectors.T).argmax(axis=1) == self.truths
        return right


def concepts_of(classification: Classification, own_classes: bool = False) -> dict[str, Concept]:
    """The concepts of a task: the images of each of its groups of classes, `task.concepts`.

    With `own_classes`, a concept's images are classified among its own classes only, as the published study does with
    the objects and the animals of CIFAR-10; otherwise among all classes. Raises SettingsError if the task has no groups
    of classes.
    """
    task, classes, truths = classification.task, classification.classes, classification.truths
    if not task.concepts:
        raise SettingsError(f'task {task.name}: has no groups of classes; declare concepts, such as animals = ["cat"]')
    found = {}
    for name, members in task.concepts.items():
        places = [place for place, class_ in enumerate(task.classes) if class_ in members]
        among = places if own_classes else list(range(len(task.classes)))
        of_class = np.full(len(task.classes) + 1, UNKNOWN)
        of_class[places] = [among.index(place) for place in places]
        # The last place is that of UNKNOWN.
        names = tuple(task.classes[place] for place in among)
        found[name] = Concept(Classes(names, classes.vectors[among]), of_class[truths])
    return found


@dataclass(frozen=True, slots=True)
class ConceptEffect:
    """What pruning a concept's heads does to every concept. Accuracies and differences are shares from -1 to 1."""

    concept: str
    heads: tuple[Head, ...]
    # The accuracy that each concept loses, by its name.
    drops: Mapping[str, Interval]
    # The drop of the concept minus the mean, and minus the largest, of the other concepts' drops.
    above_mean: Interval
    above_largest: Interval
    # The same for the mean over sets of random heads, as many in each layer; None if none can be drawn.
    random_above_mean: Interval | None
    random_above_largest: Interval | None
    # How many sets of random heads were drawn, and for how many of them all of `above_largest`'s interval is above 0.
    draws: int
    draws_above: int
    # What limits the comparison with random heads.
    remarks: tuple[str, ...] = ()

    @property
    def specific(self) -> bool:
        """Whether the concept loses more than any other one, with 95 % of the bootstrap samples."""
        return self.above_largest.low > 0


def concept_effects(
    store: Store,
    concepts: Mapping[str, Concept],
    heads: Mapping[str, Sequence[Head]],
    on_progress: Listener = ignore,
    *,
    prune: Pruner | None = None,
    draws: int = DRAWS,
    samples: int = SAMPLES,
    seed: int = 0,
) -> tuple[ConceptEffect, ...]:
    """Prune the heads of each concept of `heads` in turn, and compare its drop in accuracy with the other concepts'.

    Args:
        store: The store to read; nothing is written.
        concepts: At least two, by name.
        heads: The heads of some of these concepts.
        on_progress: Called with a `headspan.events.Progress` after each set of heads.
        prune: From sets of heads to the embeddings without them; by default `direct_effect`. Give
            `lambda sets: total_effect(store, sets)` for the total effect.
        draws: Number of sets of random heads, which have as many heads of each layer and none of the concept's.
        samples: Number of bootstrap samples of the images.
        seed: Seed of the draws and of the samples.

    Raises SettingsError if there are fewer than two concepts, if `heads` names one that is not among them, if a concept
    has no heads or no images, and if a head is not stored.
    """
    _check(store, concepts, heads)
    prune = prune or partial(direct_effect, store)
    known = np.stack([each.truths != UNKNOWN for each in concepts.values()])
    before = _correct(store.embedding, concepts)
    found = []
    for name, own in heads.items():
        random = matched_draws(own, stored_heads(store), draws, seed)
        lost = []
        for embeddings in prune([tuple(own), *random.sets]):
            lost.append(before - _correct(embeddings, concepts))
            on_progress(Progress(f"pruning {name}", len(lost), 1 + len(random.sets)))
        drops = _drops(np.stack(lost), known, samples, seed)
        found.append(_effect(tuple(concepts), name, tuple(own), drops, random.remarks))
    return tuple(found)


def _check(store: Store, concepts: Mapping[str, Concept], heads: Mapping[str, Sequence[Head]]) -> None:
    if len(concepts) < 2:
        raise SettingsError(f"{store.path}: one concept has nothing to be compared with; give at least two")
    for name, each in concepts.items():
        if not (each.truths != UNKNOWN).any():
            raise SettingsError(f"{store.path}: no image is about {name!r}; leave this concept out")
    for name, own in heads.items():
        if name not in concepts:
            raise SettingsError(
                f"{store.path}: heads are given for {name!r}, which is not among the concepts {', '.join(concepts)}"
            )
        if not own:
            raise SettingsError(f"{store.path}: concept {name!r} has no heads; leave it out of the heads to prune")
        for layer, head in own:
            store.contents.layer_index(layer, head)


def _correct(
    embeddings: Float32[np.ndarray, "images joint"], concepts: Mapping[str, Concept]
) -> Int8[np.ndarray, "concept images"]:
    return np.stack([each.correct(embeddings) for each in concepts.values()]).astype(np.int8)


def _drops(
    lost: Int8[np.ndarray, "set concept images"], known: Bool[np.ndarray, "concept images"], samples: int, seed: int
) -> Float64[np.ndarray, "sample set concept"]:
    """The accuracy that each concept loses: over all images, and then in each bootstrap sample of the images."""
    images = lost.shape[-1]
    rows, about = lost.reshape(-1, images).astype(np.float32), known.astype(np.float32)
    found = []
    for counts in chain([np.ones((1, images), np.float32)], resampling_counts(images, samples, seed)):
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = (counts @ rows.T).reshape(len(counts), *lost.shape[:2]) / (counts @ about.T)[:, None]
        found.append(shares.astype(np.float64))
    return np.concatenate(found)


def _effect(
    names: Sequence[str],
    name: str,
    heads: tuple[Head, ...],
    drops: Float64[np.ndarray, "sample set concept"],
    remarks: tuple[str, ...],
) -> ConceptEffect:
    place = names.index(name)
    others = np.delete(drops, place, axis=2)
    above_mean = drops[:, :, place] - others.mean(axis=2)
    above_largest = drops[:, :, place] - others.max(axis=2)
    draws = drops.shape[1] - 1
    return ConceptEffect(
        name,
        heads,
        {each: _interval(drops[:, 0, at]) for at, each in enumerate(names)},
        _interval(above_mean[:, 0]),
        _interval(above_largest[:, 0]),
        _interval(above_mean[:, 1:].mean(axis=1)) if draws else None,
        _interval(above_largest[:, 1:].mean(axis=1)) if draws else None,
        draws,
        sum(_interval(above_largest[:, 1 + each]).low > 0 for each in range(draws)),
        remarks,
    )


def _interval(values: Float64[np.ndarray, " sample"]) -> Interval:
    """The first value, which is that of all images, with the interval of the samples."""
    return interval(float(values[0]), values[1:])

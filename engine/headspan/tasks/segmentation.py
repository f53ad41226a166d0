"""Segmentation by the maps of the classes that the model names, against masks of the objects.

The map of an image is that of the class nearest to its embedding, minus the mean map over all classes, through all
stored heads. It is enlarged to pixels bilinearly, negative values become 0, and the rest is stretched to 0 to 1. Pixels
above the map's mean are named object. A map without positive values names every pixel background.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024, and its public code. That code stretches masks to a square while it
crops images; here masks are resized and cropped as the images were.

Without some heads, each patch's contribution of these heads stays at its mean over all images of the store, and so does
their contribution to the embedding that names the class. This is mean ablation (`prune.mean_ablated`) patch by patch: a
head's means over images, summed over patches, are the mean that `mean_ablated` puts in place of the head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from headspan.decompose.formula import head_coordinates
from headspan.errors import SettingsError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.explore.maps.segmentation import average_precision, on_grid, resized
from headspan.originals.masks import read_masks
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images, usable_images
from headspan.tasks.classification import task_classes
from headspan.tasks.task import Task
from headspan.tasks.zero_shot import Classes

# The columns of outcomes: numbers of pixels, and the average precision of an image.
_CORRECT, _PIXELS, _BOTH_OBJECT, _ANY_OBJECT, _BOTH_GROUND, _ANY_GROUND, _PRECISION = range(7)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Segmentation:
    """A segmentation task on a store with patches. Its items are the images that have masks, in the store's order.

    It is scored from maps and not from embeddings, so it has `outcomes_without` in place of `outcomes`. Figures:
    `miou`, the mean of the intersections over unions of object and background, each of all images' pixels together;
    `pixel_accuracy`; `map`, the mean over images of the average precision of both classes' pixels; and `chance`, the
    `miou` if every pixel were named as most of them are.
    """

    task: Task
    store: Store
    classes: Classes
    # The images' indices, and their masks' pixels, eight in a byte.
    images: Int64[np.ndarray, " item"]
    masks: UInt8[np.ndarray, "item byte"]
    # Every class's vector minus the mean of all, in each head's coordinates.
    along: Float32[np.ndarray, "layer head coordinate class"]
    # The mean coordinates of each patch, by layer, of the layers that were asked for.
    _means: dict[int, Float32[np.ndarray, "patch head coordinate"]] = field(default_factory=dict)

    headline = "miou"
    higher_is_better = True

    @classmethod
    def of(
        cls,
        task: Task,
        store: Store,
        on_progress: Listener = ignore,
        *,
        weights: str | Path | None = None,
        images: Images | None = None,
        shards: Sequence[str] = (),
    ) -> Segmentation:
        """The task on the images of a store, or on some. `shards` say where the masks are, as in `read_masks`.

        `on_progress` is told of images without masks, and of layers that are not stored. Raises SettingsError if the
        store has no patches or if no image has a mask, and the errors of `read_masks` and `task_classes`.
        """
        if "patches" not in store.contents.specs:
            raise SettingsError(
                f"{store.path}: task {task.name} needs patches, which are not stored; precompute with --emit "
                "heads,patches"
            )
        chosen = chosen_images(store, images)
        chosen = chosen[usable_images(store, chosen)]
        found = {image: np.packbits(mask) for image, mask in read_masks(store, chosen, shards)}
        if not found:
            raise SettingsError(
                f"{store.path}: task {task.name} needs masks, and none of {counted(len(chosen), 'image')} has one; put "
                "KEY.mask.png beside KEY.jpg in the tars, or in the folder of the files that a list names"
            )
        if len(found) < len(chosen):
            left = counted(len(chosen) - len(found), "image")
            on_progress(Progress(NOTE, 1, 1, f"task {task.name}: {left} without a mask left out"))
        if len(store.layers) < store.direct_layers:
            layers = f"the {len(store.layers)} stored of {store.direct_layers} layers"
            on_progress(
                Progress(NOTE, 1, 1, f"task {task.name}: maps are through {layers}; published ones are through all")
            )
        classes = task_classes(task, store, on_progress, weights=weights)
        centred = (classes.vectors - classes.vectors.mean(axis=0)).T
        heads = range(store.heads_per_layer)
        along = [[store.head_directions(layer, head) @ centred for head in heads] for layer in store.layers]
        order = np.array(sorted(found), np.int64)
        masks = np.stack([found[image] for image in order.tolist()])
        return cls(task, store, classes, order, masks, np.array(along, np.float32))

    def __repr__(self) -> str:
        return f"Segmentation({self.task.name}: {counted(self.items, 'image')}, {len(self.classes.names):,} classes)"

    @property
    def items(self) -> int:
        """The number of images that have masks."""
        return len(self.images)

    def outcomes_without(
        self, heads: Sequence[Head], on_progress: Listener = ignore
    ) -> Float64[np.ndarray, "item column"]:
        """A row for each image with `heads` at their means: counts of pixels, and the average precision.

        Raises SettingsError if a head is not stored.
        """
        return self.outcomes_of([heads], on_progress)[0]

    def outcomes_of(
        self, sets: Sequence[Sequence[Head]], on_progress: Listener = ignore
    ) -> Float64[np.ndarray, "set item column"]:
        """`outcomes_without` for each of several sets of heads, with one reading of the patches."""
        ablated = [list(dict.fromkeys(heads)) for heads in sets]
        for layer, head in (pair for heads in ablated for pair in heads):
            self.store.contents.layer_index(layer, head)
        named = np.stack([self._named(heads) for heads in ablated])
        self._compute_means({layer for heads in ablated for layer, _ in heads}, on_progress)
        found = np.empty((len(sets), self.items, _PRECISION + 1))
        for item, image in enumerate(self.images.tolist()):
            maps = self._maps(image, ablated, named[:, item])
            mask = self._mask(item)
            for at, each in enumerate(maps):
                found[at, item] = _scored(resized(each, mask.shape), mask)
            on_progress(Progress("maps", item + 1, self.items))
        return found

    def figures(self, outcomes: Float64[np.ndarray, "item column"]) -> Mapping[str, float]:
        """Mean IoU, pixel accuracy and mean average precision, and the mean IoU by chance."""
        sums = outcomes.sum(axis=0)
        objects = sum(np.bitwise_count(mask).sum(dtype=np.int64) for mask in self.masks) / sums[_PIXELS]
        return {
            "miou": float(_mean_iou(sums)),
            "pixel_accuracy": float(sums[_CORRECT] / sums[_PIXELS]),
            "map": float(outcomes[:, _PRECISION].mean()),
            "chance": float(max(objects, 1 - objects) / 2),
        }

    def resampled(
        self, outcomes: Float64[np.ndarray, "item column"], counts: Float32[np.ndarray, "draw item"]
    ) -> Float64[np.ndarray, " draw"]:
        """The mean IoU if image i occurs `counts[draw, i]` times, for each draw."""
        return np.asarray(_mean_iou(counts @ outcomes))

    def correct(self, outcomes: Float64[np.ndarray, "item column"]) -> None:
        """None, since images are not right or wrong."""
        return

    def _mask(self, item: int) -> Bool[np.ndarray, "height width"]:
        height, width = self.store.attributes["preprocess"]["size"]
        return np.unpackbits(self.masks[item], count=height * width).reshape(height, width).astype(bool)

    def _named(self, heads: Sequence[Head]) -> Int64[np.ndarray, " item"]:
        """The number of the class named for each image, with `heads` at their means."""
        store, vectors = self.store, self.classes.vectors.T
        scores = store.embedding[self.images] / store.norm[self.images, 2:] @ vectors
        moments = store.moments() if heads else None
        for layer, head in heads:
            assert moments is not None
            coordinates = head_coordinates(
                store.head_coordinates(layer, head)[self.images], store.norm[self.images], normalised=True
            )
            mean = moments.total[store.contents.layer_index(layer, head), head] / moments.count
            scores -= (coordinates - mean.astype(np.float32)) @ (store.head_directions(layer, head) @ vectors)
        return np.asarray(scores.argmax(axis=1))

    def _coordinates(self, image: int, layer: int) -> Float32[np.ndarray, "patch head coordinate"]:
        """The normalised coordinates of every patch through every head of a layer."""
        store = self.store
        own = store.patch_coordinates(image, layer)[store.prefix_tokens :]
        norm = np.broadcast_to(store.norm[image], (*own.shape[:2], 3))
        return head_coordinates(own, norm, normalised=True, parts=store.tokens).astype(np.float32, copy=False)

    def _compute_means(self, layers: Iterable[int], on_progress: Listener) -> None:
        """Compute the mean coordinates of every patch of some layers over all images, where they are not known."""
        usable = np.flatnonzero(np.isfinite(self.store.norm[:, 2]))
        missing = sorted(set(layers) - set(self._means))
        sums: dict[int, np.ndarray] = {}
        for done, image in enumerate(usable.tolist() if missing else (), start=1):
            for layer in missing:
                coordinates = self._coordinates(image, layer)
                total = sums.setdefault(layer, np.zeros(coordinates.shape))
                total += coordinates
            on_progress(Progress("mean maps", done, len(usable)))
        for layer, total in sums.items():
            self._means[layer] = (total / len(usable)).astype(np.float32)

    def _maps(
        self, image: int, ablated: Sequence[Sequence[Head]], named: Int64[np.ndarray, " set"]
    ) -> Float32[np.ndarray, "set rows columns"]:
        """The map of the class named without each set of heads, over the patch grid of an image."""
        used, places = np.unique(named, return_inverse=True)
        maps: np.ndarray | float = 0.0
        lost = np.zeros((len(ablated), self.store.tokens - self.store.prefix_tokens), np.float32)
        for index, layer in enumerate(self.store.layers):
            along = self.along[index][..., used]
            coordinates = self._coordinates(image, layer)
            maps = maps + coordinates.reshape(len(coordinates), -1) @ along.reshape(-1, len(used))
            of_layer = [[head for at, head in heads if at == layer] for heads in ablated]
            # What each head that some set ablates differs from its mean by.
            own = {
                head: (coordinates[:, head] - self._means[layer][:, head]) @ along[head]
                for head in sorted({head for heads in of_layer for head in heads})
            }
            for at, heads in enumerate(of_layer):
                for head in heads:
                    lost[at] += own[head][:, places[at]]
        assert isinstance(maps, np.ndarray)
        return on_grid(self.store, np.ascontiguousarray(maps.T[places]) - lost)


def _scored(pixels: Float32[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]) -> list[float]:
    """The columns of an image's outcome, from the map of its class enlarged to pixels."""
    # In float32, 1 minus small numbers would make ties.
    evidence = np.maximum(pixels, 0).astype(np.float64)
    low, high = evidence.min(), evidence.max()
    if high > low:
        evidence = (evidence - low) / (high - low)
        named, scores = evidence > evidence.mean(), np.concatenate([evidence.ravel(), 1 - evidence.ravel()])
    else:
        named, scores = np.zeros_like(mask), np.zeros(2 * mask.size)
    precision = average_precision(scores, np.concatenate([mask.ravel(), ~mask.ravel()]))
    counts = (named == mask, np.ones_like(mask), named & mask, named | mask, ~named & ~mask, ~(named & mask))
    return [*(float(np.count_nonzero(each)) for each in counts), precision]


def _mean_iou(sums: Float64[np.ndarray, "*draws column"]) -> Float64[np.ndarray, "*draws"]:
    """The mean of the two classes' intersections over unions; a class that no pixel has counts as 0."""
    both, either = sums[..., [_BOTH_OBJECT, _BOTH_GROUND]], sums[..., [_ANY_OBJECT, _ANY_GROUND]]
    return np.asarray((both / np.maximum(either, 1)).mean(axis=-1))

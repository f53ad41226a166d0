"""Check maps of texts against the masks of the objects that the texts name.

Maps of a text are the published ones (Gandelsman et al., ICLR 2024), with the mean vector over the texts that it
competes with subtracted from the text's. They are interpolated from patches to pixels bilinearly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float32, UInt8

from headspan.explore.maps.segmentation import resized, text_maps
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.tasks.zero_shot import Classes
from headspan.world.checks import FACTOR_OF, ContrastCheck, MapCheck, TextMapCheck
from headspan.world.compared import Compared, draws_of, other_heads
from headspan.world.factors import COLOURS, SHAPES, Scene, Thing
from headspan.world.mapped import (
    EveryHead,
    Mask,
    masks_of,
    region,
    shares_of_patches,
    value_of_thing,
    value_with_a_place,
)
from headspan.world.scores import map_scores, means_of, overlap, pixel_auc
from headspan.world.words import with_article

# Masks and maps of this many scenes are compared; more would not change the means visibly.
KINDS, PER_FACTOR, PAIRS = 300, 100, 200
# The name of the contrast between whole descriptions, "a red ring" and "a blue star".
DESCRIPTIONS = "descriptions"
# Factors in which two objects of a scene can differ, by concept.
_CONTRASTED = {concept: FACTOR_OF[concept] for concept in ("colours", "shapes", "textures", "sizes", "positions")}
Masks = Mapping[int, UInt8[np.ndarray, "side side"]]
HeadsOf = Mapping[str, tuple[Head, ...]]


def description(thing: Thing) -> str:
    """Colour and shape of an object: "a red ring"."""
    return with_article(f"{thing.colour} {thing.shape}")


def descriptions() -> dict[str, list[str]]:
    """Every `description` with itself as its only prompt, for `embed_classes`."""
    texts = [with_article(f"{colour} {shape}") for colour in COLOURS for shape in SHAPES]
    return {text: [text] for text in texts}


class MapChecks:
    """The scenes of a store that maps are compared with, and their masks, drawn once."""

    def __init__(self, store: Store, scenes: Sequence[Scene]) -> None:
        self._store, self._scenes = store, scenes
        self._every = stored_heads(store)
        self._kinds = [image for image, scene in enumerate(scenes) if scene.repeated][:KINDS]
        self._pairs = [image for image, scene in enumerate(scenes) if not scene.repeated and scene.count == 2][:PAIRS]
        self._of_factor = {
            factor: [image for image, scene in enumerate(scenes) if value_with_a_place(scene, factor)][:PER_FACTOR]
            for factor in FACTOR_OF.values()
        }
        used = [*self._kinds, *self._pairs, *(image for images in self._of_factor.values() for image in images)]
        self._masks = masks_of(scenes, used)

    def kinds(self, classes: Classes) -> MapCheck:
        """Maps through all heads of scenes of one kind of object, for the text that names it ("a red ring")."""
        vectors = classes.vectors - classes.vectors.mean(axis=0)
        measured = []
        for image in self._kinds:
            mask = self._masks[image] > 0
            vector = vectors[classes.names.index(description(self._scenes[image].things[0]))]
            evidence = text_maps(self._store, image, vector[None], self._every)[0]
            measured.append(map_scores(resized(evidence, mask.shape), mask))
        inside, area, precision = np.mean(measured, axis=0)
        return MapCheck(len(self._kinds), float(inside), float(area), float(precision))

    def of_factors(self, concepts: HeadsOf, classes: Mapping[str, Classes]) -> tuple[TextMapCheck, ...]:
        """Maps of every concept's values, where they have a place, through its heads and others."""
        return tuple(
            self._of_factor_check(concept, heads, FACTOR_OF[concept], classes[FACTOR_OF[concept]])
            for concept, heads in concepts.items()
            if self._of_factor[FACTOR_OF[concept]]
        )

    def contrasts(self, concepts: HeadsOf, classes: Mapping[str, Classes], named: Classes) -> tuple[ContrastCheck, ...]:
        """Contrasts of two different objects, by each concept's values and by whole descriptions (`named`)."""
        if not self._pairs:
            return ()
        found = [
            self._contrast(concept, concepts[concept], classes[factor], partial(value_of_thing, factor=factor))
            for concept, factor in _CONTRASTED.items()
            if concept in concepts
        ]
        both = (*concepts.get("colours", ()), *concepts.get("shapes", ()))
        return (*found, self._contrast(DESCRIPTIONS, both, named, description))

    def _of_factor_check(self, concept: str, heads: tuple[Head, ...], factor: str, classes: Classes) -> TextMapCheck:
        images = self._of_factor[factor]
        every_head = EveryHead.of(self._store, classes.vectors)
        weights = np.eye(len(classes.names)) - 1 / len(classes.names)
        chosen = [classes.names.index(value_with_a_place(self._scenes[image], factor)) for image in images]
        maps = [every_head.maps(image, weights[value]) for image, value in zip(images, chosen, strict=True)]
        masks = [region(self._scenes[image], factor, self._masks[image]) for image in images]

        def scored(through: Sequence[Head], shift: int = 0) -> tuple[float, float]:
            """Mean AUC and overlap; with a `shift`, the map of another image is scored against each mask."""
            pixels = [every_head.through(each, through, masks[0].shape) for each in maps]
            return _means_over_images(pixels[shift:] + pixels[:shift], masks)

        own, all_heads, shifted = scored(heads), scored(self._every), scored(heads, 1)
        exact = _means_over_images(
            [resized(shares_of_patches(mask, maps[0].shape[2:]), mask.shape) for mask in masks], masks
        )
        drawn = [scored(other) for other in other_heads(self._every, heads)]
        auc, iou = (
            Compared(own[at], all_heads[at], draws_of([each[at] for each in drawn]), shifted[at]) for at in range(2)
        )
        area = float(np.mean([mask.mean() for mask in masks]))
        return TextMapCheck(concept, heads, len(images), area, auc, iou, *exact)

    def _contrast(
        self, concept: str, heads: tuple[Head, ...], classes: Classes, named: Callable[[Thing], str]
    ) -> ContrastCheck:
        """Scenes whose two objects differ: the map of the first object's text minus that of the second's."""
        named_of = {image: [named(thing) for thing in self._scenes[image].things] for image in self._pairs}
        images = [image for image, (first, second) in named_of.items() if first != second]
        every_head = EveryHead.of(self._store, classes.vectors)
        maps = []
        for image in images:
            weights = np.zeros(len(classes.names))
            for name, sign in zip(named_of[image], (1, -1), strict=True):
                weights[classes.names.index(name)] = sign
            maps.append(every_head.maps(image, weights))

        def scored(through: Sequence[Head]) -> tuple[float, float, float]:
            """Shares of scenes with the right signs, with both signs wrong, and with the larger mean on the first."""
            means = []
            for image, each in zip(images, maps, strict=True):
                mask = self._masks[image]
                means.append(means_of(every_head.through(each, through, mask.shape), mask == 1, mask == 2))
            first, second = np.array(means).T
            right, wrong = (first > 0) & (second < 0), (first < 0) & (second > 0)
            return float(right.mean()), float(wrong.mean()), float((first > second).mean())

        own, all_heads = scored(heads) if heads else None, scored(self._every)
        drawn = [scored(other) for other in other_heads(self._every, heads)]
        # If a coin decides which text belongs to which object, half of the scenes with opposite signs are right.
        signs = own or all_heads
        chances = {0: (signs[0] + signs[1]) / 2, 2: 0.5}
        right, ordered = (
            Compared(own and own[at], all_heads[at], draws_of([each[at] for each in drawn]), chance)
            for at, chance in chances.items()
        )
        return ContrastCheck(concept, heads, len(images), right, ordered)


def _means_over_images(
    maps: Sequence[Float32[np.ndarray, "height width"]], masks: Sequence[Mask]
) -> tuple[float, float]:
    """Mean AUC and mean overlap of maps with their masks."""
    pairs = list(zip(maps, masks, strict=True))
    return (
        float(np.nanmean([pixel_auc(*pair) for pair in pairs])),
        float(np.nanmean([overlap(*pair) for pair in pairs])),
    )

"""The factors of the image world as concepts, to be compared when heads are pruned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headspan.concepts.consistency import ConceptConsistency
from headspan.events import Listener, ignore
from headspan.prune.studies.concept_specific import Concept
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.tasks.truths import UNKNOWN
from headspan.tasks.zero_shot import embed_classes
from headspan.world.captions import prompts, value_of
from headspan.world.checks import FACTOR_OF
from headspan.world.ground_truth import heads_by_concept, scenes_of


def factor_concepts(
    store: Store, on_progress: Listener = ignore, *, weights: str | Path | None = None
) -> dict[str, Concept]:
    """The factors that a concept of the world's pool is scored by, with the value of every image.

    The kind of a background is left out: its words belong to the concept `backgrounds`, whose factor is the
    background's colour. Raises SettingsError if the images are not scenes of the world, and the errors of
    `text_vectors`.
    """
    factors = list(FACTOR_OF.values())
    scenes = scenes_of(store)
    classes = embed_classes(store, {factor: prompts(factor) for factor in factors}, on_progress, weights=weights)
    found = {}
    for factor in factors:
        places = {name: place for place, name in enumerate(classes[factor].names)}
        values = [value_of(each, factor) for each in scenes]
        truths = np.array([UNKNOWN if value is None else places[value] for value in values])
        found[factor] = Concept(classes[factor], truths)
    return found


def factor_heads(consistency: ConceptConsistency) -> dict[str, tuple[Head, ...]]:
    """The heads that are labelled with the concept of each factor; factors without heads are left out."""
    return {FACTOR_OF[concept]: heads for concept, heads in heads_by_concept(consistency)}

"""Give an image one class of another image's features, or of a text's, and look up the result in the store.

The embedding is edited, and no pixels: neighbours in the store show what it has become, and a decoder of embeddings can
draw it (`to_unclip`). Source of the use: Yan et al., arXiv 2502.14888, who control text-to-image generation so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64

from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.explore.nearest.neighbours import nearest_to_vector
from headspan.explore.query.query_image import query_image, unit_embedding
from headspan.features.learners.learner import IMAGE, TEXT
from headspan.features.scores.result import FeatureScores
from headspan.features.training.dictionary import Dictionary
from headspan.features.uses.checked import checked_learner
from headspan.features.uses.chosen import chosen_classes
from headspan.features.uses.edit_result import EditedImage, FactorShares
from headspan.features.uses.exchange import Exchanger
from headspan.features.uses.filtered import KEPT
from headspan.features.uses.matched import TOLERANCE, matched_features
from headspan.features.uses.saved import check_name, keep_use, refuse_other
from headspan.features.uses.use import how_made
from headspan.store.reader import Store
from headspan.tasks.factors import Factors
from headspan.texts.vectors import text_vectors

# How many neighbours are looked up, and how many random sets of features are exchanged for comparison.
COUNT, DRAWS = 10, 5


def edit(
    store: Store,
    dictionary: Dictionary,
    scores: FeatureScores,
    image: int,
    donor: int | str,
    features: str = "image-dominant",
    on_progress: Listener = ignore,
    *,
    residual: str = KEPT,
    count: int = COUNT,
    factors: Sequence[str] = (),
    donor_values: Mapping[str, str] | None = None,
    draws: int = DRAWS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    weights: str | Path | None = None,
    run: str | None = None,
    overwrite: bool = False,
) -> EditedImage:
    """The embedding of `image` with one class of features as `donor` has them, and its neighbours.

    Args:
        store: The store to read.
        dictionary: The dictionary, trained on embeddings of the store's model.
        scores: The dictionary's scores, which give features their classes.
        image: The index of the source in the store.
        donor: The index of another image, or a text.
        features: The class of features that is exchanged.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        residual: What happens to what the dictionary does not explain of the source: kept or dropped.
        count: The number of neighbours.
        factors: Keys of the metadata, as in `Factors`, of which the neighbours' values are counted.
        donor_values: The values that a text stands for, by factor; an image has its own.
        draws: Number of controls: random sets of as many features whose energy is the same within `tolerance`.
        tolerance: How far the energy of a random set may be from that of the class, as a share of it.
        seed: Seed of the draws.
        weights: As in `text_vectors`.
        run: Save the result as `uses/<run>`; None writes nothing.
        overwrite: Replace a different result of that name.

    Raises SettingsError as `checked_learner` does, if no feature has the class, or if an image or a factor does not
    exist; the errors of `text_vectors`; and those of `keep_use`.
    """
    check_name(run)
    learner = checked_learner(store, dictionary, scores, residual)
    if count < 1:
        raise SettingsError(f"count {count}: give a number of neighbours from 1")
    members = chosen_classes(scores, [features])[features]
    source = query_image(store, image, on_progress)
    assert source.image is not None, "the source is an image of the store"
    known = Factors(store, factors)
    wanted: dict[str, str | None] = dict(donor_values or {})
    if isinstance(donor, str):
        name, side, own = donor, TEXT, None
        vector = text_vectors(store, [donor], on_progress, weights=weights)[0]
    else:
        other = query_image(store, donor, on_progress)
        assert other.image is not None, "the donor is an image of the store"
        name, side, own = other.name, IMAGE, other.image
        vector = unit_embedding(other).astype(np.float32)
        wanted = {**known.of(own), **wanted}
    made = how_made(scores, residual, tolerance, draws, seed)
    refuse_other(
        store, EditedImage, run, scores, {**made, "pair": {"source": source.name, "donor": name}}, {}, overwrite
    )
    unit = unit_embedding(source).astype(np.float32)
    exchanger = Exchanger.of(learner, unit[None], vector[None], residual, side)
    control = matched_features(members, exchanger.energies(), np.asarray(scores.active > 0), draws, seed, tolerance)
    length = float(np.linalg.norm(source.embedding))

    def edited(called: str, taken: Bool[np.ndarray, " feature"]) -> EditedImage:
        (found,) = exchanger.exchanged(taken)
        images, near = neighbours_without(store, found, count, {source.image, own})
        return EditedImage(
            source=source.name,
            donor=name,
            features=called,
            embedding=(length * found).astype(np.float32),
            source_cosine=float(found @ unit),
            donor_cosine=float(found @ vector),
            images=images,
            scores=near,
            keys=tuple(store.samples(images, ["key"])["key"].to_pylist()),
            factors=factor_shares(known, images.tolist(), known.of(image), wanted),
            **made,
        )

    controls = tuple(edited(f"random, as {features}", each) for each in control.members)
    done = replace(edited(features, members), controls=controls, remarks=control.limits)
    return keep_use(store, done, scores, run, overwrite, on_progress)


def neighbours_without(
    store: Store, vector: Float32[np.ndarray, " joint"], count: int, without: set[int | None]
) -> tuple[Int64[np.ndarray, " count"], Float32[np.ndarray, " count"]]:
    """The images nearest to a vector, and their cosines, without some images."""
    near = nearest_to_vector(store, vector, None, count + len(without))
    kept = ~np.isin(near.images, [each for each in without if each is not None])
    return near.images[kept][:count].astype(np.int64), near.scores[kept][:count]


def factor_shares(
    known: Factors, images: Sequence[int], source: Mapping[str, str | None], donor: Mapping[str, str | None]
) -> dict[str, FactorShares]:
    """How many of the images have the source's, and how many the donor's value of each factor."""
    return {
        name: FactorShares(
            source=known.share(name, source.get(name), images),
            donor=known.share(name, donor.get(name), images),
            source_base=known.base(name, source.get(name)),
            donor_base=known.base(name, donor.get(name)),
        )
        for name in known.values
    }

"""Which factors of images move when one class of their features is taken from others, over many pairs.

A pair counts for a factor if source and donor have different values of it. Of the neighbours of the edited embedding,
the share with the donor's value says what has come with the features, and the share with the source's value what has
stayed. Random features of equal energy say how much of that any features would have done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.features.learners.learner import IMAGE, TEXT
from headspan.features.pairs.image_vectors import embeddings
from headspan.features.pairs.units import units
from headspan.features.scores.result import FeatureScores
from headspan.features.training.dictionary import Dictionary
from headspan.features.uses.checked import checked_learner
from headspan.features.uses.chosen import DECIDED, chosen_classes
from headspan.features.uses.edit import COUNT, DRAWS, neighbours_without
from headspan.features.uses.edit_result import EditRow, EditStudy, Kind
from headspan.features.uses.exchange import Exchanger
from headspan.features.uses.filtered import KEPT
from headspan.features.uses.matched import TOLERANCE, controls_of
from headspan.features.uses.saved import check_name, keep_use, refuse_other
from headspan.features.uses.use import how_made
from headspan.store.reader import Store
from headspan.store.selection import usable_images
from headspan.tasks.factors import Factors
from headspan.texts.vectors import text_vectors

# How many pairs of images are drawn, and what donors are.
PAIRS = 100
DONORS = IMAGES, CAPTIONS = "images", "captions"
# How often images with captions are drawn before all captions are read.
_ROUNDS = 4


def edit_study(
    store: Store,
    dictionary: Dictionary,
    scores: FeatureScores,
    factors: Sequence[str],
    on_progress: Listener = ignore,
    *,
    classes: Sequence[str] = DECIDED,
    donors: str = IMAGES,
    residual: str = KEPT,
    pairs: int = PAIRS,
    count: int = COUNT,
    draws: int = DRAWS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    weights: str | Path | None = None,
    run: str | None = None,
    overwrite: bool = False,
) -> EditStudy:
    """Edit `pairs` of random images of a store, and count which factors of their neighbours move.

    Donors are images, or the captions of images. Other arguments and errors are those of `edit`.
    """
    check_name(run)
    learner = checked_learner(store, dictionary, scores, residual)
    if donors not in DONORS:
        raise SettingsError(f"donors {donors!r}: give one of {', '.join(DONORS)}")
    if not factors or min(pairs, count) < 1:
        raise SettingsError(
            f"{counted(len(factors), 'factor')}, {counted(pairs, 'pair')} and {counted(count, 'neighbour')}: a study "
            "needs at least one of each"
        )
    members = chosen_classes(scores, classes)
    known = Factors(store, factors)
    sources, others = _pairs(store, pairs, donors, seed)
    made = how_made(scores, residual, tolerance, draws, seed) | {
        "pairs": len(sources),
        "neighbours": count,
        "donors": donors,
    }
    differing = [name for name, values in known.values.items() if _differ(values, sources, others)]
    edited = {"exchanged": ["", *members], "factor": differing} if differing else {}
    refuse_other(store, EditStudy, run, scores, made, edited, overwrite)
    own = units(embeddings(store, store.rows[sources]))
    if donors == CAPTIONS:
        texts = [str(each) for each in store.samples(others, ["caption"])["caption"].to_pylist()]
        theirs, side = text_vectors(store, texts, on_progress, weights=weights), TEXT
    else:
        theirs, side = units(embeddings(store, store.rows[others])), IMAGE
    exchanger = Exchanger.of(learner, own, theirs, residual, side)
    controls, remarks = controls_of(members, exchanger.energies(), scores, draws, seed, tolerance)
    done, total = 0, 2 + sum(1 + len(control.members) for control in controls.values())

    def moved(vectors: Float32[np.ndarray, "pair width"]) -> _Moved:
        nonlocal done
        found = _Moved(store, known, sources, others, vectors, own, theirs, count)
        done += 1
        on_progress(Progress("edits", done, total))
        return found

    rows = [*_rows("source", "", 0, [moved(own)]), *_rows("donor", "", 0, [moved(theirs)])]
    for name, each in members.items():
        size = int(each.sum())
        rows += _rows("class", name, size, [moved(exchanger.exchanged(each))])
        rows += _rows("random", name, size, [moved(one) for one in exchanger.each(controls[name].members)])
    study = EditStudy(rows=tuple(rows), remarks=tuple(remarks), **made)
    return keep_use(store, study, scores, run, overwrite, on_progress)


def _pairs(
    store: Store, pairs: int, donors: str, seed: int
) -> tuple[Int64[np.ndarray, " pair"], Int64[np.ndarray, " pair"]]:
    """Sources and donors, which differ. Donors have a caption if that is what is taken."""
    usable = np.flatnonzero(usable_images(store, np.arange(store.images)))
    random = np.random.default_rng([seed, 2])
    others = np.empty(0, np.int64)
    if len(usable) >= 2:
        others = random.choice(usable, size=pairs) if donors == IMAGES else _captioned(store, usable, pairs, random)
    if not len(others):
        raise SettingsError(
            f"{store.path}: {counted(len(usable), 'image')} can be used and "
            f"{counted(len(usable) if donors == IMAGES else 0, 'donor')} found, but a pair needs two images; name a "
            "larger store, with captions if donors are captions"
        )
    sources = random.choice(usable, size=pairs)
    same = sources == others
    # The next image, where a source was drawn as its own donor.
    sources[same] = usable[(np.searchsorted(usable, sources[same]) + 1) % len(usable)]
    return sources.astype(np.int64), others.astype(np.int64)


def _captioned(
    store: Store, usable: Int64[np.ndarray, " image"], pairs: int, random: np.random.Generator
) -> Int64[np.ndarray, " pair"]:
    """`pairs` of the usable images that have a caption, drawn with replacement; empty if there is none.

    Captions are read of drawn images, and of all only where so few images have one that draws find none.
    """
    found: list[int] = []
    for _ in range(_ROUNDS):
        drawn = random.choice(usable, size=2 * pairs)
        with_caption = _with_caption(store, np.unique(drawn))
        found += [image for image in drawn.tolist() if image in with_caption]
        if len(found) >= pairs:
            return np.array(found[:pairs], np.int64)
    giving = np.array(sorted(_with_caption(store, usable)), np.int64)
    return random.choice(giving, size=pairs) if len(giving) else giving


def _with_caption(store: Store, images: Int64[np.ndarray, " image"]) -> set[int]:
    captions = store.samples(images, ["caption"])["caption"].to_pylist()
    return {image for image, caption in zip(images.tolist(), captions, strict=True) if caption}


def _differ(
    values: Sequence[str | None], sources: Int64[np.ndarray, " pair"], others: Int64[np.ndarray, " pair"]
) -> bool:
    """Whether a pair has two values of a factor."""
    pairs = ((values[one], values[other]) for one, other in zip(sources.tolist(), others.tolist(), strict=True))
    return any(one != other and None not in (one, other) for one, other in pairs)


class _Moved:
    """Which values the neighbours of edited embeddings have, by factor."""

    def __init__(
        self,
        store: Store,
        known: Factors,
        sources: Int64[np.ndarray, " pair"],
        others: Int64[np.ndarray, " pair"],
        vectors: Float32[np.ndarray, "pair width"],
        own: Float32[np.ndarray, "pair width"],
        theirs: Float32[np.ndarray, "pair width"],
        count: int,
    ) -> None:
        near = [
            neighbours_without(store, vector, count, {source, other})[0].tolist()
            for vector, source, other in zip(vectors, sources.tolist(), others.tolist(), strict=True)
        ]
        self.cosines = float((vectors * own).sum(axis=1).mean()), float((vectors * theirs).sum(axis=1).mean())
        # By factor, a row for each pair that differs in it: shares of neighbours and of all images.
        self.shares: dict[str, np.ndarray] = {}
        for name, values in known.values.items():
            rows = []
            for source, other, images in zip(sources.tolist(), others.tolist(), near, strict=True):
                first, second = values[source], values[other]
                if first is None or second is None or first == second:
                    continue
                shares = (known.share(name, first, images), known.share(name, second, images))
                if None not in shares:
                    rows.append([*shares, known.base(name, first), known.base(name, second)])
            self.shares[name] = np.array(rows, np.float64).reshape(-1, 4)


def _rows(kind: Kind, exchanged: str, features: int, sets: Sequence[_Moved]) -> Iterator[EditRow]:
    if not sets:
        return
    for factor in sets[0].shares:
        means = np.array([each.shares[factor].mean(axis=0) for each in sets if len(each.shares[factor])])
        if len(means):
            source, donor, source_base, donor_base = means.mean(axis=0).tolist()
            yield EditRow(
                kind=kind,
                exchanged=exchanged,
                features=features,
                sets=len(sets),
                factor=factor,
                pairs=len(sets[0].shares[factor]),
                source=source,
                donor=donor,
                donor_low=float(means[:, 1].min()) if kind == "random" else None,
                donor_high=float(means[:, 1].max()) if kind == "random" else None,
                source_base=source_base,
                donor_base=donor_base,
                source_cosine=float(np.mean([each.cosines[0] for each in sets])),
                donor_cosine=float(np.mean([each.cosines[1] for each in sets])),
            )
